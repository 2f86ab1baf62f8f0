# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is pinned and attached right now, as the kernel tells it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace

from .._model.btf import Btf, parse_btf
from .._model.plan import STRUCT_OPS, Link, Map, ObjectState, Program
from .._model.spec import unescape
from .bpffs import Pinned
from .libbpf import SOCKMAP_PROG_TYPES, Bpf, MapInfo
from .mounts import has_cgroup_id

# Read-only data belongs to the code: another value is another program.
RODATA = ".rodata"
SOCKMAPS = ("sockmap", "sockhash")
# libbpf drops the BTF of these, as the kernel would refuse it.
UNTYPED = (
    "perf_event_array",
    "cgroup_array",
    "stack_trace",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "devmap_hash",
    "cpumap",
    "xskmap",
    "sockmap",
    "sockhash",
    "ringbuf",
    "user_ringbuf",
    "prog_array",
    "reuseport_sockarray",
    "arena",
    "queue",
    "stack",
)


def live_state(bpf: Bpf, pinned: Pinned) -> ObjectState:
    """The state of the object whose pins are open."""
    programs = {name: program_of(bpf, name, fd) for name, fd in pinned.progs.items()}
    maps = {
        name: _map(bpf, name, fd, pinned.contents.get(name, "")) for name, fd in pinned.maps.items()
    }
    names = {entry.id: name for name, entry in maps.items()}
    links = {key: _link(bpf, key, fd, names) for key, fd in pinned.links.items()}
    state = ObjectState(programs, maps, links)
    unlinked = {link.key: link for link in _unlinked(bpf, state, pinned)}
    return replace(state, links={**links, **unlinked})


def program_of(bpf: Bpf, name: str, fd: int) -> Program:
    """The program behind a descriptor, pinned or not."""
    info = bpf.prog_info(fd)
    return Program(name, info.tag, info.type, info.id, frozenset(info.map_ids))


def _map(bpf: Bpf, name: str, fd: int, content: str) -> Map:
    info = bpf.map_info(fd)
    if info.type == STRUCT_OPS:
        return ops_map(name, info, content, unset=not _is_set(bpf, fd, info))
    btf = parse_btf(bpf.btf_of(info.btf_id)) if info.btf_id else None
    return Map(
        name,
        info.type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.flags,
        layout_of(btf, info.key_type_id, info.value_type_id, info.type),
        digest(bpf.lookup(fd, bytes(4), info.value_size) or b"") if is_code(name) else "",
        info.id,
    )


def ops_map(name: str, info: MapInfo, content: str, unset: bool) -> Map:
    """A struct_ops map. What the kernel says of it: the struct of an object may be smaller."""
    sizes = (info.key_size, info.value_size, info.max_entries, info.flags)
    return Map(name, info.type, *sizes, content=content, id=info.id, unset=unset)


def _is_set(bpf: Bpf, fd: int, info: MapInfo) -> bool:
    """Was the struct_ops map given its programs? Its value begins with a count and a state."""
    value = bpf.lookup(fd, bytes(4), info.value_size) or b""
    return any(value[4:8])


def is_code(name: str) -> bool:
    """Is this map's content part of the program?"""
    return name.startswith(RODATA)


def digest(data: bytes) -> str:
    """By which contents are compared."""
    return hashlib.sha256(data).hexdigest()


def layout_of(btf: Btf | None, key: int, value: int, kind: str) -> object:
    """The layouts of key and value; None for a map without type information."""
    if btf is None or not (key or value) or kind in UNTYPED:
        return None
    return (btf.layout(key) if key else None, btf.layout(value) if value else None)


def _link(bpf: Bpf, key: str, fd: int, map_names: dict[int, str]) -> Link:
    info = bpf.link_info(fd)
    program, _at, cgroup = key.partition("@")
    target, target_id = info.type, info.target_id
    if info.type == STRUCT_OPS:
        return Link(key, program, info.type, target, prog_id=target_id, id=info.id)
    if info.type == "cgroup":
        target = f"cgroup {unescape(cgroup)}"
        # A deleted cgroup lets go of its link after a while, and its path may be taken again.
        target_id = target_id if has_cgroup_id(unescape(cgroup), target_id) else 0
    elif info.type in ("map", "iter"):
        target = f"{info.type} {map_names.get(info.target_id, '')}".rstrip()
    return Link(key, program, info.type, target, target_id, info.prog_id, info.id)


def _unlinked(bpf: Bpf, state: ObjectState, pinned: Pinned) -> Iterator[Link]:
    """Programs that sit on a map without a link, as before Linux 6.10."""
    sockmaps = [entry for entry in state.maps.values() if entry.type in SOCKMAPS]
    programs = [one for one in state.programs.values() if one.type in SOCKMAP_PROG_TYPES]
    for entry in sockmaps:
        for one in programs:
            if one.name not in state.links and attached_as(bpf, one, pinned.maps[entry.name]):
                target = f"map {entry.name}"
                yield Link(one.name, one.name, "map", target, entry.id, one.id, pinned=False)


def attached_as(bpf: Bpf, program: Program, map_fd: int) -> int | None:
    """The attach type by which a map runs `program`, None where it does not."""
    for attach_type in sockmap_attach_types(program.type):
        with contextlib.suppress(OSError):
            if bpf.prog_attached(map_fd, attach_type) == program.id:
                return attach_type
    return None


def sockmap_attach_types(program_type: str) -> tuple[int, ...]:
    """enum bpf_attach_type values: sk_msg verdict; sk_skb parser, stream verdict, verdict."""
    return (7,) if program_type == "sk_msg" else (4, 5, 38)
