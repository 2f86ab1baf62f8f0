# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one BPF object to a wanted state: what module bpf_object and the boot-time runtime call.

The object is loaded on every run, without pinning: the kernel verifies it and computes the
program tags, which tell whether it is already there. Check mode does the same and stops before
the first change. A change is staged beside the pins and put in place at once (see bpffs.py);
whatever fails before that is undone in reverse order.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .._model import plan as planning
from .._model.btf import Btf, parse_btf
from .._model.elf import check_bpf_elf
from .._model.errors import InputError, KernelError, MissingError
from .._model.plan import DROP, KEEP, REPLACE, UPDATE, Link, Map, ObjectState, Plan, Program, Step
from .._model.spec import Attach, ObjectSpec, unescape
from .bpffs import PinFolder, Pinned
from .libbpf import SOCKMAP_PROG_TYPES, TRACE_ITER, Bpf, BpfObject, MapInfo
from .lock import LOCK_PATH, locked
from .mounts import has_cgroup_id, open_cgroup, require_bpffs

LOG_TAIL_LINES = 30
RODATA = ".rodata"
# Sections whose maps belong to the code: replaced with it, without asking.
INTERNAL = "."
SOCKMAPS = ("sockmap", "sockhash")
UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, 524)


@dataclass
class Result:
    """Outcome. `object` has the shape of the module's return value; `before` and `after` are
    its diff; `warnings` are what check mode could not predict, and skipped cgroups."""

    changed: bool
    object: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def apply(
    spec: ObjectSpec,
    check: bool = False,
    skip_missing_cgroups: bool = False,
    lock_path: str = LOCK_PATH,
) -> Result:
    """Bring the object to `spec`; with `check`, only say what would happen.

    Raises TcpSmError with everything as before. `skip_missing_cgroups` is for boot time, when
    containers have not started: such attachments are left out, with a warning.
    """
    try:
        with locked(spec.lock_timeout, lock_path):
            return Engine(spec, Bpf(), skip_missing_cgroups).run(check)
    except MissingError as error:
        if not check:
            raise
        return _predict_from_nothing(spec, str(error))


def _predict_from_nothing(spec: ObjectSpec, why: str) -> Result:
    """Check mode before the first run: what this needs is made by tasks that did not run."""
    nothing = planning.describe(ObjectState(), "absent")
    wanted = dict(nothing, state=spec.state)
    if spec.state == "attached":
        wanted["links"] = {item.key: item.target for item in spec.attach}
    view: dict[str, Any] = {
        "name": spec.name,
        "state": spec.state,
        "sha256": spec.sha256 or None,
        "programs": [],
        "maps": [],
        "links": [],
    }
    changed = spec.state != "absent"
    warnings = [f"Check mode cannot predict the rest: {why}"] if changed else []
    return Result(changed, view, nothing, wanted, warnings)


@dataclass
class Wanted:
    """A loaded instance, and descriptors and attach types by name."""

    state: ObjectState
    progs: dict[str, int]
    maps: dict[str, int]
    attach_types: dict[str, int]
    attach: dict[str, Attach]
    cgroups: dict[str, int]


class Engine:
    """One run for one object, under the lock."""

    def __init__(
        self,
        spec: ObjectSpec,
        bpf: Bpf,
        skip_missing_cgroups: bool = False,
        folder: PinFolder | None = None,
    ) -> None:
        self.spec = spec
        self.bpf = bpf
        self.folder = folder or PinFolder(bpf, spec.bpffs, spec.name)
        self.skip_missing_cgroups = skip_missing_cgroups
        self.warnings: list[str] = []
        self.undo: list[Callable[[], object]] = []
        self.fds = contextlib.ExitStack()
        self.waste = False
        self.sha256: str | None = None

    def run(self, check: bool) -> Result:
        """See apply."""
        try:
            with self.fds:
                return self._run(check)
        except OSError as error:
            raise KernelError(
                f"Cannot bring BPF object {self.spec.name} to state "
                f"{self.spec.state}: {error}. {_hint(error)}".rstrip()
            ) from error

    def _run(self, check: bool) -> Result:
        if self.spec.state == "absent":
            return self._remove(check)
        data = self._read_object()
        try:
            require_bpffs(self.spec.bpffs)
        except MissingError as error:
            if not check:
                raise
            # Nothing can be pinned yet, but the kernel can still judge the object.
            self.warnings.append(f"Check mode took no pins for granted: {error}")
        with self.folder.open() as pinned, contextlib.ExitStack() as stack:
            live = self._live_state(pinned)
            self.waste = self.folder.has_waste()
            wanted = self._load(data, live, pinned, stack)
            steps = planning.make_plan(live, wanted.state)
            if not check:
                self.folder.clean_waste()
                if steps.changed:
                    self._change(steps, live, pinned, wanted)
            result = self._result(live, wanted, steps)
        if not check:
            # Only now, as the descriptors above kept dropped links attached.
            with self.folder.open() as pinned:
                result.object = self._view(self._live_state(pinned), self.spec.state)
        return result

    # -- reading -----------------------------------------------------------------------------

    def _read_object(self) -> bytes:
        """The object file's bytes, checked; they are what is loaded, not the file again."""
        path = self.spec.path
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            raise MissingError(
                f"Cannot load {path}: there is no such file. Copy the BPF object there first."
            ) from None
        except OSError as error:
            raise InputError(
                f"Cannot read {path}: {error.strerror}. path must name a BPF object file."
            ) from error
        self.sha256 = hashlib.sha256(data).hexdigest()
        if self.spec.sha256 and self.sha256 != self.spec.sha256:
            raise InputError(
                f"Refused to load {path}: its sha256 is {self.sha256}, expected "
                f"{self.spec.sha256}. Copy the right file, or correct sha256."
            )
        check_bpf_elf(data, path)
        return data

    def _live_state(self, pinned: Pinned) -> ObjectState:
        programs, maps, links = {}, {}, {}
        for name, fd in pinned.progs.items():
            info = self.bpf.prog_info(fd)
            programs[name] = Program(name, info.tag, info.type, info.id, frozenset(info.map_ids))
        for name, fd in pinned.maps.items():
            maps[name] = self._live_map(name, fd)
        names = {entry.id: name for name, entry in maps.items()}
        for key, fd in pinned.links.items():
            links[key] = self._live_link(key, fd, names)
        state = ObjectState(programs, maps, links)
        return replace(state, links={**links, **self._unlinked(state, pinned)})

    def _live_map(self, name: str, fd: int) -> Map:
        info = self.bpf.map_info(fd)
        content = (
            _digest(self.bpf.lookup(fd, bytes(4), info.value_size) or b"")
            if name.startswith(RODATA)
            else ""
        )
        return Map(
            name,
            info.type,
            info.key_size,
            info.value_size,
            info.max_entries,
            info.flags,
            map_layout(self.bpf, info),
            content,
            info.id,
        )

    def _live_link(self, key: str, fd: int, map_names: dict[int, str]) -> Link:
        info = self.bpf.link_info(fd)
        program, _, cgroup = key.partition("@")
        target, target_id = info.type, info.target_id
        if info.type == "cgroup":
            target = f"cgroup {unescape(cgroup)}"
            # A deleted cgroup lets go of its link after a while, and its path may be taken again.
            target_id = target_id if has_cgroup_id(unescape(cgroup), target_id) else 0
        elif info.type in ("map", "iter"):
            target = f"{info.type} {map_names.get(info.target_id, '')}".rstrip()
        return Link(key, program, info.type, target, target_id, info.prog_id, info.id)

    def _unlinked(self, state: ObjectState, pinned: Pinned) -> dict[str, Link]:
        """Programs that sit on a map without a link, as before Linux 6.10."""
        found = {}
        for map_name, entry in state.maps.items():
            if entry.type not in SOCKMAPS:
                continue
            for name, program in state.programs.items():
                if name in state.links or program.type not in SOCKMAP_PROG_TYPES:
                    continue
                for attach_type in _sockmap_attach_types(program.type):
                    with contextlib.suppress(OSError):
                        if self.bpf.prog_attached(pinned.maps[map_name], attach_type) == program.id:
                            found[name] = Link(
                                name,
                                name,
                                "map",
                                f"map {map_name}",
                                entry.id,
                                program.id,
                                pinned=False,
                            )
        return found

    # -- the wanted state --------------------------------------------------------------------

    def _load(
        self,
        data: bytes,
        live: ObjectState,
        pinned: Pinned,
        stack: contextlib.ExitStack,
    ) -> Wanted:
        """Load a second instance on top of the reusable pinned maps."""
        try:
            loaded = stack.enter_context(self.bpf.open_object(data, self.spec.name))
        except OSError as error:
            raise InputError(
                f"Cannot open BPF object {self.spec.path}: {error.strerror or error}. "
                f"{self._said()}"
            ) from error
        maps = self._declare_maps(loaded, live, pinned)
        handles = loaded.programs()
        self._check_names(handles, maps)
        try:
            loaded.load()
        except OSError as error:
            raise self._load_failure(loaded, error) from error
        progs = {name: loaded.program_fd(handle) for name, handle in handles.items()}
        map_fds = {name: loaded.map_fd(handle) for name, handle in loaded.maps().items()}
        programs = {}
        for name, fd in progs.items():
            info = self.bpf.prog_info(fd)
            programs[name] = Program(name, info.tag, info.type, info.id, frozenset(info.map_ids))
        maps = {
            name: replace(entry, id=self.bpf.map_info(map_fds[name]).id)
            for name, entry in maps.items()
        }
        types = {name: loaded.attach_type(handle) for name, handle in handles.items()}
        wanted = Wanted(ObjectState(programs, maps), progs, map_fds, types, {}, {})
        self._add_links(wanted, stack)
        return wanted

    def _declare_maps(
        self,
        loaded: BpfObject,
        live: ObjectState,
        pinned: Pinned,
    ) -> dict[str, Map]:
        """Size the maps, decide which pinned ones serve again; InputError on a conflict."""
        raw = loaded.btf()
        btf = parse_btf(raw) if raw else None
        handles = loaded.maps()
        for name in self.spec.max_entries:
            if name not in handles or name.startswith(INTERNAL):
                raise InputError(
                    f"max_entries: the object {self.spec.path} has no map {name!r}; "
                    f"it has {_names(handles)}"
                )
        maps = {}
        for name, handle in handles.items():
            if name in self.spec.max_entries:
                loaded.set_max_entries(handle, self.spec.max_entries[name])
            maps[name] = self._declared_map(loaded, name, handle, btf)
            if maps[name].type == "struct_ops":
                raise InputError(
                    f"The object {self.spec.path} has struct_ops map {name!r}, which "
                    "this module does not support."
                )
        conflicts = []
        for name, entry in maps.items():
            why = planning.map_conflict(live.maps[name], entry) if name in live.maps else "new"
            if not why:
                loaded.reuse(handles[name], pinned.maps[name])
            elif why != "new" and not name.startswith(INTERNAL) and not self.spec.replace_maps:
                conflicts.append(f"map {name}: {why}")
        if conflicts:
            raise InputError(
                f"The pins in {self.folder.path} are of a version of {self.spec.name} whose maps "
                f"do not fit this object: {'; '.join(conflicts)}. Nothing was changed. Set "
                "replace_maps=true to start with empty maps in their place, or remove the old "
                "version with state=absent."
            )
        return maps

    def _declared_map(self, loaded: BpfObject, name: str, handle: int, btf: Btf | None) -> Map:
        declared = loaded.map_declared(handle)
        key, value = declared.pop("key_type_id"), declared.pop("value_type_id")
        content = _digest(loaded.initial_value(handle)) if name.startswith(RODATA) else ""
        return Map(
            name, layout=_layout(btf, key, value, declared["type"]), content=content, **declared
        )

    def _check_names(self, programs: dict[str, int], maps: dict[str, Map]) -> None:
        for item in self.spec.attach:
            if item.program not in programs:
                raise InputError(
                    f"attach: the object {self.spec.path} has no program "
                    f"{item.program!r}; it has {_names(programs)}"
                )
            if item.map and item.map not in maps:
                raise InputError(
                    f"attach: the object {self.spec.path} has no map {item.map!r} "
                    f"for program {item.program}; it has {_names(maps)}"
                )

    def _add_links(self, wanted: Wanted, stack: contextlib.ExitStack) -> None:
        """Resolve the attach list to targets."""
        links = {}
        for item in self.spec.attach:
            target_id = wanted.state.maps[item.map].id if item.map else 0
            if item.type == "cgroup":
                try:
                    fd, target_id = open_cgroup(item.cgroup)
                except InputError as error:
                    if not self.skip_missing_cgroups:
                        raise
                    self.warnings.append(str(error))
                    continue
                stack.callback(os.close, fd)
                wanted.cgroups[item.key] = fd
            if self.spec.state == "attached":
                links[item.key] = Link(item.key, item.program, item.type, item.target, target_id)
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
        parts += [*self._missing_features(loaded), _hint(error), "Nothing was changed."]
        return KernelError("\n".join(part for part in parts if part), log[-65536:])

    def _missing_features(self, loaded: BpfObject) -> Iterator[str]:
        """Program and map types of the object that this kernel does not know."""
        if not os.path.exists("/sys/kernel/btf/vmlinux"):
            yield (
                "The kernel has no type information (/sys/kernel/btf/vmlinux): use one with "
                "CONFIG_DEBUG_INFO_BTF=y."
            )
        with contextlib.suppress(OSError, ValueError):
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

    # -- changing ----------------------------------------------------------------------------

    def _change(self, steps: Plan, live: ObjectState, pinned: Pinned, wanted: Wanted) -> None:
        """Carry out the plan: all of it, or nothing."""
        with self._rollback():
            if steps.reload:
                self._change_all(steps, live, pinned, wanted)
            else:
                self._change_links(steps, live, pinned, wanted)
        if steps.reload:
            # Only now do replaced links and programs go; the new ones already run.
            self.folder.clean_waste()

    @contextlib.contextmanager
    def _rollback(self) -> Iterator[None]:
        """Undo in reverse order what was done, if not everything could be done."""
        try:
            yield
        except BaseException:
            for action in reversed(self.undo):
                with contextlib.suppress(OSError):
                    action()
            raise
        finally:
            self.undo.clear()

    def _change_all(self, steps: Plan, live: ObjectState, pinned: Pinned, wanted: Wanted) -> None:
        """Stage every pin anew, move the links to the new programs, put the stage in place."""
        self.undo.append(self.folder.clean_waste)
        self.folder.stage()
        for folder, fds in (("progs", wanted.progs), ("maps", wanted.maps)):
            for name, fd in fds.items():
                self.folder.pin(fd, self.folder.pin_path(folder, name, staged=True))
        for step in steps.steps:
            if step.action != DROP:
                self._link(step, live, pinned, wanted, staged=True)
        self._drop_unlinked(steps, live, pinned)
        self.folder.commit()

    def _change_links(
        self,
        steps: Plan,
        live: ObjectState,
        pinned: Pinned,
        wanted: Wanted,
    ) -> None:
        """The programs stay; only attachments change, in place. Drops come last."""
        current = replace(wanted.state, programs=live.programs)
        wanted = replace(wanted, state=current, progs=pinned.progs)
        for step in steps.steps:
            if step.action not in (KEEP, DROP):
                self._link(step, live, pinned, wanted, staged=False)
        self._drop_unlinked(steps, live, pinned)
        for step in steps.steps:
            if step.action == DROP and step.key in pinned.links:
                self._unpin_link(step.key, pinned)

    def _link(
        self, step: Step, live: ObjectState, pinned: Pinned, wanted: Wanted, staged: bool
    ) -> None:
        """Keep, update, create or replace one attachment and pin it."""
        action, key = step.action, step.key
        item, path = wanted.attach[key], self.folder.pin_path("links", key, staged)
        program = wanted.progs[item.program]
        old = pinned.links.get(key)
        if action == UPDATE and old is not None and self._update(old, live.links[key], program):
            action = KEEP
        if action == KEEP and old is not None:
            if staged:
                self.folder.pin(old, path)
            return
        if action == KEEP:
            return
        with self._attempt(item):
            fd = self._attach(item, program, wanted, key)
        if fd is None:
            return
        try:
            if old is not None and not staged:
                self._unpin_link(key, pinned)
            self.folder.pin(fd, path)
            self.undo.append(lambda: self.folder.unlink(path))
        finally:
            os.close(fd)

    def _update(self, link_fd: int, link: Link, program_fd: int) -> bool:
        """Exchange the program of a link in one step; False where the kernel cannot."""
        old = self._program(link.prog_id)
        try:
            self.bpf.link_update(link_fd, program_fd)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        if old is not None:
            self.undo.append(lambda: self.bpf.link_update(link_fd, old))
        return True

    def _program(self, prog_id: int) -> int | None:
        """A descriptor, open until the run ends, so that undoing can use it."""
        fd = self.bpf.prog_fd(prog_id) if prog_id else None
        if fd is not None:
            self.fds.callback(os.close, fd)
        return fd

    def _unpin_link(self, key: str, pinned: Pinned) -> None:
        """Remove a link's pin; it stays attached until its descriptor in `pinned` closes."""
        path = self.folder.pin_path("links", key)
        self.folder.unlink(path)
        self.undo.append(lambda: self.folder.pin(pinned.links[key], path))

    def _attach(self, item: Attach, program: int, wanted: Wanted, key: str) -> int | None:
        """A new link's descriptor; None for a program that sits on its map without a link."""
        attach_type = wanted.attach_types[item.program]
        if item.type == "cgroup":
            return self.bpf.link_create(program, wanted.cgroups[key], attach_type)
        if item.type == "tracing":
            return self.bpf.link_create(program, 0, attach_type)
        if item.type == "iter":
            target = wanted.maps[item.map] if item.map else None
            return self.bpf.link_create(program, 0, TRACE_ITER, target)
        return self._attach_to_map(program, wanted.maps[item.map], attach_type)

    def _attach_to_map(self, program: int, map_fd: int, attach_type: int) -> int | None:
        try:
            return self.bpf.link_create(program, map_fd, attach_type)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        # Linux before 6.10 has no links to sockmaps.
        old = self._program(self.bpf.prog_attached(map_fd, attach_type))
        self.bpf.prog_attach(program, map_fd, attach_type)
        self.undo.append(
            (lambda: self.bpf.prog_detach(program, map_fd, attach_type))
            if old is None
            else (lambda: self.bpf.prog_attach(old, map_fd, attach_type))
        )
        return None

    def _drop_unlinked(self, steps: Plan, live: ObjectState, pinned: Pinned) -> None:
        """Detach the dropped programs that no link holds."""
        for step in steps.steps:
            link = live.links.get(step.key)
            if link and not link.pinned and step.action in (DROP, REPLACE):
                self._detach(link, pinned)

    def _detach(self, link: Link, pinned: Pinned) -> None:
        program = pinned.progs[link.program]
        map_fd = pinned.maps[link.target.removeprefix("map ")]
        kind = next(
            kind
            for kind in _sockmap_attach_types(self.bpf.prog_info(program).type)
            if self.bpf.prog_attached(map_fd, kind) == link.prog_id
        )
        self.bpf.prog_detach(program, map_fd, kind)
        self.undo.append(lambda: self.bpf.prog_attach(program, map_fd, kind))

    @contextlib.contextmanager
    def _attempt(self, item: Attach) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = _hint(error)
            if error.errno == errno.EPERM and item.type == "cgroup":
                hint = (
                    "Another program may be attached exclusively to this cgroup or to one "
                    f"above it (bpftool cgroup tree shows it). {hint}"
                )
            raise KernelError(
                f"Cannot attach program {item.program} to {item.target}: "
                f"{error.strerror}. {hint} Everything was put back."
            ) from error

    def _remove(self, check: bool) -> Result:
        """state=absent."""
        try:
            require_bpffs(self.spec.bpffs)
        except MissingError:
            # Without a bpffs nothing can be pinned, and nothing needs removing.
            nothing = planning.describe(ObjectState(), "absent")
            return Result(False, self._view(ObjectState(), "absent"), nothing, nothing)
        with self.folder.open() as pinned:
            live = self._live_state(pinned)
            before = planning.describe(live, planning.state_word(live))
            after = planning.describe(ObjectState(), "absent")
            waste = self.folder.has_waste()
            changed = self.folder.exists() or waste
            if changed and not check:
                self._remove_pins(live, pinned)
            if waste:
                before["leftovers"] = self.folder.staging
        return Result(changed, self._view(ObjectState(), "absent"), before, after)

    def _remove_pins(self, live: ObjectState, pinned: Pinned) -> None:
        self.folder.clean_waste()
        with self._rollback():
            for link in live.links.values():
                if not link.pinned:
                    self._detach(link, pinned)
            if self.folder.exists():
                self.folder.retire()
        self.folder.clean_waste()

    # -- reporting ---------------------------------------------------------------------------

    def _result(self, live: ObjectState, wanted: Wanted, steps: Plan) -> Result:
        word = self.spec.state
        target = wanted.state if steps.reload else replace(wanted.state, programs=live.programs)
        before = planning.describe(live, planning.state_word(live))
        after = planning.describe(target, word)
        for name, entry in live.maps.items():
            if name in after["maps"] and target.maps[name].id != entry.id:
                after["maps"][name] += " (replaced)"
        if self.waste:
            before["leftovers"] = self.folder.staging
        if not steps.changed:
            # `attached` without an attach list is `loaded` in fact; that is no difference.
            before["state"] = word
        return Result(
            steps.changed or self.waste, self._view(target, word), before, after, self.warnings
        )

    def _view(self, state: ObjectState, word: str) -> dict[str, Any]:
        """The module's return value."""
        path = self.folder.pin_path
        return {
            "name": self.spec.name,
            "state": word,
            "sha256": self.sha256,
            "programs": [
                {
                    "name": one.name,
                    "id": one.id,
                    "tag": one.tag,
                    "type": one.type,
                    "pin": path("progs", one.name),
                }
                for _key, one in sorted(state.programs.items())
            ],
            "maps": [
                {
                    "name": one.name,
                    "id": one.id,
                    "type": one.type,
                    "key_size": one.key_size,
                    "value_size": one.value_size,
                    "max_entries": one.max_entries,
                    "pin": path("maps", one.name),
                }
                for _key, one in sorted(state.maps.items())
            ],
            "links": [
                {
                    "program": one.program,
                    "type": one.type,
                    "target": one.target,
                    "id": one.id or None,
                    "pin": path("links", key) if one.pinned else None,
                }
                for key, one in sorted(state.links.items())
            ],
        }


def map_layout(bpf: Bpf, info: MapInfo) -> object:
    """The layout of a live map's key and value; None where it has no BTF."""
    if not info.btf_id:
        return None
    return _layout(
        parse_btf(bpf.btf_of(info.btf_id)), info.key_type_id, info.value_type_id, info.type
    )


def _layout(btf: Btf | None, key: int, value: int, kind: str) -> object:
    # libbpf drops the BTF of sockmaps and the like: the kernel would refuse it.
    if btf is None or not (key or value) or kind in UNTYPED:
        return None
    return (btf.layout(key) if key else None, btf.layout(value) if value else None)


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


def _sockmap_attach_types(program_type: str) -> tuple[int, ...]:
    """enum bpf_attach_type values: sk_msg verdict; sk_skb parser, stream verdict, verdict."""
    return (7,) if program_type == "sk_msg" else (4, 5, 38)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _names(found: dict[str, Any]) -> str:
    return ", ".join(sorted(name for name in found if not name.startswith("."))) or "none"


def _hint(error: OSError) -> str:
    """What to do about an errno."""
    return {
        errno.EPERM: "Run as root with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN; "
        "some kernels forbid a program type altogether.",
        errno.EACCES: "",
        errno.ENOMEM: "The kernel is short of memory for maps: lower max_entries.",
        errno.E2BIG: "A map or program is larger than the kernel allows: lower max_entries.",
        errno.EBUSY: "Another program is attached there: detach it first.",
        errno.ENOSPC: "",
    }.get(error.errno or 0, "")
