# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two guests with one region between them, by QEMU alone: started, talked to, ended.

Each guest has three IVSHMEM devices: with a doorbell, by the agent; the same memory without
one; and another region. Whichever a test binds is the guest's. Console output is in
<guest>.console and is looked through for what a healthy kernel never says.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region import (
    HEAD_SIZE,
    SLOT_FLAGS,
    SLOT_SIZE,
    SLOTS_OFFSET,
    Chunk,
    member_offset,
    parse_region,
)

from . import build
from .guest import channel, lib
from .remote import GuestFailed, Port, Worker

ROOT = build.ROOT
REGION_SIZE, OTHER_SIZE = 256 << 20, 16 << 20
RING = 64 << 10
MEMORY = os.environ.get("TCP_SM_RING_MEMORY", "768")
CPUS = os.environ.get("TCP_SM_RING_CPUS", "1")
BOOT_SECONDS = 240.0
# Microseconds for spin_us, longer than anybody takes to answer.
LONG_SPIN = 10_000
TROUBLE = re.compile(
    r"BUG|WARNING|Oops|general protection|Kernel panic|KASAN|UBSAN|refcount_t|corruption"
    r"|INFO: task|suspicious RCU|sleeping function|stack-protector|irq \d+: nobody cared"
)
# The agreement of hosts that are overloaded, not of this module.
HARMLESS = re.compile(r"clocksource|hrtimer: interrupt took|soft lockup - CPU#\d stuck for 2[0-9]s")


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory with room for the regions: of its own, for /dev/shm is small at times."""
    with tempfile.TemporaryDirectory(prefix="tcp_sm_ring_", dir="/run") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tcp_sm_ring", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def agent(*arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the agent's command line."""
    out: Any = log.open("ab") if log else subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", "tcp_sm_agent", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "agent")},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


def cpu_model(image: build.Image) -> str:
    """What QEMU emulates quickly. Guests under TCG died now and then at cmpxchg16b, but
    newer kernels allocate BPF storage with it, and without it offer no connection."""
    version = tuple(int(part) for part in image.release.split(".")[:2])
    return "Nehalem" if version >= (6, 18) else "Nehalem,-cx16"


@dataclass
class Guest:
    """One virtual machine."""

    name: str
    number: int
    folder: Path
    pid: int = 0
    control: Port | None = None
    work: Port | None = None
    serial: int = 0
    seen: int = 0
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"10.9.0.{self.number}"

    @property
    def address6(self) -> str:
        return f"fd00:9::{self.number}"

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def command(
        self, image: build.Image, devices: list[str], cpus: str = CPUS, memory: str = MEMORY
    ) -> list[str]:
        """QEMU's command line. devices: besides disk, entropy and the two ports."""
        options = {
            "name": f"guest={self.name}",
            "machine": "q35",
            "accel": "tcg,thread=multi",
            "cpu": cpu_model(image),
            # QEMU's emulator makes atomics of machines with one CPU at most plain ones.
            "smp": f"{cpus},maxcpus={max(2, int(cpus))}",
            "m": memory,
            "display": "none",
            "serial": f"file:{self.path('console')}",
            "qmp": f"unix:{self.path('qmp')},server=on,wait=off",
            "kernel": str(image.kernel),
            "initrd": str(self.folder / "initrd"),
            "append": "console=ttyS0 loglevel=5 net.ifnames=0 mitigations=off norandmaps"
            " lsm=capability audit=0 cryptomgr.notests 8250.nr_uarts=1 no_timer_check panic=-1"
            f" ring={self.number}",
        }
        basic = [
            "-drive", f"if=none,id=disk,format=raw,readonly=on,file={image.disk}",
            "-device", "virtio-blk-pci,drive=disk",
            "-object", "rng-random,id=random,filename=/dev/urandom",
            "-device", "virtio-rng-pci,rng=random",
            "-device", "virtio-serial-pci",
        ]  # fmt: skip
        for port in ("control", "work"):
            basic += [
                "-chardev", f"socket,id={port},path={self.path(port)},server=on,wait=off",
                "-device", f"virtserialport,chardev={port},name={port}",
            ]  # fmt: skip
        flat = [part for name, value in options.items() for part in (f"-{name}", value)]
        return ["qemu-system-x86_64", "-nodefaults", *flat, *basic, *devices]

    def ring_devices(self, other: Guest, sock: Path) -> list[str]:
        """The network between the guests, and the three IVSHMEM devices."""
        return [
            "-netdev", f"dgram,id=net,local.type=unix,local.path={self.path('net')}"
            f",remote.type=unix,remote.path={other.path('net')}",
            "-device", f"virtio-net-pci,netdev=net,mac=52:54:00:09:00:0{self.number}",
            "-device", "pcie-root-port,id=port0,chassis=1,pref64-reserve=512M",
            "-chardev", f"socket,id=agent,path={sock}",
            "-device", "ivshmem-doorbell,vectors=1,chardev=agent,id=ring,bus=port0",
            "-object", f"memory-backend-file,id=same,share=on,size={REGION_SIZE}"
            f",mem-path={self.folder / 'region'}",
            "-device", "ivshmem-plain,memdev=same",
            "-object", f"memory-backend-file,id=other,share=on,size={OTHER_SIZE}"
            f",mem-path={self.folder / 'other'}",
            "-device", "ivshmem-plain,memdev=other",
        ]  # fmt: skip

    def start(self, image: build.Image, other: Guest, sock: Path) -> None:
        """Start QEMU as one of a pair; `connect` waits for the guest."""
        self.launch(self.command(image, self.ring_devices(other, sock)))

    def launch(self, command: list[str]) -> None:
        """Start QEMU."""
        for suffix in ("control", "work", "qmp", "net", "console"):
            self.path(suffix).unlink(missing_ok=True)
        with self.path("qemu").open("wb") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.pid = self._child.pid
        self.path("pid").write_text(str(self.pid))
        self.seen = 0

    def restart(self, files: dict[str, bytes]) -> None:
        """Start process 1 anew with other files."""
        assert self.control
        self.control.begin("restart", (files,), {})
        self.control.greet(0, BOOT_SECONDS)

    def connect(self, seconds: float = BOOT_SECONDS, greet: bool = True) -> None:
        """Wait until the guest answers."""
        try:
            self.control = Port(f"{self.name}/control", self.path("control"))
            self.work = Port(f"{self.name}/work", self.path("work"), -1)
            if greet:
                self.control.greet(0, seconds)
        except (TimeoutError, GuestFailed, ConnectionError) as error:
            raise AssertionError(f"{self.name} did not start: {error}\n{self.tail()}") from None

    def tail(self) -> str:
        """The ends of its console and of what QEMU said."""
        texts = [
            path.read_text(errors="replace")[-1500:]
            for path in (self.path("console"), self.path("qemu"))
            if path.exists()
        ]
        return "\n".join(texts)

    def run(self, function: Any, *args: Any) -> Any:
        """Call a function in process 1, which outlives scenarios."""
        assert self.control, f"{self.name} is not running"
        return self.control.call(function, args, {})

    def worker(self) -> Worker:
        """A fresh process for a scenario; the last one and all it started are killed."""
        assert self.work, f"{self.name} is not running"
        self.serial += 1
        self.run("spawn", self.serial)
        self.work.greet(self.serial)
        return Worker(self.work, self)

    def bells(self) -> int:
        """Interrupts that the device has sent so far, on all CPUs."""
        lines = self.run(channel.read, "/proc/interrupts").splitlines()
        numbers = [line.split()[1:] for line in lines if line.endswith("tcp_sm")]
        return sum(int(word) for line in numbers for word in itertools.takewhile(str.isdigit, line))

    def end_worker(self) -> None:
        self.run("end")

    def alive(self) -> bool:
        """Does QEMU run?"""
        if self._child:
            return self._child.poll() is None
        return bool(self.pid) and os.path.exists(f"/proc/{self.pid}")

    def kill(self) -> None:
        """kill -9 of QEMU."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
        self.gone()

    def reset(self) -> None:
        """The reset button; waits until the guest has booted again."""
        assert self.control
        self.qmp("system_reset")
        self.control.greet(0, BOOT_SECONDS)

    def gone(self) -> None:
        """QEMU ended: forget it."""
        if self._child:
            self._child.wait(20)
        while self.alive():
            time.sleep(0.01)
        for port in (self.control, self.work):
            if port:
                port.close()
        self.control = self.work = self._child = None
        self.pid = 0

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command of QEMU's machine protocol."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path("qmp")))
            sock.settimeout(10)
            stream = sock.makefile("rwb")
            for name, values in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": name, "arguments": values}).encode() + b"\n")
                stream.flush()
                reply: dict[str, Any] = {}
                while "return" not in reply and "error" not in reply:
                    reply = json.loads(stream.readline())
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {command}: {reply['error']}")
        return reply["return"]

    def trouble(self) -> list[str]:
        """What its kernel complained of since the last call, with what followed."""
        path = self.path("console")
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.seen)
            text = file.read()
        self.seen += len(text)
        lines = text.decode(errors="replace").splitlines()
        for at, line in enumerate(lines):
            if TROUBLE.search(line) and not HARMLESS.search(line):
                return lines[at : at + 60]
        return []


class Lab:
    """The region, its agent and both guests."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.version = folder, version
        self.image = build.find_image(version)
        self.sock = folder / "agent.sock"
        self.guests = (Guest("ring1", 1, folder), Guest("ring2", 2, folder))
        self.agent: subprocess.Popen[bytes] | None = None
        self.agent_pid = 0
        self.by_programs = True

    @property
    def region(self) -> Path:
        return self.folder / "region"

    def bells(self) -> int:
        """Of both guests."""
        return sum(guest.bells() for guest in self.guests)

    def prepare(self) -> None:
        """Region files, module, initial ram disk."""
        for path in (self.region, self.folder / "other"):
            path.unlink(missing_ok=True)
        # Sparse files in memory; what lies in the folder besides is small.
        for name, size in (("region", REGION_SIZE), ("other", OTHER_SIZE)):
            self._create(self.folder / name, size)
        build.make_initrd(self.image, build.build_module(self.image), self.folder / "initrd")

    def _create(self, path: Path, size: int) -> None:
        owners = [part for guest in self.guests for part in ("--owner", guest.name)]
        arguments = ["--path", str(path), "--size", str(size), "--ring-size", str(RING)]
        code = agent("create", *arguments, *owners, log=self.folder / "agent.log").wait(30)
        assert not code, (self.folder / "agent.log").read_text()

    def start_agent(self) -> None:
        """Serve the region."""
        arguments = ["--region", str(self.region), "--socket", str(self.sock)]
        self.agent = agent("run", *arguments, log=self.folder / "agent.log")
        self.agent_pid = self.agent.pid
        (self.folder / "agent.pid").write_text(str(self.agent_pid))
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.sock))
                return
            assert self.agent.poll() is None, (self.folder / "agent.log").read_text()
            assert time.monotonic() < deadline, "the agent does not listen"
            time.sleep(0.02)

    def kill_agent(self, number: int = signal.SIGKILL) -> None:
        """End the agent, and wait for that."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.agent_pid, number)
        if self.agent:
            self.agent.wait(20)
        while os.path.exists(f"/proc/{self.agent_pid}"):
            time.sleep(0.01)
        self.agent = None

    def start(self) -> None:
        """Everything up, module loaded, programs attached."""
        self.prepare()
        self.start_agent()
        self._start_guests()

    def _start_guests(self) -> None:
        a, b = self.guests
        a.start(self.image, b, self.sock)
        b.start(self.image, a, self.sock)
        for guest in self.guests:
            guest.connect()
            self.equip(guest)

    def renew(self) -> None:
        """Agent and guests started anew, on the same region."""
        self.stop()
        self.agent_pid = 0
        self.start_agent()
        self._start_guests()
        self.move_by(self.by_programs)
        self.ready()

    def move_by(self, programs: bool) -> None:
        """Who moves the bytes of rings: BPF programs, or the module's C."""
        self.by_programs = programs
        for guest in self.guests:
            guest.run(channel.use_programs, programs)

    def boot(self, guest: Guest) -> None:
        """Start one guest's QEMU anew, and equip it."""
        guest.start(self.image, next(one for one in self.guests if one is not guest), self.sock)
        guest.connect()
        self.equip(guest)

    def chunk(self, guest: Guest) -> Chunk:
        """A guest's entry of the region's table."""
        with self.region.open("rb") as file:
            head = file.read(HEAD_SIZE)
        return parse_region(head, str(self.region)).chunks[guest.number - 1]

    def attach(self) -> None:
        """Use guests that an earlier run left, with today's files."""
        self.agent_pid = int((self.folder / "agent.pid").read_text())
        files = build.guest_files(build.build_module(self.image))
        placed = {f"{channel.HOME}/{name}": data for name, data in files.items()}
        digest = hashlib.sha256(repr(sorted(placed.items())).encode()).hexdigest()
        same = (self.folder / "digest").exists() and (self.folder / "digest").read_text() == digest
        (self.folder / "digest").write_text(digest)
        for guest in self.guests:
            guest.pid = int(guest.path("pid").read_text())
            guest.seen = guest.path("console").stat().st_size
            guest.connect(10, greet=False)
            guest.run("end")
            if same:
                continue
            guest.run(channel.unload_programs)
            assert not guest.run(channel.rmmod)
            guest.restart(placed)
            self.equip(guest)

    def equip(self, guest: Guest, provider: str = "doorbell", *options: str) -> None:
        """Load module and programs in a guest; provider: doorbell, plain or other."""
        if not guest.run(channel.has_module):
            guest.run(channel.autoprobe, False)
            guest.run(channel.insmod, f"chunk={guest.number - 1}", *options)
        guest.run(channel.bind, self.device(guest, provider))
        guest.run(channel.load_programs)
        guest.run(channel.configure, CONFIG_ON)

    def ready(self, seconds: float = 10.0) -> None:
        """Wait until both guests offer."""
        lib.wait_for(
            "both guests are ready",
            lambda: all(guest.run(channel.status)["ready"] for guest in self.guests),
            seconds,
        )

    def left(self) -> dict[str, int]:
        """What both guests together have in use of their region; nothing: empty."""
        names = ("connections", "slots_busy", "slots_lingering")
        found = [guest.run(channel.status) for guest in self.guests]
        total = {name: sum(status[name] for status in found) for name in names}
        return {name: value for name, value in total.items() if value}

    def quiet(self, seconds: float = 10.0) -> None:
        """Wait until no connection is in the ring and no slot in use."""
        try:
            lib.wait_for("no connection, no slot", lambda: not self.left(), seconds)
        except TimeoutError:
            words = {guest.name: self.words(guest) for guest in self.guests}
            beats = [self.beat(guest) for guest in self.guests]
            time.sleep(1)
            beats += [self.beat(guest) for guest in self.guests]
            raise AssertionError(
                f"left behind: {self.left()}; words {words}; beats, a second apart: {beats}"
            ) from None

    def words(self, guest: Guest) -> dict[int, str]:
        """State words of the slots of a guest's chunk that are not free."""
        chunk = self.chunk(guest)
        with self.region.open("rb") as file:
            file.seek(chunk.offset + SLOTS_OFFSET)
            slots = file.read(chunk.slots * SLOT_SIZE)
        found = (struct.unpack_from("<Q", slots, at)[0] for at in range(0, len(slots), SLOT_SIZE))
        return {slot: hex(word) for slot, word in enumerate(found) if word & SLOT_FLAGS}

    def beat(self, guest: Guest) -> int:
        """What shows that a guest's module looks after its region."""
        with self.region.open("rb") as file:
            file.seek(self.chunk(guest).offset + member_offset("tcp_sm_chunk_header", "beat"))
            return int.from_bytes(file.read(4), "little")

    def device(self, guest: Guest, provider: str) -> str:
        """PCI address of one of a guest's devices."""
        found = guest.run(channel.devices)
        same = [address for address, size in found.items() if size == REGION_SIZE]
        other = [address for address, size in found.items() if size == OTHER_SIZE]
        # The one with a doorbell is behind a bridge, so on another bus.
        behind = [address for address in same if not address.startswith("0000:00:")]
        here = [address for address in same if address not in behind]
        return {"doorbell": behind, "plain": here, "other": other}[provider][0]

    def running(self) -> bool:
        """Is there a lab of an earlier run?"""
        try:
            pids = [self.folder / "agent.pid", *(guest.path("pid") for guest in self.guests)]
            return all(os.path.exists(f"/proc/{int(path.read_text())}") for path in pids)
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """End what runs."""
        for guest in self.guests:
            guest.kill()
        if self.agent_pid:
            self.kill_agent(signal.SIGTERM)


def packed_config(mode: int) -> bytes:
    """struct tcp_sm_config with that mode, everything else open."""
    return abi.ABI_VERSION.to_bytes(4, "little") + mode.to_bytes(4, "little") + bytes(32)


CONFIG_PASS, CONFIG_ON = packed_config(0), packed_config(1)

__all__ = ["CONFIG_ON", "CONFIG_PASS", "Guest", "Lab", "lib"]
