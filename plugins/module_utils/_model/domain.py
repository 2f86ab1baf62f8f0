# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain definitions of libvirt, as far as shared memory goes.

Private to this collection. A definition is XML text, and so is a changed one; what to plug or
unplug is XML text too. Nothing here knows libvirt's functions or touches the machine. The format:
https://libvirt.org/formatdomain.html#shared-memory-device
"""

from __future__ import annotations

import contextlib
import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from .errors import InputError, TcpSmError
from .region import CHUNKS_MAX, NAME, is_power_of_two, parse_size

# The file of QEMU's fw_cfg device in which a guest finds its chunk. No guest can write it.
FW_CFG_NAME = "opt/colocated.tcp_sm"
SHMEM_SIZE_MIN = 1 << 20  # libvirt takes whole MiB
VECTORS_MAX = 64  # of QEMU's device
UNITS = {"": 1, "b": 1, "bytes": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MODELS = ("doorbell", "plain")
HOTPLUG_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")
CONVENTIONAL_BRIDGES = ("pcie-to-pci-bridge", "dmi-to-pci-bridge", "pci-bridge")


class DomainError(TcpSmError):
    """A domain cannot be brought to the wanted state, or libvirt refused."""


@dataclass(frozen=True)
class Shmem:
    """An IVSHMEM device. `size` is in bytes, and 0 for a doorbell, whose server tells it."""

    name: str
    model: str
    server: str = ""
    vectors: int = 0
    size: int = 0
    role: str = "peer"

    @classmethod
    def parse(cls, element: ET.Element) -> Shmem:
        """From a `<shmem>` element."""
        model = element.find("model")
        server = element.find("server")
        msi = element.find("msi")
        return cls(
            name=element.get("name", ""),
            model=("" if model is None else model.get("type", "")).removeprefix("ivshmem-"),
            server="" if server is None else server.get("path", ""),
            vectors=0 if server is None else int("1" if msi is None else msi.get("vectors", "1")),
            size=_parse_shmem_size(element.find("size")),
            # What QEMU assumes: neither owns the memory as far as migration goes.
            role=element.get("role", "peer"),
        )

    def element(self, address: Mapping[str, str] | None = None) -> ET.Element:
        """A `<shmem>` element, at a PCI address where one is given."""
        top = ET.Element("shmem", name=self.name, role=self.role)
        ET.SubElement(top, "model", type=f"ivshmem-{self.model}")
        if self.model == "doorbell":
            ET.SubElement(top, "server", path=self.server)
            ET.SubElement(top, "msi", vectors=str(self.vectors), ioeventfd="on")
        else:
            size = ET.SubElement(top, "size", unit="M")
            size.text = str(self.size >> 20)
        if address:
            ET.SubElement(top, "address", dict(address))
        return top

    def describe(self) -> dict[str, Any]:
        """For RETURN."""
        return {
            "name": self.name,
            "model": self.model,
            "server": self.server or None,
            "vectors": self.vectors,
            "size": self.size,
            "role": self.role,
        }

    def differences(self, other: Shmem) -> str:
        """What differs, for people; empty for equal ones."""
        mine, theirs = self.describe(), other.describe()
        return ", ".join(
            f"{key} is {mine[key]} instead of {theirs[key]}"
            for key in mine
            if mine[key] != theirs[key]
        )


def _parse_shmem_size(element: ET.Element | None) -> int:
    if element is None or not (element.text or "").strip():
        return 0
    unit = element.get("unit", "b").lower()
    power = UNITS.get(unit) or UNITS.get(unit.removesuffix("ib")) or 1
    return int(element.text or 0) * power


@dataclass(frozen=True)
class DomainSpec:
    """What the module was asked for; `device` has only its name where the state is absent."""

    domain: str
    device: Shmem
    state: str = "present"
    scope: str = "both"
    chunk: int | None = None
    replace: bool = False
    timeout: float = 30.0
    uri: str = "qemu:///system"

    @property
    def local(self) -> bool:
        """Whether the domain runs on this machine, so that paths can be looked at."""
        rest = self.uri.partition("://")[2]
        return rest.startswith("/") or not rest

    @classmethod
    def parse(cls, params: Mapping[str, Any]) -> DomainSpec:
        """From the module's parameters. Raises InputError."""
        name, model = params["region"], params["model"]
        if not NAME.fullmatch(name):
            raise InputError(
                f"The region's name {name!r} cannot be right: it takes up to 63 letters, digits, "
                "dots, dashes and underscores, the first a letter or digit."
            )
        device = Shmem(name, model, role=params["role"])
        if params["state"] == "present" and model == "plain":
            device = replace(device, size=_plain_size(params["size"]))
        elif params["state"] == "present":
            device = replace(
                device,
                server=params["server"] or f"/run/tcp_sm/{name}.sock",
                vectors=_vectors(params["vectors"]),
            )
        return cls(
            domain=params["domain"],
            device=device,
            state=params["state"],
            scope=params["scope"],
            chunk=_chunk(params["chunk"], model),
            replace=params["replace"],
            timeout=params["timeout"],
            uri=params["uri"],
        )


def _plain_size(text: str | None) -> int:
    if text is None:
        raise InputError("model=plain needs size: give the region's, such as 256M.")
    size = parse_size(text)
    if size < SHMEM_SIZE_MIN or not is_power_of_two(size):
        raise InputError(
            f"size={text} cannot be right: QEMU's device takes a power of two from 1M up. Give "
            "the region's size."
        )
    return size


def _vectors(vectors: int) -> int:
    if not 1 <= vectors <= VECTORS_MAX:
        raise InputError(f"vectors={vectors} cannot be right: the device has 1 to {VECTORS_MAX}.")
    return vectors


def _chunk(chunk: int | None, model: str) -> int | None:
    if chunk is None:
        return None
    if not 0 <= chunk < CHUNKS_MAX:
        raise InputError(f"chunk={chunk} cannot be right: a region has 0 to {CHUNKS_MAX - 1}.")
    if model == "doorbell":
        raise InputError(
            "chunk is for model=plain: a doorbell's server tells its machine the chunk. Leave "
            "one of the two out."
        )
    return chunk


@dataclass
class Definition:
    """A domain's definition, live or persistent. Methods that change it do so in place."""

    root: ET.Element
    devices: ET.Element = field(init=False)

    def __post_init__(self) -> None:
        devices = self.root.find("devices")
        self.devices = ET.SubElement(self.root, "devices") if devices is None else devices

    @classmethod
    def parse(cls, text: str) -> Definition:
        """From libvirt's text."""
        for _event, (prefix, uri) in ET.iterparse(io.StringIO(text), ["start-ns"]):
            with contextlib.suppress(ValueError):
                # Otherwise it would be written back under another prefix.
                ET.register_namespace(prefix, uri)
        return cls(ET.fromstring(text))

    def text(self) -> str:
        """Back to text."""
        return ET.tostring(self.root, encoding="unicode")

    @property
    def kind(self) -> str:
        """The hypervisor, such as kvm, or qemu for one without KVM."""
        return self.root.get("type", "")

    @property
    def is_atomic(self) -> bool:
        """Whether its guest's atomic instructions are atomic for other machines, too. QEMU's
        emulator (TCG) translates those of a machine that never has a second CPU to plain ones."""
        cpus = self.root.findtext("vcpu", "1").strip()
        return self.kind != "qemu" or (cpus.isdigit() and int(cpus) > 1)

    @property
    def machine(self) -> str:
        """The machine type, such as pc-q35-7.2."""
        element = self.root.find("os/type")
        return "" if element is None else element.get("machine", "")

    def shmem(self, name: str) -> Shmem | None:
        """The device of that region."""
        element = self._shmem_element(name)
        return None if element is None else Shmem.parse(element)

    def address(self, name: str) -> dict[str, str] | None:
        """Where that device sits on the PCI bus; None where libvirt has not said."""
        element = self._shmem_element(name)
        address = None if element is None else element.find("address")
        return None if address is None else dict(address.attrib)

    def shmem_text(self, name: str) -> str:
        """That device alone, as libvirt needs it for unplugging; empty if there is none."""
        element = self._shmem_element(name)
        return "" if element is None else ET.tostring(element, encoding="unicode").strip()

    def put_shmem(self, device: Shmem, address: Mapping[str, str] | None) -> None:
        """Add the device, or put it in the place of the one with its name, which keeps its
        address."""
        old = self._shmem_element(device.name)
        if old is None:
            _append(self.devices, device.element(address))
            return
        new = device.element(self.address(device.name))
        position = list(self.devices).index(old)
        _indent(new, 2)
        new.tail = old.tail
        self.devices[position] = new

    def remove_shmem(self, name: str) -> None:
        """Take the device out, if it is there."""
        element = self._shmem_element(name)
        if element is not None:
            _remove(self.devices, element)

    def _shmem_element(self, name: str) -> ET.Element | None:
        return next((one for one in self.devices.findall("shmem") if one.get("name") == name), None)

    @property
    def told(self) -> str:
        """What the guest is told through fw_cfg at its next start; empty for nothing."""
        entry = self._entry()
        return "" if entry is None else (entry.text or "")

    def tell(self, text: str) -> None:
        """Tell the guest `text`; nothing when it is empty. Commas would end it."""
        entry = self._entry()
        if text and entry is not None:
            entry.text = text
            entry.attrib.pop("file", None)
        elif text:
            info = self._fw_cfg()
            if info is None:
                info = ET.Element("sysinfo", type="fwcfg")
                _append(self.root, info, before="devices")
            entry = ET.Element("entry", name=FW_CFG_NAME)
            entry.text = text
            _append(info, entry, depth=2)
        elif entry is not None:
            self._forget(entry)

    def _forget(self, entry: ET.Element) -> None:
        info = self._fw_cfg()
        if info is None:
            return
        _remove(info, entry)
        if not len(info):
            _remove(self.root, info)

    def _fw_cfg(self) -> ET.Element | None:
        return self.root.find("sysinfo[@type='fwcfg']")

    def _entry(self) -> ET.Element | None:
        return self.root.find(f"sysinfo[@type='fwcfg']/entry[@name='{FW_CFG_NAME}']")

    # The PCI bus.

    def _buses(self, models: tuple[str, ...]) -> list[int]:
        return sorted(
            int(one.get("index", "0"))
            for one in self.devices.findall("controller[@type='pci']")
            if one.get("model") in models
            and not any(target.get("hotplug") == "off" for target in one.findall("target"))
        )

    def _taken(self) -> set[int]:
        """Buses of PCIe ports that have a device already."""
        addresses = self.devices.iterfind("*/address[@type='pci']")
        return {int(one.get("bus", "0"), 0) for one in addresses}

    def free_ports(self) -> list[int]:
        """Buses of PCIe ports that are free, the highest first: libvirt takes the lowest for what
        it places itself."""
        taken = self._taken()
        return [bus for bus in reversed(self._buses(HOTPLUG_PORTS)) if bus not in taken]

    @property
    def is_pcie(self) -> bool:
        """Whether the machine's bus is PCI Express."""
        return bool(self._buses(("pcie-root",)))

    @property
    def has_conventional_bus(self) -> bool:
        """Whether there is a PCI bus on which libvirt finds a free slot by itself."""
        return bool(self._buses(("pci-root", *CONVENTIONAL_BRIDGES)))


def _indent(element: ET.Element, depth: int) -> None:
    ET.indent(element, "  ", depth)


def _append(parent: ET.Element, child: ET.Element, before: str = "", depth: int = -1) -> None:
    """Add as libvirt would print it, at the end or before the element `before`."""
    if depth < 0:
        depth = 1 if before else 2
    _indent(child, depth)
    position = len(parent)
    if before and (other := parent.find(before)) is not None:
        position = list(parent).index(other)
    if position:
        previous = parent[position - 1]
        child.tail = previous.tail
        previous.tail = "\n" + "  " * depth
    else:
        parent.text = "\n" + "  " * depth
        child.tail = "\n" + "  " * (depth - 1)
    parent.insert(position, child)


def _remove(parent: ET.Element, child: ET.Element) -> None:
    position = list(parent).index(child)
    if position and position == len(parent) - 1:
        parent[position - 1].tail = child.tail
    parent.remove(child)


def pci_address(bus: int) -> dict[str, str]:
    """The only slot behind a PCIe port."""
    return {
        "type": "pci",
        "domain": "0x0000",
        "bus": f"{bus:#04x}",
        "slot": "0x00",
        "function": "0x0",
    }


Address = Optional[Mapping[str, str]]  # noqa: UP045  # evaluated, by older Pythons too


def choose_addresses(
    live: Definition | None, persistent: Definition | None
) -> tuple[Address, Address]:
    """Where to put a new device in the one and the other definition, the same place if possible.
    None lets libvirt choose.

    libvirt takes IVSHMEM for a conventional PCI device and does not put it into a PCIe port by
    itself, although it works there and a PCIe machine has no other place to plug it into.
    Raises DomainError when a running machine has no place.
    """
    live_ports = live.free_ports() if live else []
    ports = persistent.free_ports() if persistent else []
    common = [bus for bus in live_ports if bus in ports]
    if live and not live_ports and not live.has_conventional_bus:
        raise DomainError(_no_place(live))
    first = common or live_ports
    second = common or ports
    return (
        pci_address(first[0]) if first else None,
        pci_address(second[0]) if second else None,
    )


def _no_place(live: Definition) -> str:
    if live.is_pcie:
        return (
            "none of its PCIe ports is free. Add <controller type='pci' model='pcie-root-port'/> "
            "to its definition and start it anew, or use scope=persistent and start it anew"
        )
    return (
        f"its machine type {live.machine} takes no PCI devices while it runs. Use "
        "scope=persistent and start it anew; if libvirt then refuses to start it, choose q35"
    )


def chunk_note(spec: DomainSpec) -> str:
    """What a guest with a plain device is told: role guest reads it."""
    return "" if spec.chunk is None else f"region={spec.device.name} chunk={spec.chunk}"


@dataclass(frozen=True)
class Change:
    """What is to be done to one definition. `before` and `after` are its text."""

    before: str
    after: str
    attach: str = ""
    detach: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything is to be done."""
        return self.before != self.after


def _refuse_plain_atomics(definition: Definition) -> None:
    if not definition.is_atomic:
        raise DomainError(
            "it runs without KVM and with at most one CPU. QEMU's emulator then turns atomic "
            "instructions into plain ones, and other machines' changes of shared memory get lost. "
            "Let it have a second CPU, which need not be in use: <vcpu current='1'>2</vcpu>"
        )


def change_live(text: str, spec: DomainSpec, address: Address) -> Change:
    """Plug or unplug. Raises DomainError where a device in use would have to be exchanged, or
    the machine cannot share memory."""
    definition = Definition.parse(text)
    before, name = definition.text(), spec.device.name
    present = definition.shmem(name)
    if spec.state == "absent":
        detach = definition.shmem_text(name)
        definition.remove_shmem(name)
        return Change(before, definition.text(), detach=detach)
    _refuse_plain_atomics(definition)
    if present == spec.device:
        return Change(before, before)
    detach = definition.shmem_text(name)
    if present and not spec.replace:
        raise DomainError(
            f"the running domain has a device for region {name} already, of which "
            f"{present.differences(spec.device)}. Drain the guest, then allow to unplug it and "
            "plug it in again by replace=true; or use scope=persistent and start it anew"
        )
    definition.put_shmem(spec.device, address)
    return Change(before, definition.text(), definition.shmem_text(name), detach)


def change_persistent(text: str, spec: DomainSpec, address: Address) -> Change:
    """The whole definition as it is to be from the next start on."""
    definition = Definition.parse(text)
    before, name = definition.text(), spec.device.name
    ours = f"region={name} "
    if spec.state == "absent":
        definition.remove_shmem(name)
        if definition.told.startswith(ours):
            definition.tell("")
    else:
        _refuse_plain_atomics(definition)
        if definition.shmem(name) != spec.device:
            definition.put_shmem(spec.device, address)
        note = chunk_note(spec)
        if definition.told and not definition.told.startswith(ours) and note:
            raise DomainError(
                f"its definition tells the guest of another region ({definition.told}) in fw_cfg "
                f"file {FW_CFG_NAME}, and a guest takes one. Remove the other device first"
            )
        if note or definition.told.startswith(ours):
            definition.tell(note)
    return Change(before, definition.text())
