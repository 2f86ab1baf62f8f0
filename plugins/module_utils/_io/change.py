# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out a plan: all of it, or nothing.

Every step leaves behind how to undo it. Where programs change, a whole new set of pins is staged
and put in place at once; where only attachments change, links are made and removed in place.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from .._model.errors import KernelError
from .._model.plan import (
    DROP,
    KEEP,
    REPLACE,
    STRUCT_OPS,
    UPDATE,
    Link,
    ObjectState,
    Plan,
    Step,
)
from .._model.spec import Attach
from .bpffs import PinFolder, Pinned
from .hints import hint
from .libbpf import ATTACH_STRUCT_OPS, TRACE_ITER, Bpf
from .live import attached_as
from .loading import Wanted

# What a kernel answers that has no such link, or cannot exchange its program; 524 is ENOTSUPP.
UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, 524)


class Change:
    """One transaction on the pins of `folder`; `live` and `pinned` are what was there before."""

    def __init__(self, bpf: Bpf, folder: PinFolder, live: ObjectState, pinned: Pinned) -> None:
        self.bpf, self.folder, self.live, self.pinned = bpf, folder, live, pinned
        self.undo: list[Callable[[], object]] = []
        self.kept: set[str] = set()
        self.fds = contextlib.ExitStack()

    def apply(self, plan: Plan, wanted: Wanted) -> None:
        """Bring the object to `wanted`."""
        self.folder.clean_waste()
        with self.fds, self._rollback():
            if plan.reload:
                self._replace_all(plan, wanted)
            else:
                self._change_links(plan, wanted)
        # Only now do replaced links and programs go; the new ones already run.
        self.folder.clean_waste()
        self._detach_ops()

    def remove(self) -> None:
        """Detach and unpin everything."""
        self.folder.clean_waste()
        with self.fds, self._rollback():
            for link in self.live.links.values():
                if not link.pinned:
                    self._detach(link)
            if self.folder.exists():
                self.folder.retire()
        self.folder.clean_waste()
        self._detach_ops()

    def _detach_ops(self) -> None:
        """End what was dropped at once. A link without a pin goes a while later, and until then
        nothing else can be attached in its place. (Before Linux 6.11 it takes that while.)"""
        for key, fd in self.pinned.links.items():
            if self.live.links[key].type == STRUCT_OPS and key not in self.kept:
                with contextlib.suppress(OSError):
                    self.bpf.link_detach(fd)

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

    def _replace_all(self, plan: Plan, wanted: Wanted) -> None:
        """Stage every pin anew, move the links to the new programs, put the stage in place."""
        self.undo.append(self.folder.clean_waste)
        self.folder.stage()
        for name, fd in wanted.progs.items():
            self.folder.pin(fd, self.folder.pin_path("progs", name, staged=True))
        for name, fd in wanted.maps.items():
            content = wanted.state.maps[name].mark
            self.folder.pin(fd, self.folder.pin_path("maps", name, staged=True, content=content))
        for step in plan.steps:
            if step.action != DROP:
                self._stage_link(step, wanted)
        self._drop_unlinked(plan)
        self.folder.commit()

    def _stage_link(self, step: Step, wanted: Wanted) -> None:
        """Pin a link in the stage: the same one if it can be kept, otherwise a new one."""
        path = self.folder.pin_path("links", step.key, staged=True)
        old = self.pinned.links.get(step.key)
        if old is not None and self._keeps(step, old, wanted):
            self.kept.add(step.key)
            self.folder.pin(old, path)
        elif step.action != KEEP:
            self._pin_new(step.key, path, wanted)

    def _change_links(self, plan: Plan, wanted: Wanted) -> None:
        """The programs stay; only attachments change, in place. Drops come last."""
        # What was loaded is the same code once more; the pinned instance goes on running.
        wanted.progs, wanted.maps, wanted.ops = self.pinned.progs, self.pinned.maps, {}
        for step in plan.steps:
            if step.action == KEEP:
                self.kept.add(step.key)
            elif step.action != DROP:
                self._change_link(step, wanted)
        self._drop_unlinked(plan)
        for step in plan.steps:
            if step.action == DROP and step.key in self.pinned.links:
                self._unpin_link(step.key)

    def _change_link(self, step: Step, wanted: Wanted) -> None:
        """Update, create or replace one link in place."""
        old = self.pinned.links.get(step.key)
        if old is not None and self._keeps(step, old, wanted):
            self.kept.add(step.key)
            return
        if old is not None:
            self._unpin_link(step.key)
        self._pin_new(step.key, self.folder.pin_path("links", step.key), wanted)

    def _keeps(self, step: Step, link_fd: int, wanted: Wanted) -> bool:
        """Does the link serve on, with its program exchanged if that is the step?"""
        if step.action != UPDATE:
            return step.action == KEEP
        item, link = wanted.attach[step.key], self.live.links[step.key]
        if item.type == STRUCT_OPS:
            new, old = self._set_ops(item, wanted), self._held(self.bpf.map_fd, link.prog_id)
        else:
            new, old = wanted.progs[item.program], self._program(link.prog_id)
        try:
            self.bpf.link_update(link_fd, new)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        if old is not None:
            self.undo.append(lambda: self.bpf.link_update(link_fd, old))
        return True

    def _pin_new(self, key: str, path: str, wanted: Wanted) -> None:
        """Attach and pin."""
        item = wanted.attach[key]
        with attempt(item):
            fd = self._attach(item, wanted)
        if fd is None:
            return
        try:
            self.folder.pin(fd, path)
            self.undo.append(lambda: self.folder.unlink(path))
        finally:
            os.close(fd)

    def _set_ops(self, item: Attach, wanted: Wanted) -> int:
        """The struct_ops map that a link shall be moved to, with its programs in it.

        libbpf gives a map its programs only when it attaches it, and cannot move a pinned link.
        That attachment is refused, since the old one is in place, or ends at once.
        """
        if item.map in wanted.ops:
            try:
                os.close(self.bpf.attach_struct_ops(wanted.ops[item.map]))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EBUSY):
                    raise
        return wanted.maps[item.map]

    def _program(self, prog_id: int) -> int | None:
        """A descriptor of a program; none of id zero."""
        return self._held(self.bpf.prog_fd, prog_id)

    def _held(self, descriptor: Callable[[int], int | None], number: int) -> int | None:
        """A descriptor, open until the transaction ends, so that undoing can use it."""
        fd = descriptor(number) if number else None
        if fd is not None:
            self.fds.callback(os.close, fd)
        return fd

    def _unpin_link(self, key: str) -> None:
        """Remove a link's pin; it stays attached until its descriptor in `pinned` closes."""
        path = self.folder.pin_path("links", key)
        self.folder.unlink(path)
        self.undo.append(lambda: self.folder.pin(self.pinned.links[key], path))

    def _attach(self, item: Attach, wanted: Wanted) -> int | None:
        """A new link's descriptor; None for a program that sits on its map without a link."""
        if item.type == STRUCT_OPS:
            if item.map in wanted.ops:
                return self.bpf.attach_struct_ops(wanted.ops[item.map])
            return self.bpf.link_create(wanted.maps[item.map], 0, ATTACH_STRUCT_OPS)
        program, attach_type = wanted.progs[item.program], wanted.attach_types[item.program]
        if item.type == "cgroup":
            return self.bpf.link_create(program, wanted.cgroups[item.key], attach_type)
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

    def _drop_unlinked(self, plan: Plan) -> None:
        """Detach the dropped programs that no link holds."""
        for step in plan.steps:
            link = self.live.links.get(step.key)
            if link and not link.pinned and step.action in (DROP, REPLACE):
                self._detach(link)

    def _detach(self, link: Link) -> None:
        map_fd = self.pinned.maps[link.target.removeprefix("map ")]
        program = self.pinned.progs[link.program]
        kind = attached_as(self.bpf, self.live.programs[link.program], map_fd)
        if kind is not None:
            self.bpf.prog_detach(program, map_fd, kind)
            self.undo.append(lambda: self.bpf.prog_attach(program, map_fd, kind))


@contextlib.contextmanager
def attempt(item: Attach) -> Iterator[None]:
    """Turn the kernel's refusal to attach into a message."""
    try:
        yield
    except OSError as error:
        advice = hint(error)
        if error.errno == errno.EPERM and item.type == "cgroup":
            advice = (
                "Another program may be attached exclusively to this cgroup or to one above it "
                f"(bpftool cgroup tree shows it). {advice}"
            )
        raise KernelError(
            f"Cannot attach {item} to {item.target}: {error.strerror}. {advice} "
            "Everything was put back."
        ) from error
