# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathers the facts that ``_model/features.py`` judges.

Private to this collection. Asks the kernel itself: trivial programs and maps
are loaded by bpf(2) and dropped at once, and nothing is attached to anything
that exists. Works without libbpf, which a host may still have to install.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from .._model import vmlinux
from .._model.errors import TcpSmError
from .._model.features import PSOCK, TYPES, Facts
from . import mounts

VMLINUX = Path("/sys/kernel/btf/vmlinux")
LIBBPF = "libbpf.so.1"

# The number of bpf(2), which libc has no wrapper for.
SYSCALLS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "s390x": 351,
    "ppc64le": 361,
}

# Commands, types and attach types of include/uapi/linux/bpf.h.
MAP_CREATE, PROG_LOAD, LINK_CREATE = 0, 5, 28
SOCK_OPS, SK_MSG, TRACING = 13, 16, 26
CGROUP_SOCK_OPS, SK_MSG_VERDICT, TRACE_RAW_TP, TRACE_ITER = 3, 7, 23, 28
ATTR_SIZE = 128

# r0 = 1; exit. One passes for sockops, sk_msg (SK_PASS) and iterators (skip the rest).
ONE = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
ZERO = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)

# (map type, key size, value size, entries, flags); 1 is BPF_F_NO_PREALLOC.
MAPS = {
    "hash": (1, 4, 4, 1, 0),
    "percpu_array": (6, 4, 8, 1, 0),
    "lru_hash": (9, 4, 4, 1, 0),
    "lpm_trie": (11, 20, 4, 1, 1),
    "sockhash": (18, 12, 4, 1, 0),
    "ringbuf": (27, 0, 0, 4096, 0),
}


def gather(bpffs: str) -> Facts:
    """Facts of this machine; nothing that is missing raises."""
    types, btf_error = _types()
    probe = _Probe.available()
    return Facts(
        release=platform.release(),
        version=platform.version(),
        signature=_read("/proc/version_signature"),
        types=types,
        btf_error=btf_error,
        cgroup2=_cgroup2(),
        bpffs=bpffs,
        bpffs_mounted=_is_bpffs(bpffs),
        jit=_jit(),
        capabilities=_capabilities(),
        libbpf_error=_libbpf_error(),
        lockdown=parse_lockdown(_read("/sys/kernel/security/lockdown")),
        programs=probe.programs(types or {}) if probe else {},
        maps=probe.maps() if probe else {},
        link=probe.sockmap_link() if probe else None,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _types() -> tuple[dict[tuple[int, str], vmlinux.Found] | None, str]:
    """What is known of the wanted types, or why the kernel's BTF cannot be read."""
    try:
        return vmlinux.find_types(VMLINUX.read_bytes(), [*TYPES, PSOCK]), ""
    except OSError as error:
        return None, os.strerror(error.errno or 0)
    except vmlinux.BtfError as error:
        return None, str(error)


def _cgroup2() -> str | None:
    try:
        return mounts.cgroup2_root()
    except TcpSmError:
        return None


def _is_bpffs(path: str) -> bool:
    return os.path.isdir(path) and mounts.on_bpffs(path)


def _jit() -> int | None:
    """None where unprivileged readers are refused, or the kernel cannot but compile."""
    text = _read("/proc/sys/net/core/bpf_jit_enable")
    return int(text) if text.isdigit() else None


def _capabilities() -> int | None:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return None


def _libbpf_error() -> str:
    try:
        ctypes.CDLL(LIBBPF)
    except OSError as error:
        return str(error)
    return ""


def parse_lockdown(text: str) -> str:
    """The mode in brackets of ``none [integrity] confidentiality``; ``none`` for no text."""
    return text.partition("[")[2].partition("]")[0] or "none"


class _Probe:
    """Asks bpf(2) for trivial objects and says what it answered."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long

    @classmethod
    def available(cls) -> _Probe | None:
        """None on a machine whose number of bpf(2) is not known here."""
        number = SYSCALLS.get(platform.machine())
        return cls(number) if number else None

    def programs(self, types: dict[tuple[int, str], vmlinux.Found]) -> dict[str, str]:
        """The kernel's objection to each type of program the channel uses, or nothing."""
        result = {
            "sock_ops": self._answer(lambda: self._program(SOCK_OPS, CGROUP_SOCK_OPS, ONE)),
            "sk_msg": self._answer(lambda: self._program(SK_MSG, SK_MSG_VERDICT, ONE)),
        }
        targets = (
            ("tp_btf", TRACE_RAW_TP, (vmlinux.TYPEDEF, "btf_trace_sock_recv_length")),
            ("iter", TRACE_ITER, (vmlinux.FUNC, "bpf_iter_bpf_sk_storage_map")),
        )
        for name, attach_type, key in targets:
            # A target that is missing is reported as such, not as a refused program.
            if key in types:
                result[name] = self._traces(attach_type, types[key].type_id)
        return result

    def _traces(self, attach_type: int, target: int) -> str:
        return self._answer(lambda: self._program(TRACING, attach_type, ZERO, target))

    def maps(self) -> dict[str, str]:
        """The kernel's objection to each type of map, or nothing."""
        return {
            name: self._answer(lambda shape=shape: self._map(*shape))  # type: ignore[misc]
            for name, shape in MAPS.items()
        }

    def sockmap_link(self) -> str | None:
        """Why a verdict cannot be linked to a sockhash; empty where it can, None if unknown."""
        with contextlib.ExitStack() as stack:
            try:
                target = stack.enter_context(self._fd(self._map(*MAPS["sockhash"])))
                verdict = self._program(SK_MSG, SK_MSG_VERDICT, ONE)
            except OSError:
                return None
            attr = struct.pack(
                "=IIII", stack.enter_context(self._fd(verdict)), target, SK_MSG_VERDICT, 0
            )
            return self._answer(lambda: self._call(LINK_CREATE, attr))

    def _answer(self, make: Callable[[], int]) -> str:
        """Make an object and drop it; the error's text if the kernel refuses."""
        try:
            os.close(make())
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            return f"{os.strerror(error.errno or 0)} ({name})"
        return ""

    @staticmethod
    @contextlib.contextmanager
    def _fd(number: int) -> Iterator[int]:
        try:
            yield number
        finally:
            os.close(number)

    def _program(self, kind: int, attach_type: int, code: bytes, target: int = 0) -> int:
        """Load a program; the offsets are those of ``union bpf_attr``."""
        code_buffer = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        attr = bytearray(ATTR_SIZE)
        addresses = (ctypes.addressof(code_buffer), ctypes.addressof(licence))
        struct.pack_into("=IIQQ", attr, 0, kind, len(code) // 8, *addresses)
        struct.pack_into("=I", attr, 68, attach_type)
        struct.pack_into("=I", attr, 108, target)
        return self._call(PROG_LOAD, bytes(attr))

    def _map(self, kind: int, key: int, value: int, entries: int, flags: int) -> int:
        return self._call(MAP_CREATE, struct.pack("=5I", kind, key, value, entries, flags))

    def _call(self, command: int, attr: bytes) -> int:
        """bpf(2) with ``attr``, filled up with zeros; a descriptor or OSError."""
        buffer = ctypes.create_string_buffer(attr, ATTR_SIZE)
        result = self.libc.syscall(
            ctypes.c_long(self.number), ctypes.c_int(command), buffer, ctypes.c_uint(ATTR_SIZE)
        )
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(result)
