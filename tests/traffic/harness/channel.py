# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockmap channel as the tests drive it: load, attach, configure, read.

`Channel` owns one loaded object under a bpffs of its own, attached to one cgroup
of its own, so that tests neither see nor disturb what else runs on the machine.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import kernel

ABI = 1
PASS, ON, DRAIN = 0, 1, 2
TCP, SOCKMAP = 0, 1
INCLUDE, EXCLUDE = 1, 2
SO_COOKIE = 57

ROOT = Path(__file__).resolve().parents[3]
OBJECT = Path(os.environ.get("TCP_SM_OBJECT", ROOT / "build" / "bpf" / "sockmap.bpf.o"))


class Reason(enum.IntEnum):
    """enum tcp_sm_reason of bpf/tcp_sm.h."""

    NONE = 0
    NO_LOCAL_PEER = 1
    MODE_PASS = 2
    PORT = 3
    CIDR = 4
    LEARNING = 5
    BLOCKING = 6
    TFO = 7
    MPTCP = 8
    ULP = 9
    ZEROCOPY = 10
    TIMESTAMP = 11
    RCVLOWAT = 12
    INQ = 13
    PEEK_OFF = 14
    OOB = 15
    SPLICE = 16
    RECV_FLAGS = 17
    REPAIR = 18
    SHORT = 19
    STREAM = 20
    PEER_LEFT = 21
    NO_MEMORY = 22
    BUSY = 23
    STARTING = 24
    SENDFILE = 25


@dataclass(frozen=True)
class Flow:
    """struct tcp_sm_flow: one direction, named by its sender."""

    bytes: int
    msgs: int
    read_bytes: int
    passed_msgs: int


@dataclass(frozen=True)
class Record:
    """The fields of struct tcp_sm_record that tests look at."""

    cookie: int
    peer_cookie: int
    cgroup: int
    tx: Flow
    rx: Flow
    netns: int
    local_port: int
    remote_port: int
    side: int
    channel: int
    reason: Reason
    tcp_state: int


_RECORD = struct.Struct("=6Q4Q4QIIIHHH6B16s16s")


def parse_records(data: bytes) -> list[Record]:
    """Parse what the iterator wrote; ValueError when it is not whole records."""
    if len(data) % _RECORD.size:
        raise ValueError(f"{len(data)} bytes are no multiple of {_RECORD.size}")
    return [_record(*row) for row in _RECORD.iter_unpack(data)]


def _record(*f: int) -> Record:
    return Record(
        cookie=f[0], peer_cookie=f[1], cgroup=f[2], tx=Flow(*f[6:10]), rx=Flow(*f[10:14]),
        netns=f[16], local_port=f[18], remote_port=f[19], side=f[20], channel=f[21],
        reason=Reason(f[22]), tcp_state=f[23],
    )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """struct tcp_sm_config; the defaults suit tests of semantics."""

    mode: int = ON
    max_unread_bytes: int = 4 << 20
    max_unread_msgs: int = 16384
    max_burst: int = 1 << 30
    eager: int = 1
    ports_included: int = 0
    cidrs_included: int = 0
    events: int = 0

    def packed(self) -> bytes:
        return struct.pack(
            "10I", ABI, self.mode, self.max_unread_bytes, self.max_unread_msgs, self.max_burst,
            self.eager, self.ports_included, self.cidrs_included, self.events, 0,
        )  # fmt: skip


def load(path: Path, pins: Path) -> None:
    """Load an object's programs and maps and pin them under pins/progs and pins/maps."""
    command = ["bpftool", "prog", "loadall", str(path), str(pins / "progs")]
    done = subprocess.run(
        [*command, "pinmaps", str(pins / "maps")], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise RuntimeError(f"loading {path} failed:\n{done.stdout}{done.stderr}")


@dataclass
class Channel:
    """One loaded instance. `pins`: directory in a bpffs; `cgroup`: where sockops attaches."""

    pins: Path
    cgroup: Path
    object: Path = OBJECT
    _fds: dict[str, int] = field(default_factory=dict)

    def load(self) -> None:
        """Load the object; nothing is attached yet."""
        for name in ("progs", "maps", "links"):
            (self.pins / name).mkdir(parents=True, exist_ok=True)
        load(self.object, self.pins)
        self._attach_readers()

    def _program(self, name: str) -> int:
        return kernel.open_pin(self.pins / "progs" / name)

    def map(self, name: str) -> int:
        """Return a cached descriptor of a pinned map."""
        if name not in self._fds:
            self._fds[name] = kernel.open_pin(self.pins / "maps" / name)
        return self._fds[name]

    def _attach_readers(self) -> None:
        for name in ("tcp_sm_dump", "tcp_sm_evict"):
            self._link(name, kernel.TRACE_ITER, iter_map=self.map("tcp_sm_socks"))

    def _link(self, name: str, kind: int, target: int = 0, iter_map: int | None = None) -> None:
        program = self._program(name)
        try:
            fd = kernel.link(program, kind, target, iter_map)
        finally:
            os.close(program)
        kernel.pin(fd, self.pins / "links" / name)
        os.close(fd)

    def attach(self) -> None:
        """Attach verdict and receive probe first: a socket is never in the map without them."""
        self.attach_verdict()
        self.attach_recv()
        self.attach_sockops()

    def attach_recv(self) -> None:
        self._link("tcp_sm_recv", kernel.TRACE_RAW_TP)

    def attach_verdict(self) -> None:
        self._link("tcp_sm_verdict", kernel.SK_MSG_VERDICT, self.map("tcp_sm_sockhash"))

    def attach_sockops(self) -> None:
        fd = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._link("tcp_sm_sockops", kernel.CGROUP_SOCK_OPS, fd)
        finally:
            os.close(fd)

    def detach(self, *names: str) -> None:
        """Drop the named links (all programs that see traffic when none is named)."""
        for name in names or ("tcp_sm_sockops", "tcp_sm_recv", "tcp_sm_verdict"):
            (self.pins / "links" / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Detach and drop every pin; live connections keep what the kernel keeps for them."""
        self.detach()
        for directory in ("links", "progs", "maps"):
            for entry in sorted((self.pins / directory).glob("*")):
                entry.unlink()
            if (self.pins / directory).exists():
                (self.pins / directory).rmdir()
        self.close()

    def close(self) -> None:
        """Close the cached map descriptors."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def configure(self, config: Config) -> None:
        """Write the configuration; takes effect at once."""
        kernel.update(self.map("tcp_sm_config"), struct.pack("I", 0), config.packed())

    def rule_port(self, port: int, rule: int | None) -> None:
        """Set (or with None drop) the rule of a server port."""
        _set(self.map("tcp_sm_ports"), struct.pack("I", port), rule)

    def rule_cidr(self, cidr: str, rule: int | None) -> None:
        """Set (or with None drop) the rule of an address range."""
        net = ipaddress.ip_network(cidr)
        packed = net.network_address.packed
        if net.version == 4:
            packed = b"\0" * 10 + b"\xff\xff" + packed
        length = net.prefixlen + (96 if net.version == 4 else 0)
        _set(self.map("tcp_sm_cidrs"), struct.pack("I16s", length, packed), rule)

    def reset(self) -> None:
        """Drop every rule and write the default configuration."""
        for name, size in (("tcp_sm_ports", 4), ("tcp_sm_cidrs", 20)):
            for key in kernel.keys(self.map(name), size):
                kernel.delete(self.map(name), key)
        self.configure(Config())

    def records(self) -> dict[int, Record]:
        """Return what the iterator reports now, by socket cookie."""
        data = (self.pins / "links" / "tcp_sm_dump").read_bytes()
        return {record.cookie: record for record in parse_records(data)}

    def evict(self) -> list[Record]:
        """Take out what was asked to leave and is drained; return the ends still in."""
        return parse_records((self.pins / "links" / "tcp_sm_evict").read_bytes())

    def drained(self) -> bool:
        """Evict, and tell whether nothing is left."""
        return not self.evict()

    def entries(self, name: str) -> int:
        """Return how many entries a map keyed by connection has."""
        size = {"tcp_sm_sockhash": 12, "tcp_sm_conns": 8}[name]
        return len(kernel.keys(self.map(name), size))

    def stats(self) -> dict[str, int]:
        """Return the counters of `tcp_sm_stats`, summed over the CPUs."""
        names = ("opened_tcp", "opened_sockmap", "opened_ring", "closed", "bytes", "msgs",
                 "passed", "left", "lost_events")  # fmt: skip
        raw = kernel.lookup(
            self.map("tcp_sm_stats"), struct.pack("I", 0), 328 * kernel.possible_cpus()
        )
        rows = list(struct.iter_unpack("41Q", raw))
        return {name: sum(row[index] for row in rows) for index, name in enumerate(names)}


def _set(fd: int, key: bytes, rule: int | None) -> None:
    if rule is None:
        kernel.delete(fd, key)
    else:
        kernel.update(fd, key, struct.pack("I", rule))


def wait_for(what: str, condition: object, seconds: float = 10.0) -> None:
    """Poll `condition` (a callable) until it is true; TimeoutError names what did not happen."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.002)
