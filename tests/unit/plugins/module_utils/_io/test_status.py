# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is what is pinned told as it is, and what is missing or foreign told as that?

The integration target of tcp_sm_info does the same with the real programs and traffic.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import mounts, status
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import apply
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import ObjectSpec


def test_nothing_pinned_is_absent_and_empty(tmp_path: Path) -> None:
    with status.Status(str(tmp_path / "missing"), "tcp_sm") as found:
        assert found.objects() == {
            "name": "tcp_sm",
            "state": "absent",
            "programs": [],
            "maps": [],
            "links": [],
        }
        assert found.counters()["opened"] == {"tcp": 0, "sockmap": 0, "ring": 0}
        assert found.records() == []
        assert found.profiles() == []


def test_an_empty_folder_or_a_file_is_absent(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        with status.Status(str(tmp_path), name) as found:
            assert found.objects()["state"] == "absent"


def test_a_folder_of_something_else_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "tcp_sm" / "holiday_pictures").mkdir(parents=True)
    with pytest.raises(TcpSmError, match=r"holiday_pictures was not pinned by this collection"):
        status.Status(str(tmp_path), "tcp_sm")


def test_an_ordinary_file_in_the_place_of_a_pin_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: needs root")
    (tmp_path / "tcp_sm" / "progs").mkdir(parents=True)
    (tmp_path / "tcp_sm" / "progs" / "tcp_sm_verdict").write_text("")
    with pytest.raises(TcpSmError, match=f"Cannot open the pins in {tmp_path}/tcp_sm"):
        status.Status(str(tmp_path), "tcp_sm")


@pytest.mark.root
def test_another_object_is_listed_without_counters(
    objects: dict[str, str], bpffs: str, cgroup: str
) -> None:
    spec = {"name": "other", "path": objects["one"], "bpffs": bpffs, "state": "loaded"}
    result = apply(ObjectSpec.parse(spec))
    try:
        with status.Status(bpffs, "other") as found:
            shown = found.objects()
            assert shown["state"] == "loaded"
            assert shown["programs"] == result.object["programs"]
            assert shown["maps"] == result.object["maps"]
            assert shown["programs"]
            assert found.records() == []
            assert found.profiles() == []
            assert found.counters()["closed"] == 0
    finally:
        apply(ObjectSpec.parse({**spec, "state": "absent"}))
    with status.Status(bpffs, "other") as found:
        assert found.objects()["state"] == "absent"


@pytest.fixture(name="cgroup2")
def cgroup2_tree() -> Iterator[Path]:
    """A cgroup with a child, below the real cgroup2 mount."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: needs root to make cgroups")
    top = Path(mounts.cgroup2_root(), f"tcp_sm_status_{os.getpid()}")
    (top / "child").mkdir(parents=True)
    try:
        yield top
    finally:
        (top / "child").rmdir()
        top.rmdir()


@pytest.mark.root
def test_cgroup_ids_become_paths_below_the_mount(cgroup2: Path) -> None:
    root = Path(mounts.cgroup2_root())
    ids = [path.stat().st_ino for path in (root, cgroup2, cgroup2 / "child")]
    assert status.cgroup_paths([*ids, 1 << 60]) == {
        ids[0]: "/",
        ids[1]: f"/{cgroup2.name}",
        ids[2]: f"/{cgroup2.name}/child",
    }


def test_no_ids_need_no_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "cgroup2_root", lambda: pytest.fail("walked for nothing"))
    assert status.cgroup_paths([]) == {}


@pytest.mark.root
def test_a_namespace_has_the_name_that_ip_gave_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: needs root to make a network namespace")
    name = f"tcpsm-status-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        number = os.stat(f"/run/netns/{name}").st_ino
        assert status.netns_names()[number] == name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    assert name not in status.netns_names().values()


def test_folders_of_namespaces_that_are_missing_are_empty(tmp_path: Path) -> None:
    (tmp_path / "stale").symlink_to(tmp_path / "gone")
    assert status.netns_names([str(tmp_path), str(tmp_path / "missing")]) == {}
