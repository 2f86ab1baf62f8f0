# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what is pinned under one name: objects, counters, connections, profiles.

Private to this collection. Reads only, and takes whatever is missing as
absent: a host without anything loaded is a normal answer, not an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .._model import abi, connections, records
from .._model.errors import ForeignError, TcpSmError
from .._model.spec import unescape
from . import mounts
from .bpffs import PinFolder, Pinned
from .libbpf import SOCKMAP_PROG_TYPES, Bpf
from .maps import PinnedMap

DUMP_LINK = "tcp_sm_dump"
STATS_MAP = "tcp_sm_stats"
PROFILES_MAP = "tcp_sm_profiles"
SOCKMAPS = ("sockmap", "sockhash")
SK_MSG_VERDICT = 7
NETNS_FOLDERS = ("/run/netns", "/run/docker/netns")
# Fields of a profile that hold a reason code.
REASON_FIELDS = ("veto", "reason")
ABSENT: dict[str, Any] = {"state": "absent", "programs": [], "maps": [], "links": []}


class StatusError(TcpSmError):
    """Something is pinned, and cannot be read."""


class Status:
    """The pins below ``<bpffs>/<name>``, opened; use as a context manager."""

    def __init__(self, bpffs: str, name: str) -> None:
        """Raise :class:`TcpSmError` where pins exist that cannot be opened."""
        self.name = name
        self.folder = Path(bpffs, name)
        self._stack = contextlib.ExitStack()
        self.bpf: Bpf | None = None
        self.pinned = Pinned()
        try:
            exists = bool(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            exists = False
        except OSError as error:
            raise StatusError(
                f"Cannot read the pins in {self.folder}: {error.strerror}. Run as root "
                "(become: true)."
            ) from error
        if exists:
            self._open(bpffs)

    def _open(self, bpffs: str) -> None:
        self.bpf = Bpf()
        self.pins = PinFolder(self.bpf, bpffs, self.name)
        try:
            self.pinned = self._stack.enter_context(self.pins.open())
        except OSError as error:
            raise StatusError(
                f"Cannot open the pins in {self.folder}: {error.strerror}. Run as root "
                "(become: true), with CAP_BPF in a container."
            ) from error

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    # -- objects ------------------------------------------------------------------------------

    def objects(self) -> dict[str, Any]:
        """``{name, state, programs, maps, links}``, lists sorted by name."""
        if self.bpf is None:
            return {"name": self.name, **ABSENT}
        programs, maps = self._programs(self.bpf), self._maps(self.bpf)
        links = [*self._links(self.bpf, maps), *self._unlinked(self.bpf, programs)]
        state = "attached" if links else "loaded" if programs or maps else "absent"
        return {
            "name": self.name,
            "state": state,
            "programs": programs,
            "maps": maps,
            "links": sorted(links, key=lambda one: (one["program"], one["target"])),
        }

    def _programs(self, bpf: Bpf) -> list[dict[str, Any]]:
        result = []
        for name, fd in sorted(self.pinned.progs.items()):
            info = bpf.prog_info(fd)
            pin = self.pins.pin_path("progs", name)
            result.append(
                {"name": name, "id": info.id, "tag": info.tag, "type": info.type, "pin": pin}
            )
        return result

    def _maps(self, bpf: Bpf) -> list[dict[str, Any]]:
        result = []
        for name, fd in sorted(self.pinned.maps.items()):
            info = bpf.map_info(fd)
            sizes = {
                "key_size": info.key_size,
                "value_size": info.value_size,
                "max_entries": info.max_entries,
            }
            pin = self.pins.pin_path("maps", name, content=self.pinned.contents.get(name, ""))
            result.append({"name": name, "id": info.id, "type": info.type, **sizes, "pin": pin})
        return result

    def _links(self, bpf: Bpf, maps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        map_names = {one["id"]: one["name"] for one in maps}
        for key, fd in self.pinned.links.items():
            info = bpf.link_info(fd)
            program, _at, cgroup = key.partition("@")
            target = info.type
            if info.type == "cgroup":
                # The kernel forgets the cgroup of a link when the cgroup is deleted.
                gone = "" if info.target_id else " (deleted)"
                target = f"cgroup {unescape(cgroup)}{gone}"
            elif info.type in ("map", "iter"):
                target = f"{info.type} {map_names.get(info.target_id, '')}".rstrip()
            yield {
                "program": program,
                "type": info.type,
                "target": target,
                "id": info.id,
                "pin": self.pins.pin_path("links", key),
            }

    def _unlinked(self, bpf: Bpf, programs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Verdicts that sit on a map without a link, as before Linux 6.10."""
        names = {
            one["id"]: one["name"]
            for one in programs
            if one["type"] in SOCKMAP_PROG_TYPES and one["name"] not in self.pinned.links
        }
        for map_name, fd in self.pinned.maps.items():
            if not names or bpf.map_info(fd).type not in SOCKMAPS:
                continue
            with contextlib.suppress(OSError):
                program = names.get(bpf.prog_attached(fd, SK_MSG_VERDICT))
                if program:
                    target = f"map {map_name}"
                    unpinned = {"id": None, "pin": None}
                    yield {"program": program, "type": "map", "target": target, **unpinned}

    # -- what the programs counted ------------------------------------------------------------

    def counters(self) -> dict[str, Any]:
        """The counters, summed over CPUs; zeros where nothing is loaded."""
        fd = self.pinned.maps.get(STATS_MAP)
        if self.bpf is None or fd is None:
            return records.sum_stats([])
        size = self.bpf.map_info(fd).value_size
        stride = (size + 7) // 8 * 8
        values = self.bpf.lookup(fd, bytes(4), stride * self.bpf.possible_cpus()) or b""
        parts = (values[start : start + size] for start in range(0, len(values), stride))
        return _readable(lambda: records.sum_stats(parts), self.folder / "maps" / STATS_MAP)

    def records(self) -> list[records.Record]:
        """What the programs know of each socket; none where they are not attached."""
        if DUMP_LINK not in self.pinned.links:
            return []
        path = self.folder / "links" / DUMP_LINK
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StatusError(
                f"Cannot read the connections from {path}: {error.strerror}. Run as root "
                "(become: true)."
            ) from error
        found: list[records.Record] = _readable(lambda: records.parse_records(data), path)
        return found

    def profiles(self) -> list[dict[str, Any]]:
        """What was learned about each (cgroup, server port, side), by cgroup and port."""
        fd = self.pinned.maps.get(PROFILES_MAP)
        if self.bpf is None or fd is None:
            return []
        table = PinnedMap(self.bpf, fd, str(self.folder / "maps" / PROFILES_MAP))
        shown = [table.show(key, value) for key, value in table.read().items()]
        try:
            paths = cgroup_paths(one["key"]["cgroup"] for one in shown)
            profiles = [_profile(one["key"], one["value"], paths) for one in shown]
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignError(
                f"Cannot understand {table.path}: its fields are not those of a profile "
                f"({error}). Use the version of the collection that loaded the BPF object."
            ) from error
        return sorted(profiles, key=lambda one: (one["cgroup"], one["port"], one["side"]))


def _readable(parse: Any, path: Path) -> Any:
    """The result of ``parse``; foreign bytes become an error that names the pin."""
    try:
        return parse()
    except records.RecordError as error:
        raise ForeignError(f"Cannot understand {path}: {error}.") from error


def _profile(key: dict[str, Any], value: dict[str, Any], paths: dict[int, str]) -> dict[str, Any]:
    """One profile; what it holds besides its key is the programs' own, and named by their BTF."""
    learned = {
        name: abi.reason_name(content) if name.endswith(REASON_FIELDS) else content
        for name, content in value.items()
        if not name.startswith("unused")
    }
    return {
        "cgroup": key["cgroup"],
        "cgroup_path": paths.get(key["cgroup"]),
        "port": key["port"],
        "side": abi.Side(key["side"]).name.lower(),
        "learned": learned,
    }


def all_connections(
    sockmap: list[records.Record], ring: list[records.Record]
) -> list[dict[str, Any]]:
    """Every connection in scope of either channel, as :func:`connections.join` has them."""
    found = connections.one_each(sockmap, ring)
    names = connections.Names(
        cgroup_paths(one.cgroup for one in found), netns_names() if found else {}
    )
    return connections.join(found, names)


# -- names of numbers -------------------------------------------------------------------------


def cgroup_paths(ids: Iterable[int]) -> dict[int, str]:
    """The paths below the cgroup2 mount of those ids that exist, by one walk of the tree."""
    wanted = set(ids)
    if not wanted:
        return {}
    try:
        root = mounts.cgroup2_root()
    except TcpSmError:
        return {}
    found: dict[int, str] = {}
    for inode, path in _walk(root):
        if inode in wanted:
            found[inode] = path.removeprefix(root) or "/"
            if len(found) == len(wanted):
                break
    return found


def _walk(root: str) -> Iterator[tuple[int, str]]:
    """(inode number, path) of every cgroup; those that vanish meanwhile are left out."""
    yield os.stat(root).st_ino, root
    waiting = [root]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    yield entry.inode(), entry.path


def netns_names(folders: Iterable[str] = NETNS_FOLDERS) -> dict[int, str]:
    """The names of network namespaces by inode number, as ``ip netns`` shows them."""
    found: dict[int, str] = {}
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found.setdefault(entry.stat().st_ino, entry.name)
    return found
