# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a virtual machine has of the ring channel, and its drain: what module ivshmem_guest calls.

Private to this collection. Reads sysfs, and writes one attribute of the module there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._model import guest
from .._model.errors import InputError, TcpSmError
from .._model.guest import (
    DEVICE,
    DKMS_CERTIFICATE,
    HANDSHAKE,
    MODULE,
    RING,
    VENDOR,
    Device,
    Facts,
    Module,
    Signing,
)
from .kernel import parse_lockdown
from .lock import LOCK_PATH, locked
from .maps import PinnedMap
from .status import Status

# Everything is looked for below this folder, so that tests can give another one.
ROOT = Path("/")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
CONFIG_MAP = "tcp_sm_config"
STATES = ("present", "drained")


@dataclass(frozen=True)
class GuestSpec:
    """See the options of module ivshmem_guest. An empty `state` only looks; an empty `device` is
    all of them."""

    name: str = "tcp_sm"
    bpffs: str = "/sys/fs/bpf"
    state: str = ""
    device: str = ""
    timeout: int = 10
    certificate: str = DKMS_CERTIFICATE


@dataclass
class GuestResult:
    """Outcome. `guest` has the shape of the module's return value."""

    changed: bool
    guest: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def apply_guest(
    spec: GuestSpec, check: bool = False, root: Path = ROOT, lock_path: str = LOCK_PATH
) -> GuestResult:
    """Look, and where `spec` has a state, bring the devices to it. Raises TcpSmError."""
    found = look(spec, root)
    if not spec.state:
        return GuestResult(False, guest.describe(found))
    devices = [one for one in guest.bound(found) if spec.device in ("", one.address)]
    if not devices and (spec.device or spec.state == "present"):
        raise InputError(_no_device(spec, found))
    wrong = [one for one in devices if _is(one) != _wanted(spec)]
    before = {one.address: _is(one) for one in devices}
    after = {one.address: _wanted(spec) for one in devices}
    if wrong and not check:
        with locked(spec.timeout, lock_path):
            for one in wrong:
                _bring(one, spec, root)
        found = look(spec, root)
    return GuestResult(bool(wrong), guest.describe(found), before, after)


def _is(device: Device) -> dict[str, Any]:
    """The part of a device that a state is about."""
    status = device.status or {}
    word = "drained" if status.get("closing") else "present"
    if word == "drained":
        return {"state": word, "connections": status["connections"] + status["slots_busy"]}
    return {"state": word}


def _wanted(spec: GuestSpec) -> dict[str, Any]:
    return {"state": spec.state, **({"connections": 0} if spec.state == "drained" else {})}


def _no_device(spec: GuestSpec, found: Facts) -> str:
    which = f"device {spec.device}" if spec.device else "an IVSHMEM device"
    reasons = " ".join(
        f"{one['why']} {one['fix']}"
        for one in guest.describe(found)["missing"]
        if one["feature"] in ("module", "device", "device_unused")
    )
    used = ", ".join(one.address for one in guest.bound(found)) or "none"
    return (
        f"Cannot bring {which} to state {spec.state}: the module {MODULE} drives {used}. {reasons}"
    ).rstrip()


def _bring(device: Device, spec: GuestSpec, root: Path) -> None:
    """Write the attribute until it takes: each attempt to drain ends after a while."""
    path = root / "sys/bus/pci/drivers" / MODULE / device.address / MODULE / "drain"
    deadline = time.monotonic() + spec.timeout
    while True:
        try:
            path.write_text("1" if spec.state == "drained" else "0")
        except OSError as error:
            if error.errno == errno.ETIMEDOUT and time.monotonic() < deadline:
                continue
            raise TcpSmError(_not_done(device, spec, path, error)) from error
        return


def _not_done(device: Device, spec: GuestSpec, path: Path, error: OSError) -> str:
    if error.errno == errno.ETIMEDOUT:
        return (
            f"Cannot drain device {device.address} within {spec.timeout} seconds: applications "
            "have not read what is in the rings of their connections. New connections are refused "
            "already, and nothing was lost. Try again, or raise the timeout."
        )
    return (
        f"Cannot bring device {device.address} to state {spec.state}: writing {path} failed: "
        f"{error.strerror}. Run as root."
    )


# -- looking ----------------------------------------------------------------------------------


def look(spec: GuestSpec, root: Path = ROOT) -> Facts:
    """Facts of this machine; nothing that is missing raises."""
    release = platform.release()
    build = root / "lib/modules" / release / "build"
    objects, mode = _objects(spec)
    module = _module(root, release)
    return Facts(
        release=release,
        btf=(root / "sys/kernel/btf/vmlinux").exists(),
        headers=(build / "Makefile").exists(),
        headers_typed=(build / "vmlinux").exists(),
        commands=frozenset(name for name in guest.COMMANDS if shutil.which(name, path=PATH)),
        signing=_signing(root, spec.certificate),
        module=module,
        devices=tuple(_devices(root, module)),
        objects=objects,
        mode=mode,
    )


def _read(path: Path) -> str:
    """The text of a file without the white space around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _module(root: Path, release: str) -> Module:
    live = root / "sys/module" / MODULE
    dkms = root / "var/lib/dkms" / MODULE
    # DKMS links what is installed for a kernel as kernel-RELEASE-MACHINE.
    installed = dkms / f"kernel-{release}-{platform.machine()}"
    version = Path(os.readlink(installed)).parts[0] if installed.is_symlink() else ""
    versions = [one.name for one in _listed(dkms) if one.is_dir() and not one.is_symlink()]
    return Module(
        loaded=live.is_dir(),
        version=_read(live / "version"),
        srcversion=_read(live / "srcversion"),
        on_disk=_on_disk(),
        typed=(root / "sys/kernel/btf" / MODULE).exists(),
        parameters={one.name: _read(one) for one in _listed(live / "parameters")},
        dkms_versions=tuple(versions),
        dkms_installed=version,
    )


def _on_disk() -> str:
    """The digest of the source in the module that modprobe would load."""
    return _output("modinfo", "-F", "srcversion", MODULE)


def _output(command: str, *arguments: str) -> str:
    """What a command says; empty where it fails or is missing."""
    program = shutil.which(command, path=PATH)
    if program is None:
        return ""
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _signatures(root: Path) -> bool:
    """Does the kernel take signed modules only?"""
    with contextlib.suppress(OSError):
        # Four bytes of attributes, then the value.
        if (root / SECURE_BOOT).read_bytes()[4:5] == b"\1":
            return True
    lockdown = parse_lockdown(_read(root / "sys/kernel/security/lockdown"))
    return lockdown != "none" or _read(root / "sys/module/module/parameters/sig_enforce") == "Y"


def _signing(root: Path, certificate: str) -> Signing:
    """Asks about the certificate only where it matters."""
    if not _signatures(root):
        return Signing(False, certificate)
    path = root / certificate.lstrip("/")
    return Signing(True, certificate, _tested(str(path)) if path.exists() else "")


def _tested(certificate: str) -> str | None:
    """mokutil's answer, whose exit code differs between versions; None where it is missing."""
    program = shutil.which("mokutil", path=PATH)
    if program is None:
        return None
    # That a certificate is built into the kernel it says among the errors.
    done = subprocess.run(
        [program, "--test-key", certificate],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout.strip()


def _devices(root: Path, module: Module) -> list[Device]:
    found = []
    for path in _listed(root / "sys/bus/pci/devices"):
        ids = (_read(path / "vendor"), _read(path / "device"))
        if ids == (f"0x{VENDOR:04x}", f"0x{DEVICE:04x}"):
            found.append(_device(path, module, root))
    return found


def _device(path: Path, module: Module, root: Path) -> Device:
    driver = path / "driver"
    name = os.path.basename(os.readlink(driver)) if driver.is_symlink() else ""
    own = path / MODULE
    status = None
    with contextlib.suppress(ValueError):
        status = guest.parse_status(_read(own / "status"))
    size = 0
    with contextlib.suppress(OSError):
        size = (path / "resource2").stat().st_size
    log = _last_words(path.name, root) if module.loaded and status is None else ""
    return Device(
        path.name, name, size, _read(own / "region"), _read(own / "provider"), status, log
    )


def _last_words(address: str, root: Path) -> str:
    """The last line of the kernel's log that the module wrote about a device."""
    last = ""
    with contextlib.suppress(OSError):
        fd = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while record := os.read(fd, 8192):
                said = re.search(
                    rf";{MODULE} {re.escape(address)}: (.+)", record.decode("utf-8", "replace")
                )
                last = said[1] if said else last
        finally:
            os.close(fd)
    return last


def _objects(spec: GuestSpec) -> tuple[dict[str, str], int | None]:
    """The states of the two objects by the ends of their names, and the mode."""
    states: dict[str, str] = {}
    mode = None
    for end in (RING, HANDSHAKE):
        try:
            with Status(spec.bpffs, spec.name + end) as status:
                states[end] = status.objects()["state"]
                mode = _mode(status) if end == HANDSHAKE else None
        except TcpSmError:
            states[end] = "unknown"
    return states, mode


def _mode(status: Status) -> int | None:
    fd = status.pinned.maps.get(CONFIG_MAP)
    if status.bpf is None or fd is None:
        return None
    table = PinnedMap(status.bpf, fd, CONFIG_MAP)
    shown = [table.show(key, value) for key, value in table.read().items()]
    return int(shown[0]["value"]["mode"])
