# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a domain's shared memory device to a wanted state: what module ivshmem_domain calls.

Everything that can be refused is looked at first. Then the persistent definition changes, which
can be taken back, and then the running domain; for removal the other way round, as the guest may
hold on to the device.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .._model.domain import (
    Address,
    Change,
    Definition,
    DomainError,
    DomainSpec,
    change_live,
    change_persistent,
    choose_addresses,
)
from .._model.errors import MissingError
from .._model.region import size_text

try:
    import libvirt
except ImportError:
    libvirt = None
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

POLL_SECONDS = 0.1
ASK_SECONDS = 5.0  # between requests to the guest to let go; a booting one hears none
SHM = "/dev/shm"


@dataclass
class DomainResult:
    """Outcome; `domain`, `live` and `persistent` have the shape of the module's return values."""

    changed: bool
    domain: dict[str, Any]
    live: dict[str, Any] | None
    persistent: dict[str, Any] | None
    diff: list[dict[str, str]]
    warnings: list[str] = field(default_factory=list)


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
    """A connection for writing. Raises DomainError."""
    # Errors are raised; libvirt would print them too.
    libvirt.registerErrorHandler(lambda *_: None, None)
    with explained(
        f"Cannot connect to libvirt at {uri}",
        "Is its daemon running, may this user write to its socket, and is uri right?",
    ):
        connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def explained(attempt: str, advice: str = "") -> Iterator[None]:
    """Turn libvirt's refusal into a message."""
    try:
        yield
    except libvirt.libvirtError as error:
        reason = (error.get_error_message() or str(error)).rstrip(".")
        raise DomainError(f"{attempt}: {reason}. {advice}".rstrip()) from error


def apply_domain(
    spec: DomainSpec,
    check: bool = False,
    connect: Callable[[str], contextlib.AbstractContextManager[Any]] = connected,
) -> DomainResult:
    """Bring the device to `spec`; with `check`, only say what would happen. Raises TcpSmError."""
    with connect(spec.uri) as connection:
        return Run(spec, find_domain(connection, spec.domain)).run(check)


def find_domain(connection: Any, name: str) -> Any:
    """By name or UUID."""
    with contextlib.suppress(libvirt.libvirtError):
        return connection.lookupByName(name)
    with contextlib.suppress(libvirt.libvirtError):
        return connection.lookupByUUIDString(name)
    with explained(f"Cannot list the domains of {connection.getURI()}"):
        known = sorted(one.name() for one in connection.listAllDomains())
    raise DomainError(
        f"Cannot find domain {name} at {connection.getURI()}: it is neither the name nor the UUID "
        f"of one of its domains ({', '.join(known) or 'there are none'}). Correct domain or uri."
    )


class Run:
    """One domain, one device, once."""

    def __init__(self, spec: DomainSpec, domain: Any) -> None:
        self.spec, self.domain = spec, domain
        self.name: str = domain.name()
        self.running = bool(domain.isActive())
        self.lasting = bool(domain.isPersistent())
        self.what = f"Cannot {'detach' if spec.state == 'absent' else 'attach'} region "
        self.what += f"{spec.device.name} {'from' if spec.state == 'absent' else 'to'} {self.name}"
        self.warnings: list[str] = []

    def run(self, check: bool) -> DomainResult:
        """See apply_domain."""
        live, persistent = self._wanted_scopes()
        changes = self._plan(live, persistent)
        attaching = self.spec.state == "present" and any(one.changed for one in changes.values())
        if attaching:
            self._require_memory(check, bool(changes.get("live") and changes["live"].changed))
        result = self._result(changes)
        if result.changed and not check:
            (self._remove if self.spec.state == "absent" else self._attach)(changes)
            result.live, result.persistent = self._devices()
        return result

    def _wanted_scopes(self) -> tuple[bool, bool]:
        """Whether to look at the running domain, and at its persistent definition."""
        scope = self.spec.scope
        # Where there is no such definition, there is nothing to take the device out of.
        needed = self.spec.state == "present"
        if needed and scope == "live" and not self.running:
            raise DomainError(f"{self.what}: it does not run. Start it, or use scope=persistent.")
        if needed and scope == "persistent" and not self.lasting:
            raise DomainError(
                f"{self.what}: it is transient, so it has no definition that outlives it. Define "
                "it, or use scope=live."
            )
        return self.running and scope != "persistent", self.lasting and scope != "live"

    def _xml(self, live: bool, secure: bool = False) -> str:
        """A definition; `secure` has passwords in it, which libvirt forgets otherwise."""
        flags = 0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE
        flags |= libvirt.VIR_DOMAIN_XML_SECURE if secure else 0
        with explained(f"Cannot read the definition of {self.name}"):
            return str(self.domain.XMLDesc(flags))

    def _plan(self, live: bool, persistent: bool) -> dict[str, Change]:
        """Changes by definition. `define` is `persistent` with the passwords in it."""
        texts = {"live": self._xml(True) if live else ""}
        texts["persistent"] = self._xml(False) if persistent else ""
        try:
            places = self._places(texts)
            changes = {}
            if live:
                changes["live"] = change_live(texts["live"], self.spec, places[0])
            if persistent:
                change = change_persistent(texts["persistent"], self.spec, places[1])
                changes["persistent"] = change
                if change.changed:
                    text = self._xml(False, secure=True)
                    changes["define"] = change_persistent(text, self.spec, places[1])
        except DomainError as error:
            raise DomainError(f"{self.what}: {error}. Nothing was changed.") from error
        return changes

    def _places(self, texts: dict[str, str]) -> tuple[Address, Address]:
        """Where a new device goes, in the one and the other definition."""
        if self.spec.state == "absent":
            return None, None
        live, persistent = (Definition.parse(one) if one else None for one in texts.values())
        if live and live.shmem(self.spec.device.name):
            live = None
        return choose_addresses(live, persistent)

    def _require_memory(self, check: bool, live: bool) -> None:
        """The region's file or the server's socket, as far as this machine can tell."""
        device = self.spec.device
        if not self.spec.local:
            return
        try:
            if device.model == "plain":
                self._require_file(os.path.join(SHM, device.name), device.size)
            elif live and not os.path.exists(device.server):
                raise MissingError(
                    f"{self.what}: its server's socket {device.server} is not there. Start the "
                    "agent of the region first, or give the right path as server. Nothing was "
                    "changed."
                )
        except MissingError as error:
            if not check:
                raise
            self.warnings.append(f"Check mode took for granted what an earlier task makes: {error}")

    def _require_file(self, path: str, size: int) -> None:
        if not os.path.exists(path):
            raise MissingError(
                f"{self.what}: libvirt places the memory of a plain device in {path}, and there "
                "is no such file. Make the region there first, or QEMU makes one that is none. "
                "Nothing was changed."
            )
        if os.path.getsize(path) != size:
            raise DomainError(
                f"{self.what}: {path} has {size_text(os.path.getsize(path))} and size is "
                f"{size_text(size)}. Give the region's size. Nothing was changed."
            )

    def _result(self, changes: dict[str, Change]) -> DomainResult:
        shown = {key: one for key, one in changes.items() if key != "define"}
        devices = {
            key: _device(Definition.parse(one.after), self.spec.device.name)
            for key, one in shown.items()
        }
        note = changes.get("persistent")
        if note and self.running and self.spec.state == "present" and self.spec.chunk is not None:
            told = (Definition.parse(one).told for one in (note.after, self._xml(True)))
            if len(set(told)) == 2:
                self.warnings.append(
                    f"{self.name} learns its chunk {self.spec.chunk} from fw_cfg at its next "
                    "start; until then give it to the guest's module as a parameter."
                )
        return DomainResult(
            changed=any(one.changed for one in shown.values()),
            domain=self._describe(),
            live=devices.get("live"),
            persistent=devices.get("persistent"),
            diff=[
                {
                    "before_header": f"{self.name} ({key})",
                    "after_header": f"{self.name} ({key})",
                    "before": one.before + "\n",
                    "after": one.after + "\n",
                }
                for key, one in shown.items()
                if one.changed
            ],
            warnings=self.warnings,
        )

    def _describe(self) -> dict[str, Any]:
        machine = Definition.parse(self._xml(self.running)).machine
        return {
            "name": self.name,
            "uuid": self.domain.UUIDString(),
            "machine": machine,
            "running": self.running,
            "persistent": self.lasting,
        }

    def _devices(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """What is there now, of the definitions that were asked for."""
        live, persistent = self._wanted_scopes()
        name = self.spec.device.name
        return (
            _device(Definition.parse(self._xml(True)), name) if live else None,
            _device(Definition.parse(self._xml(False)), name) if persistent else None,
        )

    # What changes something.

    def _attach(self, changes: dict[str, Change]) -> None:
        old = self._xml(False, secure=True) if "define" in changes else ""
        if "define" in changes:
            self._define(changes["define"].after)
        live = changes.get("live")
        if live is None or not live.changed:
            return
        with contextlib.ExitStack() as undo:
            if old:
                undo.callback(self._define, old)
            if live.detach:
                self._unplug(live.detach)
                self._warn_of_qemu(live)
                undo.callback(self._plug, live.detach)
            self._plug(live.attach)
            undo.pop_all()

    def _remove(self, changes: dict[str, Change]) -> None:
        live = changes.get("live")
        if live and live.changed:
            self._unplug(live.detach)
            self._warn_of_qemu(live)
        if "define" in changes:
            self._define(changes["define"].after)

    def _warn_of_qemu(self, live: Change) -> None:
        """ivshmem_exit() of QEMU (7.2 and later) closes doorbells that its main loop still polls,
        unless interrupts bypass the loop, as with KVM."""
        before = Definition.parse(live.before)
        device = before.shmem(self.spec.device.name)
        if device and device.model == "doorbell" and before.kind != "kvm":
            self.warnings.append(
                f"{self.name} runs without KVM: after a doorbell was unplugged, QEMU keeps a CPU "
                "busy until one is plugged in again or the domain starts anew."
            )

    def _define(self, text: str) -> None:
        with explained(f"{self.what}: libvirt refuses the new definition"):
            self.domain.connect().defineXML(text)

    def _plug(self, text: str) -> None:
        with explained(
            f"{self.what} while it runs",
            "Everything was put back. If it takes no device now, use scope=persistent and start it "
            "anew; if QEMU cannot connect, the region's agent does not answer.",
        ):
            self.domain.attachDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def _unplug(self, text: str) -> None:
        """Ask the guest to let go of the device, and wait until it has."""
        deadline = time.monotonic() + self.spec.timeout
        asked = 0.0
        while self._plugged():
            now = time.monotonic()
            if now >= deadline:
                raise DomainError(
                    f"{self.what}: the guest did not let go of the device in "
                    f"{self.spec.timeout:g} seconds. Drain it first (its module must not be in "
                    "use), see that it has started, or raise timeout; it may still let go later. "
                    "Its persistent definition is as before."
                )
            if now - asked >= ASK_SECONDS:
                self._ask(text, first=not asked)
                asked = now
            time.sleep(POLL_SECONDS)

    def _ask(self, text: str, first: bool) -> None:
        try:
            self.domain.detachDeviceFlags(text, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            # Repeated requests meet one under way, or a device that just went.
            if first:
                with explained(f"{self.what} while it runs"):
                    raise error

    def _plugged(self) -> bool:
        definition = Definition.parse(self._xml(True))
        return definition.shmem(self.spec.device.name) is not None


def _device(definition: Definition, name: str) -> dict[str, Any] | None:
    """For RETURN."""
    device = definition.shmem(name)
    if device is None:
        return None
    address = definition.address(name)
    place = None
    if address and address.get("type") == "pci":
        numbers = [int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")]
        place = "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
    return {**device.describe(), "address": place, "told": definition.told or None}
