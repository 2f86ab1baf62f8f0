# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this virtual machine use the ring channel, and if not, what is missing and what helps?

Private to this collection. Pure decisions over :class:`Facts`, which ``_io/guest.py`` gathers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .abi import Mode
from .features import Finding, kernel_version

MODULE = "tcp_sm"
MINIMUM = (6, 12)
VENDOR, DEVICE = 0x1AF4, 0x1110
PCI_ID = f"{VENDOR:04x}:{DEVICE:04x}"
# Names of the two objects after the name of the installation.
RING, HANDSHAKE = "_ring", "_handshake"
# Lines of sysfs attribute `status` that say yes or no.
FLAGS = ("ready", "closing", "programs")
NUMBERS = (
    *("chunk", "epoch", "slots", "ring_size", "connections"),
    *("slots_busy", "slots_lingering", "opened", "aborted"),
)
# Command that a build by DKMS needs, and the Debian package that has it.
COMMANDS = {"dkms": "dkms", "make": "make", "gcc": "gcc", "pahole": "pahole"}
# The certificate of the key that DKMS makes for itself.
DKMS_CERTIFICATE = "/var/lib/dkms/mok.pub"
# By which mokutil says that the kernel knows a certificate.
TRUSTED = ("is already enrolled", "is already in db", "is already in the built-in trusted keyring")
ROLE = "Apply the role colocated.tcp_sm.guest."


@dataclasses.dataclass(frozen=True)
class Device:
    """An IVSHMEM device. `size` is of its memory in bytes, `log` what the module last said of it.

    `status` has the names of NUMBERS and FLAGS; None where the module does not drive the device.
    """

    address: str
    driver: str = ""
    size: int = 0
    region: str = ""
    provider: str = ""
    status: Mapping[str, Any] | None = None
    log: str = ""


@dataclasses.dataclass(frozen=True)
class Module:
    """The kernel module as it runs and as it is installed for this kernel.

    `srcversion` is the kernel's digest of the source, `on_disk` that of the installed file; empty
    where there is none. `typed`: its types are there for BPF programs.
    """

    loaded: bool = False
    version: str = ""
    srcversion: str = ""
    on_disk: str = ""
    typed: bool = False
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dkms_versions: tuple[str, ...] = ()
    dkms_installed: str = ""

    @property
    def outdated(self) -> bool:
        """Does another build run than the one that is installed?"""
        return bool(self.loaded and self.on_disk and self.on_disk != self.srcversion)


@dataclasses.dataclass(frozen=True)
class Signing:
    """`required`: the kernel takes signed modules only. Where it does, `answer` is what mokutil
    says of the `certificate` of the key that signs them: None where mokutil is missing, empty
    where the certificate is."""

    required: bool = False
    certificate: str = DKMS_CERTIFICATE
    answer: str | None = ""

    @property
    def trusted(self) -> bool:
        """Does the kernel know the certificate?"""
        return any(words in (self.answer or "") for words in TRUSTED)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found in a machine.

    `objects` has the states of the objects RING and HANDSHAKE by these names, `mode` the number
    in the latter's configuration.
    """

    release: str
    btf: bool = True
    headers: bool = False
    headers_typed: bool = False
    commands: frozenset[str] = frozenset()
    signing: Signing = Signing()
    module: Module = Module()
    devices: tuple[Device, ...] = ()
    objects: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mode: int | None = None


def parse_status(text: str) -> dict[str, Any]:
    """The lines "name value" of a device: numbers, and booleans for FLAGS. Unknown names are
    left out; ValueError where one is missing or no number."""
    found = dict(line.split(None, 1) for line in text.splitlines() if len(line.split()) == 2)
    missing = [name for name in (*NUMBERS, *FLAGS) if name not in found]
    if missing:
        raise ValueError(f"the status has no {', '.join(missing)}")
    numbers = {name: int(found[name]) for name in (*NUMBERS, *FLAGS)}
    return {name: bool(value) if name in FLAGS else value for name, value in numbers.items()}


def describe(facts: Facts) -> dict[str, Any]:
    """The return value of module ivshmem_guest."""
    missing = _gather(_REQUIRED, facts)
    return {
        "kernel": facts.release,
        "works": not missing,
        "missing": missing,
        "limits": _gather(_WANTED, facts),
        "build": _gather(_TO_BUILD, facts),
        "module": _module_view(facts.module),
        "devices": [_device_view(one) for one in facts.devices],
        "programs": {
            "ring": facts.objects.get(RING, "absent"),
            "handshake": facts.objects.get(HANDSHAKE, "absent"),
            "mode": _mode_name(facts.mode),
        },
    }


def _gather(checks: tuple[Check, ...], facts: Facts) -> list[dict[str, str]]:
    return [dataclasses.asdict(found) for check in checks for found in check(facts)]


def _module_view(module: Module) -> dict[str, Any]:
    return {
        "loaded": module.loaded,
        "version": module.version or None,
        "srcversion": module.srcversion or None,
        "outdated": module.outdated,
        "parameters": dict(module.parameters),
        "dkms_versions": list(module.dkms_versions),
        "dkms_installed": module.dkms_installed or None,
    }


def _device_view(device: Device) -> dict[str, Any]:
    status = device.status or dict.fromkeys((*NUMBERS, *FLAGS))
    return {
        "address": device.address,
        "driver": device.driver or None,
        "size": device.size,
        "region": device.region or None,
        "provider": device.provider or None,
        **{name: status[name] for name in (*NUMBERS, *FLAGS)},
    }


def _mode_name(mode: int | None) -> str | None:
    if mode is None:
        return None
    return Mode(mode).name.lower() if mode in list(Mode) else f"mode_{mode}"


def bound(facts: Facts) -> list[Device]:
    """The devices that the module drives."""
    return [one for one in facts.devices if one.status is not None]


# -- what must be there -----------------------------------------------------------------------


def _kernel(facts: Facts) -> Iterator[Finding]:
    found = kernel_version(facts.release)
    minimum = ".".join(map(str, MINIMUM))
    if found and found[:2] < MINIMUM:
        yield Finding(
            "kernel_version",
            f"Linux {facts.release} is older than {minimum}, the oldest that the module supports.",
            f"Install a kernel of at least {minimum} (Debian 13 has it; Debian 12: "
            "linux-image-amd64 from bookworm-backports) and restart.",
        )
    if not facts.btf:
        yield Finding(
            "btf",
            "The kernel has no type information in /sys/kernel/btf/vmlinux, and the programs are "
            "fitted to the kernel by it.",
            "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian, Ubuntu and "
            "Fedora are.",
        )


def _module(facts: Facts) -> Iterator[Finding]:
    if not facts.module.loaded:
        fix = f"Load it: modprobe {MODULE}." if facts.module.on_disk else ROLE
        yield Finding("module", f"The kernel module {MODULE} is not loaded.", fix)
    elif not facts.module.typed:
        installed = facts.module.dkms_installed or "VERSION"
        yield Finding(
            "module_btf",
            f"The kernel module {MODULE} has no type information (/sys/kernel/btf/{MODULE}), so "
            "no program can use it.",
            f"Its build takes them by pahole from /lib/modules/{facts.release}/build/vmlinux. Once "
            f"both are there: dkms remove {MODULE}/{installed} --all. {ROLE}",
        )


def _device(facts: Facts) -> Iterator[Finding]:
    if not facts.devices:
        yield Finding(
            "device",
            f"There is no IVSHMEM device (PCI {PCI_ID}): the machine is in no region.",
            "Attach one on the hypervisor with colocated.tcp_sm.ivshmem_domain.",
        )
    elif facts.module.loaded and not bound(facts):
        for one in facts.devices:
            said = f" It said: {one.log}." if one.log else ""
            driver = f"driver {one.driver} has it" if one.driver else "the module did not take it"
            yield Finding(
                "device_unused",
                f"The IVSHMEM device {one.address} is not used: {driver}.{said}",
                f"See dmesg. Once the cause is gone: echo {one.address} > "
                f"/sys/bus/pci/drivers/{MODULE}/bind.",
            )


def _kept_out(facts: Facts) -> bool:
    """Does the mode keep connections from rings?"""
    attached = facts.objects.get(HANDSHAKE) == "attached"
    return attached and facts.mode is not None and facts.mode != Mode.ON


def _draining(facts: Facts) -> Iterator[Finding]:
    if _kept_out(facts):
        return  # The mode drained them, and what helps against it accepts connections again.
    for one in bound(facts):
        if one.status and one.status["closing"]:
            yield Finding(
                "drained",
                f"Device {one.address} is drained: new connections are refused.",
                "Accept them again with colocated.tcp_sm.ivshmem_guest, state present.",
            )


def _ready(facts: Facts) -> Iterator[Finding]:
    for one in bound(facts):
        if one.status and not one.status["ready"]:
            yield Finding(
                "not_ready",
                f"Chunk {one.status['chunk']} is not used yet: a machine of the region still has "
                "connections to a former life of this one.",
                "Wait. If it stays so, look at the other machines of the region: one hangs, or "
                "was stopped without the agent's knowing.",
            )


def _handshake(facts: Facts) -> Iterator[Finding]:
    state = facts.objects.get(HANDSHAKE, "absent")
    if state != "attached":
        yield Finding(
            "handshake", f"The programs that offer the ring to connections are {state}.", ROLE
        )
    elif _kept_out(facts):
        yield Finding(
            "mode",
            f"The mode is {_mode_name(facts.mode)}, so no connection is offered the ring.",
            "Set guest_mode to on, and apply the role colocated.tcp_sm.guest.",
        )


# -- what is better to have -------------------------------------------------------------------


def _ring(facts: Facts) -> Iterator[Finding]:
    state = facts.objects.get(RING, "absent")
    if state != "attached":
        yield Finding(
            "ring",
            f"The programs of the data path are {state}; the module's own code stands in for them.",
            ROLE,
        )


def _outdated(facts: Facts) -> Iterator[Finding]:
    if facts.module.outdated:
        yield Finding(
            "outdated",
            f"Another build of the module {MODULE} is loaded than the one that is installed.",
            f"{ROLE} It drains, and loads the one that is installed.",
        )


# -- what DKMS needs to build the module ------------------------------------------------------


def _headers(facts: Facts) -> Iterator[Finding]:
    if not facts.headers:
        yield Finding(
            "headers",
            f"The headers of the running kernel are not in /lib/modules/{facts.release}/build.",
            f"Install them (Debian, Ubuntu: linux-headers-{facts.release}). If the package is gone "
            "because there is a newer kernel, restart into that one first.",
        )
    elif not facts.headers_typed:
        yield Finding(
            "headers_btf",
            f"/lib/modules/{facts.release}/build has no vmlinux, from which the module's build "
            "takes the kernel's types.",
            f"Make it: ln -s /sys/kernel/btf/vmlinux /lib/modules/{facts.release}/build/vmlinux.",
        )


def _commands(facts: Facts) -> Iterator[Finding]:
    for command, package in COMMANDS.items():
        if command not in facts.commands:
            yield Finding(
                command,
                f"The command {command} is missing, which building the kernel module needs.",
                f"Install it (Debian, Ubuntu: package {package}).",
            )


def _secure_boot(facts: Facts) -> Iterator[Finding]:
    signing = facts.signing
    if signing.required and not signing.trusted:
        why, fix = _unknown_key(signing)
        yield Finding(
            "secure_boot", f"The kernel takes signed modules only (Secure Boot is on), {why}", fix
        )


def _unknown_key(signing: Signing) -> tuple[str, str]:
    """How the certificate stands with the firmware, and what to do."""
    answer = signing.answer
    if answer is None:
        return (
            f"and without the command mokutil nobody can tell whether {signing.certificate} is "
            "enrolled in the machine's firmware.",
            "Install it (Debian, Ubuntu: package mokutil).",
        )
    if "is already in the enrollment request" in answer:
        return (
            f"and {signing.certificate} is not enrolled yet.",
            "Restart the machine, and confirm the request at its console.",
        )
    said = f" mokutil says: {'; '.join(answer.splitlines())}." if answer else ""
    own = " (dkms generate_mok makes it)" if signing.certificate == DKMS_CERTIFICATE else ""
    return (
        "and the machine's firmware does not know the key that DKMS signs with, by its "
        f"certificate {signing.certificate}.{said}",
        f"Either enroll that key: mokutil --import {signing.certificate}{own}, restart, and "
        "confirm at the console. Or set guest_signing_key and guest_signing_cert to a key whose "
        "certificate is enrolled.",
    )


Check = Callable[[Facts], Iterator[Finding]]
_REQUIRED: tuple[Check, ...] = (_kernel, _module, _device, _draining, _ready, _handshake)
_WANTED: tuple[Check, ...] = (_ring, _outdated)
_TO_BUILD: tuple[Check, ...] = (_kernel, _headers, _commands, _secure_boot)
