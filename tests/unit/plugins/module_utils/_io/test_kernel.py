# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are facts gathered from this machine the right ones, and does nothing stay behind?"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import kernel
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import features


def test_facts_are_of_this_machine(tmp_path: Path) -> None:
    facts = kernel.gather(str(tmp_path))
    assert facts.release == os.uname().release
    assert facts.bpffs_mounted is False
    status = Path("/proc/self/status").read_text()
    assert facts.capabilities is not None
    assert f"CapEff:\t{facts.capabilities:016x}\n" in status
    if facts.cgroup2:
        assert Path(facts.cgroup2, "cgroup.controllers").exists()
    assert (facts.types is None) == bool(facts.btf_error)


def test_a_folder_that_is_missing_or_a_file_is_no_bpffs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing", tmp_path / "file"):
        assert kernel.gather(str(path)).bpffs_mounted is False


def test_a_machine_of_another_kind_is_not_guessed_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    facts = kernel.gather(str(tmp_path))
    assert (facts.programs, facts.maps, facts.link) == ({}, {}, None)


def test_unreadable_sources_give_no_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "VMLINUX", tmp_path / "absent")
    monkeypatch.setattr(kernel, "LIBBPF", "libbpf.so.0.none")
    facts = kernel.gather(str(tmp_path))
    assert facts.types is None
    assert facts.btf_error == "No such file or directory"
    assert "libbpf.so.0.none" in facts.libbpf_error
    missing = [one["feature"] for one in features.assess(facts)["missing"]]
    assert {"btf", "libbpf", "bpffs"} <= set(missing)


def test_another_file_in_the_place_of_btf_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux").write_bytes(b"not BTF at all")
    monkeypatch.setattr(kernel, "VMLINUX", tmp_path / "vmlinux")
    assert "magic number" in kernel.gather(str(tmp_path)).btf_error


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("[none] integrity confidentiality", "none"),
        ("none [integrity] confidentiality", "integrity"),
        ("none integrity [confidentiality]", "confidentiality"),
        ("", "none"),
    ],
)
def test_the_lockdown_mode_is_the_one_in_brackets(text: str, mode: str) -> None:
    assert kernel.parse_lockdown(text) == mode


def supported() -> kernel._Probe:
    probe = kernel._Probe.available()
    facts = kernel.gather("/sys/fs/bpf")
    if os.geteuid() or probe is None or features.missing_capabilities(facts.capabilities):
        pytest.skip("SKIPPED: needs root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
    return probe


@pytest.mark.root
def test_the_running_kernel_takes_every_probe_and_nothing_stays_open() -> None:
    supported()
    before = os.listdir("/proc/self/fd")
    facts = kernel.gather("/sys/fs/bpf")
    assert set(facts.programs) == {"sock_ops", "sk_msg", "tp_btf", "iter"}
    assert not any(facts.programs.values()), facts.programs
    assert not any(facts.maps.values()), facts.maps
    assert facts.link is not None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.root
def test_a_program_that_the_kernel_refuses_has_its_error_as_answer() -> None:
    probe = supported()
    # A type that does not exist; a program without exit; a map of no known type.
    assert "EINVAL" in probe._answer(lambda: probe._program(9999, 0, kernel.ONE))
    refused = probe._answer(
        lambda: probe._program(kernel.SOCK_OPS, kernel.SK_MSG_VERDICT, kernel.ONE[:8])
    )
    assert "EINVAL" in refused
    assert "EINVAL" in probe._answer(lambda: probe._map(9999, 4, 4, 1, 0))
