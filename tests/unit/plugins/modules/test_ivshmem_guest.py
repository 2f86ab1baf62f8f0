# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does ivshmem_guest tell what a machine has, and drain it? The machine is a tree of files.

The drain of a real one is in molecule/vm.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import guest as io
from ansible_collections.colocated.tcp_sm.plugins.modules import ivshmem_guest

ADDRESS = "0000:01:00.0"
STATUS = {
    **{"chunk": 1, "epoch": 7, "slots": 4, "ring_size": 131072, "ready": 1, "closing": 0},
    **{"connections": 2, "slots_busy": 3, "slots_lingering": 1, "opened": 9, "aborted": 0},
    "programs": 1,
}
Run = Callable[..., dict[str, Any]]


class Machine:
    """Files as a kernel would show them; `drain` does what the module does."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.writes: list[str] = []
        self.refusals: list[OSError] = []
        self.real_write = Path.write_text
        machine = self

        def write_text(path: Path, text: str, *rest: Any, **more: Any) -> int:
            if path.name == "drain":
                machine.drain(text)
                return len(text)
            return machine.real_write(path, text, *rest, **more)

        monkeypatch.setattr(Path, "write_text", write_text)

    def put(self, path: str, text: str = "") -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.real_write(target, text)

    def link(self, path: str, target: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def load_module(self) -> None:
        self.put("sys/module/tcp_sm/version", "1.0.0\n")
        self.put("sys/module/tcp_sm/srcversion", "AA\n")
        self.put("sys/module/tcp_sm/parameters/chunk", "-1\n")
        self.put("sys/kernel/btf/tcp_sm")
        self.put("sys/kernel/btf/vmlinux")

    def plug(self, bound: bool = True) -> None:
        device = f"sys/bus/pci/devices/{ADDRESS}"
        self.put(f"{device}/vendor", "0x1af4\n")
        self.put(f"{device}/device", "0x1110\n")
        self.put(f"{device}/resource2", "x" * 4096)
        if bound:
            self.link(f"{device}/driver", "../../drivers/tcp_sm")
            self.put(f"{device}/tcp_sm/region", "alpha\n")
            self.put(f"{device}/tcp_sm/provider", "ivshmem-plain\n")
            self.set(**STATUS)
            self.put(f"sys/bus/pci/drivers/tcp_sm/{ADDRESS}/tcp_sm/drain")

    def set(self, **status: int) -> None:
        self.status = {**getattr(self, "status", {}), **status}
        text = "".join(f"{name} {value}\n" for name, value in self.status.items())
        self.put(f"sys/bus/pci/devices/{ADDRESS}/tcp_sm/status", text)

    def drain(self, text: str) -> None:
        self.writes.append(text)
        self.set(closing=int(text))
        if self.refusals:
            raise self.refusals.pop(0)
        if text == "1":
            self.set(connections=0, slots_busy=0, slots_lingering=0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with nothing, whose commands are the build machine's."""
    monkeypatch.setattr(io, "_on_disk", lambda: "AA")
    root = tmp_path / "root"
    apply = partial(io.apply_guest, root=root, lock_path=str(tmp_path / "lock"))
    monkeypatch.setattr(ivshmem_guest, "apply_guest", apply)
    return Machine(root, monkeypatch)


@pytest.fixture
def run(run_module: Run, machine: Machine, tmp_path: Path) -> Run:
    return partial(run_module, ivshmem_guest, bpffs=str(tmp_path / "bpf"))


def timed_out() -> OSError:
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def missing(answer: dict[str, Any]) -> list[str]:
    return [one["feature"] for one in answer["guest"]["missing"]]


def test_is_a_machine_without_anything_told_as_that(run: Run) -> None:
    answer = run()
    assert not answer["changed"]
    assert answer["guest"]["devices"] == []
    assert not answer["guest"]["module"]["loaded"]
    assert missing(answer) == ["btf", "module", "device", "handshake"]
    assert "headers" in [one["feature"] for one in answer["guest"]["build"]]


def test_is_a_device_told_with_all_it_has(run: Run, machine: Machine) -> None:
    machine.load_module()
    machine.plug()
    answer = run()
    (device,) = answer["guest"]["devices"]
    assert device == {
        **{"address": ADDRESS, "driver": "tcp_sm", "size": 4096, "region": "alpha"},
        **{"provider": "ivshmem-plain", **STATUS},
        **{"ready": True, "closing": False, "programs": True},
    }
    assert answer["guest"]["module"]["parameters"] == {"chunk": "-1"}
    assert not answer["guest"]["module"]["outdated"]
    assert missing(answer) == ["handshake"]


def test_is_what_dkms_has_told(run: Run, machine: Machine) -> None:
    machine.put("var/lib/dkms/tcp_sm/0.1.0-a/source/dkms.conf")
    machine.put("var/lib/dkms/tcp_sm/0.1.0-b/source/dkms.conf")
    release, arch = platform.release(), platform.machine()
    machine.link(f"var/lib/dkms/tcp_sm/kernel-{release}-{arch}", f"0.1.0-a/{release}/{arch}")
    found = run()["guest"]["module"]
    assert found["dkms_versions"] == ["0.1.0-a", "0.1.0-b"]
    assert found["dkms_installed"] == "0.1.0-a"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("sys/module/module/parameters/sig_enforce", "N\n", False),
        ("sys/module/module/parameters/sig_enforce", "Y\n", True),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality", False),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality", True),
        (io.SECURE_BOOT, "\6\0\0\0\0", False),
        (io.SECURE_BOOT, "\6\0\0\0\1", True),
    ],
)
def test_is_secure_boot_noticed(
    run: Run, machine: Machine, file: str, text: str, expected: bool
) -> None:
    machine.put(file, text)
    found = [one["feature"] for one in run()["guest"]["build"]]
    assert ("secure_boot" in found) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # The exit code says one thing in some versions, and another in others.
        ("echo $2 is already enrolled; exit 1", ""),
        ("echo $2 is already enrolled", ""),
        ("echo $2 is already in the built-in trusted keyring >&2; exit 255", ""),
        ("echo $2 is not enrolled", "/root/mok.der is not enrolled."),
        (None, "without the command mokutil"),
    ],
)
def test_is_mokutil_asked_about_the_certificate(
    run: Run,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    answer: str | None,
    expected: str,
) -> None:
    machine.put("root/mok.der", "certificate")
    machine.put("sys/module/module/parameters/sig_enforce", "Y\n")
    monkeypatch.setattr(io, "PATH", str(machine.root / "bin"))
    if answer is not None:
        machine.put("bin/mokutil", f"#!/bin/sh\n{answer}\n")
        (machine.root / "bin/mokutil").chmod(0o755)
    build = run(certificate="/root/mok.der")["guest"]["build"]
    found = [one["why"] for one in build if one["feature"] == "secure_boot"]
    assert len(found) == bool(expected)
    assert expected in "".join(found)


def test_is_mokutil_asked_only_where_signatures_matter(
    run: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.put("var/lib/dkms/mok.pub", "certificate")
    monkeypatch.setattr(io, "_tested", lambda _certificate: pytest.fail("asked"))
    assert run()["guest"]["build"]


def test_does_a_drain_come_and_go(run: Run, machine: Machine) -> None:
    machine.load_module()
    machine.plug()
    predicted = run(state="drained", check=True)
    assert predicted["changed"]
    assert machine.writes == []
    done = run(state="drained")
    assert done["changed"]
    assert done["diff"] == predicted["diff"]
    assert done["diff"]["before"] == {ADDRESS: {"state": "present"}}
    assert done["diff"]["after"] == {ADDRESS: {"state": "drained", "connections": 0}}
    assert done["guest"]["devices"][0]["connections"] == 0
    assert missing(done) == ["drained", "handshake"]
    assert not run(state="drained")["changed"]
    back = run(state="present")
    assert back["changed"]
    assert not back["guest"]["devices"][0]["closing"]
    assert not run(state="present")["changed"]
    assert machine.writes == ["1", "0"]


def test_is_a_drain_that_was_not_finished_finished(run: Run, machine: Machine) -> None:
    machine.load_module()
    machine.plug()
    machine.set(closing=1)
    answer = run(state="drained")
    assert answer["changed"]
    assert answer["diff"]["before"] == {ADDRESS: {"state": "drained", "connections": 5}}
    assert machine.writes == ["1"]


def test_is_a_drain_tried_again_until_the_time_is_over(run: Run, machine: Machine) -> None:
    machine.load_module()
    machine.plug()
    machine.refusals = [timed_out(), timed_out()]
    assert run(state="drained")["changed"]
    assert machine.writes == ["1", "1", "1"]
    machine.set(connections=1)
    machine.refusals = [timed_out()]
    answer = run(state="drained", timeout=0)
    assert answer["failed"]
    assert f"Cannot drain device {ADDRESS} within 0 seconds" in answer["msg"]
    assert "nothing was lost" in answer["msg"]


def test_is_a_refusal_told_with_the_file(run: Run, machine: Machine) -> None:
    machine.load_module()
    machine.plug()
    machine.refusals = [PermissionError(errno.EACCES, "Permission denied")]
    answer = run(state="drained")
    assert answer["failed"]
    assert f"{ADDRESS}/tcp_sm/drain failed: Permission denied. Run as root." in answer["msg"]


@pytest.mark.parametrize(
    ("plugged", "options", "message"),
    [
        (False, {"state": "present"}, "There is no IVSHMEM device (PCI 1af4:1110)"),
        (False, {"state": "drained", "device": "0000:09:00.0"}, "Cannot bring device 0000:09:00.0"),
        (
            True,
            {"state": "drained", "device": "0000:09:00.0"},
            f"the module tcp_sm drives {ADDRESS}",
        ),
    ],
)
def test_is_a_device_that_is_not_there_refused(
    run: Run, machine: Machine, plugged: bool, options: dict[str, str], message: str
) -> None:
    machine.load_module()
    if plugged:
        machine.plug()
    answer = run(**options)
    assert answer["failed"]
    assert message in answer["msg"]
    assert machine.writes == []


def test_has_a_machine_without_a_device_nothing_to_drain(run: Run) -> None:
    assert not run(state="drained")["changed"]


def test_is_an_unused_device_explained_by_the_kernels_log(
    run: Run, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.load_module()
    machine.plug(bound=False)
    records = [
        b"6,1,1,-;tcp_sm 0000:09:00.0: of another\n",
        f"3,2,2,-;tcp_sm {ADDRESS}: first\n".encode(),
        f"3,3,3,-;tcp_sm {ADDRESS}: chunk 3 is not assigned to anybody\n SUBSYSTEM=pci\n".encode(),
        b"6,4,4,-;something else\n",
    ]

    def read(_fd: int, _size: int) -> bytes:
        if not records:
            raise BlockingIOError(errno.EAGAIN, "no more")
        return records.pop(0)

    machine.put("dev/kmsg")
    monkeypatch.setattr(os, "read", read)
    (found,) = [one for one in run()["guest"]["missing"] if one["feature"] == "device_unused"]
    assert "It said: chunk 3 is not assigned to anybody." in found["why"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "absent"}, "value of state must be one of: present, drained"),
        ({"timeout": "long"}, "timeout"),
        ({"drain": True}, "Unsupported parameters"),
    ],
)
def test_are_bad_options_refused(run: Run, options: dict[str, Any], message: str) -> None:
    answer = run(**options)
    assert answer["failed"]
    assert message in answer["msg"]


def documented(fields: dict[str, Any], value: Any, at: str) -> None:
    """Fail for a key of ``value`` that RETURN does not name, and for one that is missing."""
    if isinstance(value, list):
        for one in value:
            documented(fields, one, at)
    elif isinstance(value, dict) and fields:
        assert set(value) == set(fields), at
        for key, inner in value.items():
            documented(fields[key].get("contains", {}), inner, f"{at}.{key}")


def test_does_the_documentation_name_every_key(run: Run, machine: Machine) -> None:
    page = yaml.safe_load(ivshmem_guest.RETURN)["guest"]["contains"]
    documented(page, run()["guest"], "guest")
    machine.load_module()
    machine.plug()
    documented(page, run()["guest"], "guest")
    assert yaml.safe_load(ivshmem_guest.EXAMPLES)
