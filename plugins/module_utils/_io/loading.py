# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an object file to a verified instance in the kernel that nobody sees yet."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .._model.btf import Btf, parse_btf
from .._model.elf import check_bpf_elf, section_names
from .._model.errors import InputError, KernelError, MissingError
from .._model.ops import ops_digest
from .._model.plan import STRUCT_OPS, Link, Map, ObjectState, map_conflict
from .._model.spec import Attach, ObjectSpec
from .bpffs import Pinned
from .hints import OPS_LIBBPF, dotted, hint, lacking
from .libbpf import Bpf, BpfObject
from .live import digest, is_code, layout_of, ops_map, program_of
from .mounts import open_cgroup

LOG_TAIL_LINES = 30
LOG_MAX = 65536
# Sections (.rodata, .bss) whose maps belong to the code: replaced with it, without asking.
INTERNAL = "."
# A struct_ops map that is attached by a link: its section, its flag, and who knows them.
LINK_SECTION = ".struct_ops.link"
FLAG_LINK = 1 << 13
OPS_SECTION = ".struct_ops"


@dataclass
class Wanted:
    """A loaded instance: its state, descriptors by name, attach types by program, and by link
    what to attach and the cgroup's descriptor; handles of struct_ops maps that have no programs
    yet. The loader's stack owns the descriptors."""

    state: ObjectState
    progs: dict[str, int]
    maps: dict[str, int]
    attach_types: dict[str, int]
    attach: dict[str, Attach] = field(default_factory=dict)
    cgroups: dict[str, int] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)


def read_object(spec: ObjectSpec) -> tuple[bytes, str]:
    """The object file's bytes, checked, and their SHA-256. They are what is loaded: the file is
    not read again."""
    path = spec.path
    try:
        # The lock is held, so nothing may be waited for, as a FIFO's writer.
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"Cannot read {path}: it is not a plain file, as BPF objects are.")
            data = file.read()
    except FileNotFoundError:
        raise MissingError(
            f"Cannot load {path}: there is no such file. Copy the BPF object there first."
        ) from None
    except OSError as error:
        raise InputError(
            f"Cannot read {path}: {error.strerror}. path must name a BPF object file."
        ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if spec.sha256 and sha256 != spec.sha256:
        raise InputError(
            f"Refused to load {path}: its sha256 is {sha256}, expected "
            f"{spec.sha256}. Copy the right file, or correct sha256."
        )
    check_bpf_elf(data, path)
    return data, sha256


class Loader:
    """Loads for `spec`; what it opens lives as long as `stack`. `place` names the pins in
    messages. `warnings` are the cgroups that were left out."""

    def __init__(self, bpf: Bpf, spec: ObjectSpec, place: str, stack: contextlib.ExitStack) -> None:
        self.bpf, self.spec, self.place, self.stack = bpf, spec, place, stack
        self.skip_missing_cgroups = False
        self.warnings: list[str] = []

    def load(self, data: bytes, live: ObjectState, pinned: Pinned) -> Wanted:
        """Load a second instance on top of the reusable pinned maps; raises TcpSmError."""
        try:
            loaded = self.stack.enter_context(self.bpf.open_object(data, self.spec.name))
        except OSError as error:
            raise InputError(
                f"Cannot open BPF object {self.spec.path}: {error.strerror or error}. "
                f"{self._said()}"
            ) from error
        self._require_ops(loaded, data)
        maps = self._declare_maps(loaded, live, pinned)
        handles = loaded.programs()
        self._check_names(handles, maps)
        try:
            loaded.load()
        except OSError as error:
            raise self._load_failure(loaded, error) from error
        wanted = self._loaded(loaded, handles, maps)
        self._add_links(wanted)
        return wanted

    def _loaded(self, loaded: BpfObject, handles: dict[str, int], maps: dict[str, Map]) -> Wanted:
        """What the kernel made of it."""
        progs = {name: loaded.program_fd(handle) for name, handle in handles.items()}
        map_handles = loaded.maps()
        map_fds = {name: loaded.map_fd(handle) for name, handle in map_handles.items()}
        programs = {name: program_of(self.bpf, name, fd) for name, fd in progs.items()}
        maps = {name: self._real_map(entry, map_fds[name]) for name, entry in maps.items()}
        types = {name: loaded.attach_type(handle) for name, handle in handles.items()}
        ops = {name: map_handles[name] for name, entry in maps.items() if entry.type == STRUCT_OPS}
        return Wanted(ObjectState(programs, maps), progs, map_fds, types, ops=ops)

    def _real_map(self, declared: Map, fd: int) -> Map:
        info = self.bpf.map_info(fd)
        if declared.type == STRUCT_OPS:
            return ops_map(declared.name, info, declared.content, unset=False)
        return replace(declared, id=info.id)

    def _require_ops(self, loaded: BpfObject, data: bytes) -> None:
        """Old libraries skip a section of struct_ops that they do not know, in silence."""
        sections = [name for name in section_names(data) if name.startswith(OPS_SECTION)]
        types = {loaded.map_declared(handle)["type"] for handle in loaded.maps().values()}
        if sections and STRUCT_OPS not in types:
            raise MissingError(
                f"Cannot load {self.spec.path}: libbpf {dotted(self.bpf.version)} does not know "
                f"its section {sections[0]}. Install libbpf {dotted(OPS_LIBBPF)} or newer "
                "(Debian 13 has it)."
            )

    def _declare_maps(self, loaded: BpfObject, live: ObjectState, pinned: Pinned) -> dict[str, Map]:
        """Size the maps, decide which pinned ones serve again; InputError on a conflict."""
        handles = loaded.maps()
        self._size_maps(loaded, handles)
        raw = loaded.btf()
        btf = parse_btf(raw) if raw else None
        maps = {name: self._declared_map(loaded, name, one, btf) for name, one in handles.items()}
        conflicts = {
            name: map_conflict(live.maps[name], entry)
            for name, entry in maps.items()
            if name in live.maps and not entry.type == live.maps[name].type == STRUCT_OPS
        }
        self._refuse_conflicts(conflicts)
        for name, why in conflicts.items():
            if not why:
                loaded.reuse(handles[name], pinned.maps[name])
        return maps

    def _size_maps(self, loaded: BpfObject, handles: dict[str, int]) -> None:
        for name, count in self.spec.max_entries.items():
            if name not in handles or name.startswith(INTERNAL):
                raise InputError(
                    f"max_entries: the object {self.spec.path} has no map {name!r}; "
                    f"it has {_names(handles)}"
                )
            loaded.set_max_entries(handles[name], count)

    def _refuse_conflicts(self, conflicts: dict[str, str]) -> None:
        found = [
            f"map {name}: {why}"
            for name, why in conflicts.items()
            if why and not name.startswith(INTERNAL)
        ]
        if found and not self.spec.replace_maps:
            raise InputError(
                f"The pins in {self.place} are of a version of {self.spec.name} whose maps "
                f"do not fit this object: {'; '.join(found)}. Nothing was changed. Set "
                "replace_maps=true to start with empty maps in their place, or remove the old "
                "version with state=absent."
            )

    def _declared_map(self, loaded: BpfObject, name: str, handle: int, btf: Btf | None) -> Map:
        declared = loaded.map_declared(handle)
        key, value = declared.pop("key_type_id"), declared.pop("value_type_id")
        content = digest(loaded.initial_value(handle)) if is_code(name) else ""
        if declared["type"] == STRUCT_OPS:
            programs = {pointer: program for program, pointer in loaded.programs().items()}
            content = ops_digest(loaded.initial_value(handle), programs)
        return Map(
            name, layout=layout_of(btf, key, value, declared["type"]), content=content, **declared
        )

    def _check_names(self, programs: dict[str, int], maps: dict[str, Map]) -> None:
        for item in self.spec.attach:
            if item.program and item.program not in programs:
                raise InputError(
                    f"attach: the object {self.spec.path} has no program "
                    f"{item.program!r}; it has {_names(programs)}"
                )
            if item.map and item.map not in maps:
                purpose = f"for program {item.program}" if item.program else "to attach"
                raise InputError(
                    f"attach: the object {self.spec.path} has no map {item.map!r} "
                    f"{purpose}; it has {_names(maps)}"
                )
            if item.type == STRUCT_OPS and not maps[item.map].flags & FLAG_LINK:
                raise InputError(
                    f"attach: map {item.map} of the object {self.spec.path} cannot be attached as "
                    f"struct_ops; only those in its section {LINK_SECTION} can"
                )

    def _add_links(self, wanted: Wanted) -> None:
        """Resolve the attach list to targets."""
        links = {}
        for item in self.spec.attach:
            walked = item.map and item.type != STRUCT_OPS
            target_id = wanted.state.maps[item.map].id if walked else 0
            if item.type == "cgroup":
                try:
                    fd, target_id = open_cgroup(item.cgroup)
                except InputError as error:
                    if not self.skip_missing_cgroups:
                        raise
                    self.warnings.append(str(error))
                    continue
                self.stack.callback(os.close, fd)
                wanted.cgroups[item.key] = fd
            if self.spec.state == "attached":
                links[item.key] = Link(item.key, item.attached, item.type, item.target, target_id)
                wanted.attach[item.key] = item
        wanted.state = replace(wanted.state, links=links)

    def _load_failure(self, loaded: BpfObject, error: OSError) -> KernelError:
        log = loaded.log().rstrip()
        tail = "\n".join(log.splitlines()[-LOG_TAIL_LINES:])
        parts = [
            f"Cannot load BPF object {self.spec.path} into Linux {platform.release()}: "
            f"{error.strerror}. {self._said()}"
        ]
        parts += [f"The end of the verifier's log:\n{tail}"] if tail else []
        parts += [*lacking(self.bpf.messages, self.bpf.version), *self._missing_features(loaded)]
        parts += [hint(error), "Nothing was changed."]
        return KernelError("\n".join(part for part in parts if part), log[-LOG_MAX:])

    def _missing_features(self, loaded: BpfObject) -> Iterator[str]:
        """Program and map types of the object that this kernel does not know."""
        if not os.path.exists("/sys/kernel/btf/vmlinux"):
            yield (
                "The kernel has no type information (/sys/kernel/btf/vmlinux): use one with "
                "CONFIG_DEBUG_INFO_BTF=y."
            )
        with contextlib.suppress(OSError):
            for kind in sorted({loaded.program_type(one) for one in loaded.programs().values()}):
                if not self.bpf.supports_prog_type(kind):
                    yield f"The kernel does not support programs of type {kind}."
            for kind in sorted(
                {loaded.map_declared(one)["type"] for one in loaded.maps().values()}
            ):
                if not self.bpf.supports_map_type(kind):
                    yield f"The kernel does not support maps of type {kind}."

    def _said(self) -> str:
        """libbpf's own words."""
        lines = [line.removeprefix("libbpf: ") for line in self.bpf.messages]
        return "libbpf: " + "; ".join(lines[:6]) + "." if lines else ""


def _names(found: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in found if not name.startswith("."))) or "none"
