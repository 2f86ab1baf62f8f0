# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thin ctypes adapter to libbpf.so.1 (1.0 and newer), no policy.

Functions raise OSError with the kernel's errno; file descriptors are plain integers that the
caller closes. Layouts of the info structs: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._model.errors import MissingError

LIBRARY = "libbpf.so.1"
LOG_SIZE = 4 << 20
LINE_SIZE = 1 << 16
PRINT_WARN = 0
BPF_ANY = 0

MAP_TYPES = (
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
)
PROG_TYPES = (
    "unspec",
    "socket_filter",
    "kprobe",
    "sched_cls",
    "sched_act",
    "tracepoint",
    "xdp",
    "perf_event",
    "cgroup_skb",
    "cgroup_sock",
    "lwt_in",
    "lwt_out",
    "lwt_xmit",
    "sock_ops",
    "sk_skb",
    "cgroup_device",
    "sk_msg",
    "raw_tracepoint",
    "cgroup_sock_addr",
    "lwt_seg6local",
    "lirc_mode2",
    "sk_reuseport",
    "flow_dissector",
    "cgroup_sysctl",
    "raw_tracepoint_writable",
    "cgroup_sockopt",
    "tracing",
    "struct_ops",
    "ext",
    "lsm",
    "sk_lookup",
    "syscall",
    "netfilter",
)
# libbpf tries these by an fentry program, which some kernels forbid that allow the others.
UNPROBED = ("tracing", "ext", "lsm", "struct_ops")
LINK_TYPES = {1: "tracing", 2: "tracing", 3: "cgroup", 4: "iter", 9: "struct_ops", 14: "map"}
# Where bpf_link_info has the id of what a link is attached to; of struct_ops, of the map itself.
TARGETS = {"cgroup": ("=Q", 16), "map": ("=I", 16), "struct_ops": ("=I", 16), "iter": ("=I", 28)}
TRACE_ITER = 28
ATTACH_STRUCT_OPS = 44
# Attach types of programs that a sockmap or sockhash takes, by program type.
SOCKMAP_PROG_TYPES = ("sk_msg", "sk_skb")

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _OpenOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("unused", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_void_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    )


class _LinkOpts(ctypes.Structure):
    """bpf_link_create_opts; the tail holds the union of per-type options, all zero."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
        ("tail", ctypes.c_uint64 * 4),
    )


class _UpdateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("old_prog_fd", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class ProgInfo:
    """bpf_prog_info, in part."""

    id: int
    type: str
    tag: str
    name: str
    map_ids: tuple[int, ...]


@dataclass(frozen=True)
class MapInfo:
    """bpf_map_info, in part; BTF ids are zero where the map has none."""

    id: int
    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    key_type_id: int
    value_type_id: int


@dataclass(frozen=True)
class LinkInfo:
    """bpf_link_info, in part. `target_id`: cgroup id or map id, else zero."""

    id: int
    type: str
    prog_id: int
    target_id: int


def _checked(result: int, what: str) -> int:
    """libbpf 1.x returns -errno."""
    if result < 0:
        number = -result
        text = os.strerror(number) if number < 1000 else f"libbpf error {number}"
        raise OSError(number, text, what)
    return result


class Bpf:
    """The library, loaded once; MissingError where it is not installed."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL(LIBRARY, use_errno=True)
        except OSError as error:
            raise MissingError(
                f"Cannot load {LIBRARY}: {error}. Install libbpf 1.0 or newer "
                "(Debian, Ubuntu: package libbpf1; Fedora: libbpf)."
            ) from error
        self.messages: list[str] = []
        self._libc = ctypes.CDLL(None)
        self._callback = _PRINT(self._print)
        self._declare()
        self.lib.libbpf_set_print(self._callback)

    def _declare(self) -> None:
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name in (
            "bpf_object__open_mem",
            "bpf_object__next_program",
            "bpf_object__next_map",
            "bpf_object__btf",
            "btf__raw_data",
            "bpf_map__initial_value",
            "bpf_map__attach_struct_ops",
        ):
            getattr(self.lib, name).restype = pointer
        for name in ("bpf_program__name", "bpf_map__name"):
            getattr(self.lib, name).restype = text
        self.lib.bpf_object__open_mem.argtypes = [text, ctypes.c_size_t, pointer]
        for name in (
            "bpf_object__load",
            "bpf_object__close",
            "bpf_program__name",
            "bpf_program__fd",
            "bpf_program__type",
            "bpf_map__name",
            "bpf_map__fd",
            "bpf_program__expected_attach_type",
            "bpf_map__type",
            "bpf_map__key_size",
            "bpf_map__value_size",
            "bpf_map__max_entries",
            "bpf_map__map_flags",
            "bpf_map__btf_key_type_id",
            "bpf_map__btf_value_type_id",
            "bpf_object__btf",
            "bpf_map__attach_struct_ops",
            "bpf_link__fd",
            "bpf_link__disconnect",
            "bpf_link__destroy",
        ):
            getattr(self.lib, name).argtypes = [pointer]
        for name in (
            "bpf_object__next_program",
            "bpf_object__next_map",
            "btf__raw_data",
            "bpf_map__initial_value",
        ):
            getattr(self.lib, name).argtypes = [pointer, pointer]
        self.lib.bpf_map__set_pin_path.argtypes = [pointer, text]
        self.lib.bpf_map__reuse_fd.argtypes = [pointer, ctypes.c_int]
        self.lib.bpf_map__set_max_entries.argtypes = [pointer, ctypes.c_uint32]

    def _print(self, level: int, form: bytes, args: int) -> int:
        """Gather warnings. The va_list is passed on as the pointer that it is, or decays to."""
        if level != PRINT_WARN:
            return 0
        buffer = ctypes.create_string_buffer(LINE_SIZE)
        written = self._libc.vsnprintf(
            buffer, ctypes.c_size_t(LINE_SIZE), form, ctypes.c_void_p(args)
        )
        self.messages.append(buffer.value.decode("utf-8", "replace").rstrip("\n"))
        return int(written)

    @property
    def version(self) -> tuple[int, int]:
        """The library's."""
        return int(self.lib.libbpf_major_version()), int(self.lib.libbpf_minor_version())

    # -- pins and infos ----------------------------------------------------------------------

    def obj_get(self, path: str) -> int:
        """A descriptor of a pinned program, map or link."""
        return _checked(self.lib.bpf_obj_get(os.fsencode(path)), path)

    def obj_pin(self, fd: int, path: str) -> None:
        """Pin; the folder must exist."""
        _checked(self.lib.bpf_obj_pin(fd, os.fsencode(path)), path)

    def kind(self, fd: int) -> str:
        """prog, map or link; empty for anything else."""
        name = os.readlink(f"/proc/self/fd/{fd}")
        found = re.fullmatch(r"anon_inode:\[?bpf[-_](prog|map|link)\]?", name)
        return found[1] if found else ""

    def _info(self, fd: int, data: bytearray) -> bytes:
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        length = ctypes.c_uint32(len(data))
        _checked(self.lib.bpf_obj_get_info_by_fd(fd, buffer, ctypes.byref(length)), "info")
        return bytes(data)

    def prog_info(self, fd: int) -> ProgInfo:
        """About a program."""
        (count,) = struct.unpack_from("=I", self._info(fd, bytearray(232)), 52)
        ids = (ctypes.c_uint32 * max(count, 1))()
        data = bytearray(232)
        struct.pack_into("=IQ", data, 52, count, ctypes.addressof(ids))
        raw = self._info(fd, data)
        kind, number = struct.unpack_from("=II", raw)
        return ProgInfo(
            number,
            _name_of(PROG_TYPES, kind),
            raw[8:16].hex(),
            _text(raw[64:80]),
            tuple(ids[:count]),
        )

    def map_info(self, fd: int) -> MapInfo:
        """About a map."""
        raw = self._info(fd, bytearray(88))
        kind, number, key, value, entries, flags = struct.unpack_from("=6I", raw)
        btf_id, key_type, value_type = struct.unpack_from("=3I", raw, 64)
        return MapInfo(
            number,
            _name_of(MAP_TYPES, kind),
            key,
            value,
            entries,
            flags,
            _text(raw[24:40]),
            btf_id,
            key_type,
            value_type,
        )

    def link_info(self, fd: int) -> LinkInfo:
        """About a link."""
        raw = self._info(fd, bytearray(64))
        kind, number, program = struct.unpack_from("=3I", raw)
        word = LINK_TYPES.get(kind, f"type {kind}")
        form, offset = TARGETS.get(word, ("", 0))
        target = struct.unpack_from(form, raw, offset)[0] if form else 0
        return LinkInfo(number, word, program, target)

    def prog_fd(self, prog_id: int) -> int | None:
        """A descriptor of the program with this id, None where it is gone."""
        fd = int(self.lib.bpf_prog_get_fd_by_id(ctypes.c_uint32(prog_id)))
        return fd if fd >= 0 else None

    def map_fd(self, map_id: int) -> int | None:
        """A descriptor of the map with this id, None where it is gone."""
        fd = int(self.lib.bpf_map_get_fd_by_id(ctypes.c_uint32(map_id)))
        return fd if fd >= 0 else None

    def btf_of(self, btf_id: int) -> bytes:
        """The raw BTF with this id."""
        fd = _checked(self.lib.bpf_btf_get_fd_by_id(btf_id), f"BTF {btf_id}")
        try:
            (size,) = struct.unpack_from("=I", self._info(fd, bytearray(32)), 8)
            types = (ctypes.c_char * size)()
            data = bytearray(32)
            struct.pack_into("=QI", data, 0, ctypes.addressof(types), size)
            self._info(fd, data)
            return bytes(types)
        finally:
            os.close(fd)

    # -- attaching ---------------------------------------------------------------------------

    def link_create(
        self, prog_fd: int, target_fd: int, attach_type: int, iter_map_fd: int | None = None
    ) -> int:
        """A descriptor of a new link; an iterator takes the map that it walks instead of a
        target."""
        opts = _LinkOpts(sz=ctypes.sizeof(_LinkOpts))
        # union bpf_iter_link_info is 16 bytes and starts with the map's descriptor.
        info = (ctypes.c_uint32 * 4)(iter_map_fd or 0)
        if iter_map_fd is not None:
            opts.iter_info = ctypes.addressof(info)
            opts.iter_info_len = ctypes.sizeof(info)
        return _checked(
            self.lib.bpf_link_create(prog_fd, target_fd, attach_type, ctypes.byref(opts)), "link"
        )

    def link_update(self, link_fd: int, fd: int) -> None:
        """Exchange a link's program, or its struct_ops map, atomically."""
        opts = _UpdateOpts(sz=ctypes.sizeof(_UpdateOpts))
        _checked(self.lib.bpf_link_update(link_fd, fd, ctypes.byref(opts)), "link")

    def link_detach(self, link_fd: int) -> None:
        """Detach at once, whoever else holds the link."""
        _checked(self.lib.bpf_link_detach(link_fd), "link")

    def attach_struct_ops(self, item: int) -> int:
        """Give the struct_ops map of a loaded object, by its handle, its programs, and a
        descriptor of a new link. The map keeps the programs where linking fails."""
        link = self.lib.bpf_map__attach_struct_ops(item)
        if not link:
            number = ctypes.get_errno() or errno.EINVAL
            raise OSError(number, os.strerror(number), "struct_ops")
        fd = int(self.lib.bpf_link__fd(link))
        self.lib.bpf_link__disconnect(link)
        self.lib.bpf_link__destroy(link)
        return fd

    def prog_attach(self, prog_fd: int, target_fd: int, attach_type: int) -> None:
        """Attach without a link; replaces a program attached in that way."""
        _checked(self.lib.bpf_prog_attach(prog_fd, target_fd, attach_type, 0), "map")

    def prog_detach(self, prog_fd: int, target_fd: int, attach_type: int) -> None:
        """Undo prog_attach of just this program."""
        _checked(self.lib.bpf_prog_detach2(prog_fd, target_fd, attach_type), "map")

    def prog_attached(self, target_fd: int, attach_type: int) -> int:
        """Id of the program attached to a map, with or without link; zero where none is."""
        ids, count = (ctypes.c_uint32 * 1)(), ctypes.c_uint32(1)
        _checked(
            self.lib.bpf_prog_query(target_fd, attach_type, 0, None, ids, ctypes.byref(count)),
            "map",
        )
        return ids[0] if count.value else 0

    # -- map entries -------------------------------------------------------------------------

    def lookup(self, fd: int, key: bytes, size: int) -> bytes | None:
        """The value's `size` bytes (all CPUs' for a per-CPU map), None where there is none."""
        value = ctypes.create_string_buffer(size)
        result = self.lib.bpf_map_lookup_elem(fd, key, value)
        if result == -errno.ENOENT:
            return None
        _checked(result, "map")
        return value.raw

    def update(self, fd: int, key: bytes, value: bytes) -> None:
        """Write an entry, new or not."""
        _checked(self.lib.bpf_map_update_elem(fd, key, value, ctypes.c_uint64(BPF_ANY)), "map")

    def delete(self, fd: int, key: bytes) -> bool:
        """Delete an entry; False where there was none."""
        result = self.lib.bpf_map_delete_elem(fd, key)
        if result == -errno.ENOENT:
            return False
        _checked(result, "map")
        return True

    def next_key(self, fd: int, key: bytes | None, size: int) -> bytes | None:
        """The key after `key`, None after the last."""
        following = ctypes.create_string_buffer(size)
        result = self.lib.bpf_map_get_next_key(fd, key, following)
        if result == -errno.ENOENT:
            return None
        _checked(result, "map")
        return following.raw

    def possible_cpus(self) -> int:
        """How many values an entry of a per-CPU map has."""
        return _checked(self.lib.libbpf_num_possible_cpus(), "CPUs")

    def supports_prog_type(self, name: str) -> bool:
        """Does the kernel know this program type? True where libbpf cannot tell."""
        if name in UNPROBED:
            return True
        if name not in PROG_TYPES:
            return False
        return bool(self.lib.libbpf_probe_bpf_prog_type(PROG_TYPES.index(name), None) != 0)

    def supports_map_type(self, name: str) -> bool:
        """Does the kernel know this map type? True where libbpf cannot tell."""
        if name not in MAP_TYPES:
            return False
        return bool(self.lib.libbpf_probe_bpf_map_type(MAP_TYPES.index(name), None) != 0)

    def open_object(self, data: bytes, name: str) -> BpfObject:
        """Open an object file's bytes; nothing is loaded yet."""
        return BpfObject(self, data, name)


class BpfObject:
    """An opened object file, a context manager that drops whatever was not pinned."""

    def __init__(self, bpf: Bpf, data: bytes, name: str) -> None:
        self.bpf, self.lib = bpf, bpf.lib
        self._log = ctypes.create_string_buffer(LOG_SIZE)
        self._data = data
        opts = _OpenOpts(
            sz=ctypes.sizeof(_OpenOpts),
            object_name=name.encode(),
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=LOG_SIZE,
        )
        bpf.messages.clear()
        ctypes.set_errno(0)
        self.pointer = self.lib.bpf_object__open_mem(data, len(data), ctypes.byref(opts))
        if not self.pointer:
            number = ctypes.get_errno() or errno.EINVAL
            raise OSError(number, os.strerror(number) if number < 1000 else "libbpf error")
        for entry in self._walk("bpf_object__next_map"):
            # LIBBPF_PIN_BY_NAME would pin behind our back, in a place of its own choice.
            self.lib.bpf_map__set_pin_path(entry, None)

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.lib.bpf_object__close(self.pointer)

    def _walk(self, function: str) -> Iterator[int]:
        item = getattr(self.lib, function)(self.pointer, None)
        while item:
            yield item
            item = getattr(self.lib, function)(self.pointer, item)

    def programs(self) -> dict[str, int]:
        """Handles of the programs by name."""
        return {
            self.lib.bpf_program__name(item).decode(): item
            for item in self._walk("bpf_object__next_program")
        }

    def maps(self) -> dict[str, int]:
        """Handles of the maps by name; internal ones by their section (".rodata")."""
        found = {}
        for item in self._walk("bpf_object__next_map"):
            name = self.lib.bpf_map__name(item).decode()
            found[name[name.index(".") :] if "." in name else name] = item
        return found

    def program_type(self, program: int) -> str:
        """Name of its type."""
        return _name_of(PROG_TYPES, self.lib.bpf_program__type(program))

    def attach_type(self, program: int) -> int:
        """enum bpf_attach_type that its section stands for."""
        return int(self.lib.bpf_program__expected_attach_type(program))

    def map_declared(self, item: int) -> dict[str, Any]:
        """type, key_size, value_size, max_entries, flags and the two BTF type ids."""
        lib = self.lib
        return {
            "type": _name_of(MAP_TYPES, lib.bpf_map__type(item)),
            "key_size": ctypes.c_uint32(lib.bpf_map__key_size(item)).value,
            "value_size": ctypes.c_uint32(lib.bpf_map__value_size(item)).value,
            "max_entries": ctypes.c_uint32(lib.bpf_map__max_entries(item)).value,
            "flags": ctypes.c_uint32(lib.bpf_map__map_flags(item)).value,
            "key_type_id": lib.bpf_map__btf_key_type_id(item),
            "value_type_id": lib.bpf_map__btf_value_type_id(item),
        }

    def btf(self) -> bytes:
        """The object's BTF, empty where it has none."""
        size = ctypes.c_uint32()
        btf = self.lib.bpf_object__btf(self.pointer)
        raw = self.lib.btf__raw_data(btf, ctypes.byref(size)) if btf else None
        return ctypes.string_at(raw, size.value) if raw else b""

    def initial_value(self, item: int) -> bytes:
        """What an internal map (.rodata) starts with, and before loading a struct_ops map, with the
        handles of its programs as pointers (libbpf 1.4); empty for others."""
        size = ctypes.c_size_t()
        start = self.lib.bpf_map__initial_value(item, ctypes.byref(size))
        return ctypes.string_at(start, size.value) if start else b""

    def set_max_entries(self, item: int, count: int) -> None:
        """Before loading."""
        _checked(self.lib.bpf_map__set_max_entries(item, count), "max_entries")

    def reuse(self, item: int, fd: int) -> None:
        """Use an existing map; before loading. The descriptor is duplicated."""
        _checked(self.lib.bpf_map__reuse_fd(item, fd), "map")

    def load(self) -> None:
        """Load everything into the kernel; OSError, then see `log` and the messages."""
        self._log[0] = b"\0"
        _checked(self.lib.bpf_object__load(self.pointer), "object")

    def log(self) -> str:
        """The verifier's log of what was loaded last."""
        return self._log.value.decode("utf-8", "replace")

    def program_fd(self, program: int) -> int:
        """Owned by the object."""
        return _checked(self.lib.bpf_program__fd(program), "program")

    def map_fd(self, item: int) -> int:
        """Owned by the object."""
        return _checked(self.lib.bpf_map__fd(item), "map")


def _name_of(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"number {number}"


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace")
