# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockmap channel as the tests drive it: load, attach, configure, read.

`Channel` owns one loaded object under a bpffs of its own, attached to one cgroup
of its own, so that tests neither see nor disturb what else runs on the machine.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import struct
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi, records
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.abi import Reason
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.records import Record

from . import SLOWNESS, kernel

__all__ = ["Reason", "Record"]

PASS, ON, DRAIN = abi.Mode.PASS, abi.Mode.ON, abi.Mode.DRAIN
TCP = abi.Channel.TCP
INCLUDE, EXCLUDE = abi.Rule.INCLUDE, abi.Rule.EXCLUDE
SO_COOKIE = 57
DETACHED = 10.0  # seconds that the kernel may take

ROOT = Path(__file__).resolve().parents[3]
OBJECT = Path(os.environ.get("TCP_SM_OBJECT", ROOT / "build" / "bpf" / "sockmap.bpf.o"))


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
        values = asdict(self) | {"abi": abi.ABI_VERSION, "reserved": 0}
        fields = abi.STRUCTS["tcp_sm_config"]
        return struct.pack(
            abi.struct_format("tcp_sm_config"), *(values[field.name] for field in fields)
        )


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
        deadline = time.monotonic() + DETACHED
        try:
            while True:
                try:
                    fd = kernel.link(program, kind, target, iter_map)
                    break
                except kernel.BpfError as error:
                    # A link whose pin is gone is let go of in the background.
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
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
        return {record.cookie: record for record in records.parse_records(data)}

    def evict(self) -> list[Record]:
        """Take out what was asked to leave and is drained; return the ends still in."""
        return records.parse_records((self.pins / "links" / "tcp_sm_evict").read_bytes())

    def drained(self) -> bool:
        """Evict, and tell whether nothing is left."""
        return not self.evict()

    def entries(self, name: str) -> int:
        """Return how many entries a map keyed by connection has."""
        size = {"tcp_sm_sockhash": 12, "tcp_sm_conns": 8}[name]
        return len(kernel.keys(self.map(name), size))

    def stats(self) -> dict[str, Any]:
        """Return the counters of `tcp_sm_stats`, summed over the CPUs."""
        size = abi.struct_size("tcp_sm_stats")
        raw = kernel.lookup(
            self.map("tcp_sm_stats"), struct.pack("I", 0), size * kernel.possible_cpus()
        )
        return records.sum_stats(raw[at : at + size] for at in range(0, len(raw), size))

    def redirected(self) -> int:
        """Return how many messages were redirected since the object was loaded."""
        return int(self.stats()["redirected_msgs"])


def _set(fd: int, key: bytes, rule: int | None) -> None:
    if rule is None:
        kernel.delete(fd, key)
    else:
        kernel.update(fd, key, struct.pack("I", rule))


def wait_for(what: str, condition: object, seconds: float = 10.0) -> None:
    """Poll `condition` (a callable) until it is true; TimeoutError names what did not happen."""
    assert callable(condition)
    deadline = time.monotonic() + seconds * SLOWNESS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.002)
