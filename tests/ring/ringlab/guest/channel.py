# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's side of the ring channel: module, device, BPF objects, maps.

Through libbpf and sysfs alone, independent of the collection's modules.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

HOME = "/run/ring"
DRIVER = "/sys/bus/pci/drivers/tcp_sm"
CGROUP = "/sys/fs/cgroup"
IVSHMEM = "0x1af4", "0x1110"
BPF, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, LINK_CREATE, ITER_CREATE = 321, 1, 2, 3, 28, 33
SOCK_OPS, TRACE_ITER = 3, 28


class Libbpf:
    """The few functions that loading takes. Objects live until they are closed."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        for name in (
            "bpf_object__open", "bpf_map__attach_struct_ops", "bpf_object__find_map_by_name",
            "bpf_object__find_program_by_name", "bpf_program__attach_cgroup", "bpf_link__destroy",
        ):  # fmt: skip
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.bpf_object__open.argtypes = [ctypes.c_char_p]
        self.lib.bpf_object__load.argtypes = [ctypes.c_void_p]
        self.lib.bpf_object__close.argtypes = [ctypes.c_void_p]
        self.lib.bpf_map__attach_struct_ops.argtypes = [ctypes.c_void_p]
        self.lib.bpf_link__destroy.argtypes = [ctypes.c_void_p]
        self.lib.bpf_map__fd.argtypes = [ctypes.c_void_p]
        self.lib.bpf_program__fd.argtypes = [ctypes.c_void_p]
        self.lib.bpf_program__attach_cgroup.argtypes = [ctypes.c_void_p, ctypes.c_int]
        for name in ("bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
            getattr(self.lib, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]

    def check(self, value: Any, what: str) -> int:
        """The value, or an OSError."""
        if not value or (isinstance(value, int) and -4096 < value < 0):
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
        return int(value)

    def open(self, path: str) -> int:
        """An object, loaded."""
        handle = self.check(self.lib.bpf_object__open(path.encode()), f"open {path}")
        if self.lib.bpf_object__load(handle):
            raise OSError(ctypes.get_errno(), f"load {path}")
        return handle

    def map(self, handle: int, name: str) -> int:
        return self.check(self.lib.bpf_object__find_map_by_name(handle, name.encode()), name)

    def program(self, handle: int, name: str) -> int:
        return self.check(self.lib.bpf_object__find_program_by_name(handle, name.encode()), name)


def bpf(command: int, attr: bytes, what: str) -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 64))
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(BPF, command, buffer, len(buffer)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


class Loaded:
    """Both objects of the channel, loaded and attached as the tests want them."""

    def __init__(self) -> None:
        self.libbpf: Libbpf | None = None
        self.handshake = self.ring = 0
        self.sockops = self.data = 0
        self.iterator = -1

    def _map_fd(self, name: str) -> int:
        assert self.libbpf
        return int(self.libbpf.lib.bpf_map__fd(self.libbpf.map(self.handshake, name)))

    def load(self) -> None:
        """Load and attach all."""
        self.libbpf = self.libbpf or Libbpf()
        self.attach_ring()
        self.handshake = self.libbpf.open(f"{HOME}/handshake.bpf.o")
        self.attach_handshake()
        program = self.libbpf.program(self.handshake, "tcp_sm_dump")
        info = ctypes.create_string_buffer(struct.pack("I", self._map_fd("tcp_sm_ring_socks")), 16)
        number = self.libbpf.lib.bpf_program__fd(program)
        attr = struct.pack("IIIIQI", number, 0, TRACE_ITER, 0, ctypes.addressof(info), 16)
        self.iterator = bpf(LINK_CREATE, attr, "iterator")

    def attach_handshake(self) -> None:
        assert self.libbpf
        group = os.open(CGROUP, os.O_RDONLY | os.O_DIRECTORY)
        program = self.libbpf.program(self.handshake, "tcp_sm_handshake")
        link = self.libbpf.lib.bpf_program__attach_cgroup(program, group)
        self.sockops = self.libbpf.check(link, "attach tcp_sm_handshake")
        os.close(group)

    def detach_handshake(self) -> None:
        """No new connection is asked about."""
        assert self.libbpf
        if self.sockops:
            self.libbpf.lib.bpf_link__destroy(self.sockops)
        self.sockops = 0

    def attach_ring(self) -> None:
        """The data path by programs."""
        assert self.libbpf
        if self.data:
            return
        self.ring = self.libbpf.open(f"{HOME}/ring.bpf.o")
        item = self.libbpf.map(self.ring, "tcp_sm_ring")
        link = self.libbpf.lib.bpf_map__attach_struct_ops(item)
        self.data = self.libbpf.check(link, "attach tcp_sm_ring")

    def detach_ring(self) -> None:
        """The data path in C."""
        assert self.libbpf
        if self.data:
            self.libbpf.lib.bpf_link__destroy(self.data)
            self.libbpf.lib.bpf_object__close(self.ring)
        self.data = self.ring = 0

    def unload(self) -> None:
        """Drop everything, so that the module can go."""
        if not self.libbpf:
            return
        self.detach_handshake()
        if self.iterator >= 0:
            os.close(self.iterator)
        self.iterator = -1
        if self.handshake:
            self.libbpf.lib.bpf_object__close(self.handshake)
        self.handshake = 0
        self.detach_ring()

    def records(self) -> bytes:
        """struct tcp_sm_record of every socket that was asked about; none without programs."""
        if self.iterator < 0:
            return b""
        fd = bpf(ITER_CREATE, struct.pack("II", self.iterator, 0), "read iterator")
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def element(self, command: int, name: str, key: bytes, value: bytes | int) -> bytes:
        """One lookup (value: its size), update or deletion."""
        stored = ctypes.create_string_buffer(key, len(key))
        size = value if isinstance(value, int) else len(value)
        held = ctypes.create_string_buffer(max(size, 1))
        if isinstance(value, bytes):
            held.raw = value
        addresses = ctypes.addressof(stored), ctypes.addressof(held)
        bpf(command, struct.pack("IIQQQ", self._map_fd(name), 0, *addresses, 0), f"map {name}")
        return held.raw[:size]


LOADED = Loaded()


def load_programs() -> None:
    LOADED.load()


def unload_programs() -> None:
    LOADED.unload()


def use_programs(wanted: bool) -> bool:
    """Data path by BPF programs, or in C; what it was before."""
    before = bool(LOADED.data)
    if wanted:
        LOADED.attach_ring()
    else:
        LOADED.detach_ring()
    return before


def attach_handshake(wanted: bool) -> None:
    if wanted:
        LOADED.attach_handshake()
    else:
        LOADED.detach_handshake()


def records() -> bytes:
    return LOADED.records()


def stats(size: int) -> list[bytes]:
    """The value of `tcp_sm_stats` of each CPU."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    cpus = int(text.split(",")[-1].split("-")[-1]) + 1
    raw = LOADED.element(MAP_LOOKUP, "tcp_sm_stats", b"\0" * 4, size * cpus)
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def configure(value: bytes) -> None:
    LOADED.element(MAP_UPDATE, "tcp_sm_config", b"\0" * 4, value)


def port_rule(port: int, rule: int) -> None:
    """0: no rule, 1: include, 2: exclude."""
    LOADED.element(MAP_UPDATE, "tcp_sm_ports", struct.pack("I", port), struct.pack("I", rule))


def cidr_rule(address: str, prefix: int, rule: int) -> None:
    """As port_rule, for an IPv4 network."""
    mapped = bytes(10) + b"\xff\xff" + socket.inet_aton(address)
    key = struct.pack("I", prefix + 96) + mapped
    LOADED.element(MAP_UPDATE, "tcp_sm_cidrs", key, struct.pack("I", rule))


def insmod(*options: str) -> None:
    """Load the module; the devices that it finds are in bound()."""
    command = ["insmod", f"{HOME}/tcp_sm.ko", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"insmod: {done.stderr}")


def rmmod(seconds: float = 10) -> str:
    """Unload the module; "" or why it stays. The kernel frees BPF objects some time later."""
    deadline = time.monotonic() + seconds
    while has_module():
        done = subprocess.run(["rmmod", "tcp_sm"], capture_output=True, text=True, check=False)
        if done.returncode and time.monotonic() > deadline:
            return done.stderr
        time.sleep(0.05)
    return ""


def has_module() -> bool:
    return os.path.isdir("/sys/module/tcp_sm")


def devices() -> dict[str, int]:
    """IVSHMEM devices: PCI address -> bytes of memory."""
    found = {}
    for path in sorted(glob.glob("/sys/bus/pci/devices/*")):
        with contextlib.suppress(FileNotFoundError):  # it was unplugged
            ids = tuple(Path(path, name).read_text().strip() for name in ("vendor", "device"))
            if ids == IVSHMEM:
                found[os.path.basename(path)] = os.path.getsize(f"{path}/resource2")
    return found


def bound() -> list[str]:
    """PCI addresses that the module drives."""
    return [os.path.basename(path) for path in glob.glob(f"{DRIVER}/0*")]


def bind(address: str) -> None:
    Path(DRIVER, "bind").write_text(address)


def unbind(address: str) -> None:
    Path(DRIVER, "unbind").write_text(address)


def autoprobe(wanted: bool) -> None:
    Path("/sys/bus/pci/drivers_autoprobe").write_text(str(int(wanted)))


def attribute(name: str) -> Path:
    """A file of the one device that is driven."""
    return Path(glob.glob(f"{DRIVER}/0*/tcp_sm/{name}")[0])


def status() -> dict[str, int]:
    """What the module says of its region."""
    lines = attribute("status").read_text().splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def drain(wanted: bool) -> None:
    """OSError with ETIMEDOUT when not all left."""
    attribute("drain").write_text(str(int(wanted)))


def parameter(name: str, value: str) -> None:
    Path("/sys/module/tcp_sm/parameters", name).write_text(value)


def read(path: str) -> str:
    return Path(path).read_text()


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def run(*command: str, check: bool = True) -> str:
    """A program's output, both kinds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr
