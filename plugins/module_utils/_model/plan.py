# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is pinned and what is wanted to the steps between: pure, so tables can test it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

KEEP, UPDATE, CREATE, REPLACE, DROP = "keep", "update", "create", "replace", "drop"
STRUCT_OPS = "struct_ops"


@dataclass(frozen=True)
class Program:
    """A program; `tag` is the kernel's 16 hexadecimal digits over its instructions."""

    name: str
    tag: str
    type: str
    id: int = 0
    map_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Map:
    """A map. `layout` describes key and value (see btf.Btf.layout), `content` is the digest of
    data that belongs to the code (.rodata, struct_ops), empty elsewhere or where unknown. `unset`
    is a struct_ops map that was never given its programs, and so cannot be attached."""

    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    layout: object = None
    content: str = ""
    id: int = 0
    unset: bool = False

    @property
    def mark(self) -> str:
        """What the pin's name has to tell, because the kernel cannot."""
        return self.content if self.type == STRUCT_OPS else ""

    @property
    def summary(self) -> str:
        """One line for a diff."""
        text = (
            f"{self.type}, key {self.key_size}, value {self.value_size}, {self.max_entries} entries"
        )
        return f"{text}, content {self.content[:16]}" if self.content else text


@dataclass(frozen=True)
class Link:
    """An attachment; `target_id` is the cgroup's or the map's id, zero where there is none.

    `pinned` is False for a program attached to a map without a link (Linux before 6.10). Of type
    struct_ops, `program` and `prog_id` are those of the map, and a `prog_id` of zero is detached.
    """

    key: str
    program: str
    type: str
    target: str
    target_id: int = 0
    prog_id: int = 0
    id: int = 0
    pinned: bool = True


@dataclass(frozen=True)
class ObjectState:
    """An object, as it is or as it is wanted."""

    programs: Mapping[str, Program] = field(default_factory=dict)
    maps: Mapping[str, Map] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)

    def consistent(self) -> bool:
        """Do the pinned programs use the pinned maps? Otherwise somebody mixed two loads."""
        ids = {entry.id for entry in self.maps.values()}
        return all(program.map_ids <= ids for program in self.programs.values())

    def attachable(self, link: Link) -> int:
        """Id of the program, or of the struct_ops map, that `link` shall attach; zero: none."""
        found = (self.maps if link.type == STRUCT_OPS else self.programs).get(link.program)
        return found.id if found else 0


@dataclass(frozen=True)
class Step:
    """What to do about the link `key`."""

    action: str
    key: str


@dataclass(frozen=True)
class Plan:
    """The way from one state to another; `reload` means that new programs are pinned."""

    reload: bool
    steps: tuple[Step, ...]

    @property
    def changed(self) -> bool:
        """Is there anything to do?"""
        return self.reload or any(step.action != KEEP for step in self.steps)


def map_conflict(live: Map, wanted: Map) -> str:
    """Why entries of `live` cannot serve as `wanted`; empty where they can."""
    for name in ("type", "key_size", "value_size", "max_entries", "flags"):
        old, new = getattr(live, name), getattr(wanted, name)
        # A perf_event_array of size 0 gets one entry for each CPU.
        if old != new and not (name == "max_entries" and wanted.type == "perf_event_array"):
            return f"its {name.replace('_', ' ')} is {old}, the object needs {new}"
    if None not in (live.layout, wanted.layout) and live.layout != wanted.layout:
        return "its key or value has other fields"
    if live.content != wanted.content:
        return "its content differs"
    return ""


def needs_reload(live: ObjectState, wanted: ObjectState) -> bool:
    """Is anything but the links different? Wanted maps that are reused carry the live id."""
    tags = {name: program.tag for name, program in live.programs.items()}
    if tags != {name: program.tag for name, program in wanted.programs.items()}:
        return True
    if _map_ids(live) != _map_ids(wanted):
        return True
    return not live.consistent() or any(
        _other_ops(live.maps[name], entry, linked=name in wanted.links)
        for name, entry in wanted.maps.items()
        if entry.type == STRUCT_OPS
    )


def _map_ids(state: ObjectState) -> dict[str, object]:
    """What must be the same of each map. A struct_ops map is made anew at every load."""
    return {
        name: entry.type if entry.type == STRUCT_OPS else entry.id
        for name, entry in state.maps.items()
    }


def _other_ops(live: Map, wanted: Map, linked: bool) -> bool:
    """Has the pinned struct_ops map other contents, or none where they are needed?"""
    if "" not in (live.content, wanted.content) and live.content != wanted.content:
        return True
    return linked and live.unset


def make_plan(live: ObjectState, wanted: ObjectState) -> Plan:
    """Steps in the order in which they are taken: the wanted ones in the wanted order, then
    what is dropped. `wanted` has the ids of the loaded instance."""
    reload = needs_reload(live, wanted)
    steps = []
    for key, link in wanted.links.items():
        prog_id = (wanted if reload else live).attachable(link)
        steps.append(Step(_action(live.links.get(key), replace(link, prog_id=prog_id)), key))
    steps += [Step(DROP, key) for key in live.links if key not in wanted.links]
    return Plan(reload, tuple(steps))


def _action(have: Link | None, want: Link) -> str:
    if have is None:
        return CREATE
    if (have.type, have.target_id) != (want.type, want.target_id):
        return REPLACE
    if have.type == STRUCT_OPS and not have.prog_id:
        return REPLACE
    return KEEP if have.prog_id == want.prog_id else UPDATE


def describe(state: ObjectState, word: str) -> dict[str, Any]:
    """For a diff: sorted, and without ids, which differ at every load."""
    links = {key: link.target + _flaw(link, state) for key, link in sorted(state.links.items())}
    return {
        "state": word,
        "programs": {name: program.tag for name, program in sorted(state.programs.items())},
        "maps": {name: entry.summary for name, entry in sorted(state.maps.items())},
        "links": links,
    }


def _flaw(link: Link, state: ObjectState) -> str:
    """What is wrong with a link, in brackets. Wanted links have no ids yet, and no flaw."""
    if link.type == "cgroup" and link.prog_id and not link.target_id:
        return " (cgroup was deleted)"
    if link.type == STRUCT_OPS and link.id and not link.prog_id:
        return " (detached)"
    return " (another program)" if link.prog_id not in (0, state.attachable(link)) else ""


def state_word(state: ObjectState) -> str:
    """The module's word for a state."""
    if not state.programs and not state.maps and not state.links:
        return "absent"
    return "attached" if state.links else "loaded"
