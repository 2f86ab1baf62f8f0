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
from dataclasses import dataclass, field, replace
from typing import Any

from .._model import plan as planning
from .._model.errors import KernelError, MissingError
from .._model.plan import ObjectState, Plan
from .._model.spec import ObjectSpec
from .bpffs import PinFolder
from .change import Change
from .hints import hint
from .libbpf import Bpf
from .live import live_state
from .loading import Loader, Wanted, read_object
from .lock import LOCK_PATH, locked
from .mounts import require_bpffs


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
        self.sha256: str | None = None

    def run(self, check: bool) -> Result:
        """See apply."""
        try:
            return self._remove(check) if self.spec.state == "absent" else self._apply(check)
        except OSError as error:
            raise KernelError(
                f"Cannot bring BPF object {self.spec.name} to state "
                f"{self.spec.state}: {error}. {hint(error)}".rstrip()
            ) from error

    def _apply(self, check: bool) -> Result:
        """state=attached and state=loaded."""
        data, self.sha256 = read_object(self.spec)
        try:
            require_bpffs(self.spec.bpffs)
        except MissingError as error:
            if not check:
                raise
            # Nothing can be pinned yet, but the kernel can still judge the object.
            self.warnings.append(f"Check mode took no pins for granted: {error}")
        with self.folder.open() as pinned, contextlib.ExitStack() as stack:
            live = live_state(self.bpf, pinned)
            loader = Loader(self.bpf, self.spec, self.folder.path, stack)
            loader.skip_missing_cgroups = self.skip_missing_cgroups
            wanted = loader.load(data, live, pinned)
            self.warnings += loader.warnings
            plan = planning.make_plan(live, wanted.state)
            result = self._result(live, wanted, plan)
            if result.changed and not check:
                Change(self.bpf, self.folder, live, pinned).apply(plan, wanted)
        if not check:
            # Only now, as the descriptors above kept dropped links attached.
            with self.folder.open() as pinned:
                result.object = self._view(live_state(self.bpf, pinned), self.spec.state)
        return result

    def _remove(self, check: bool) -> Result:
        """state=absent."""
        try:
            require_bpffs(self.spec.bpffs)
        except MissingError:
            # Without a bpffs nothing can be pinned, and nothing needs removing.
            nothing = planning.describe(ObjectState(), "absent")
            return Result(False, self._view(ObjectState(), "absent"), nothing, nothing)
        with self.folder.open() as pinned:
            live = live_state(self.bpf, pinned)
            before = planning.describe(live, planning.state_word(live))
            after = planning.describe(ObjectState(), "absent")
            if self.folder.has_waste():
                before["leftovers"] = self.folder.staging
            changed = self.folder.exists() or self.folder.has_waste()
            if changed and not check:
                Change(self.bpf, self.folder, live, pinned).remove()
        return Result(changed, self._view(ObjectState(), "absent"), before, after)

    def _result(self, live: ObjectState, wanted: Wanted, plan: Plan) -> Result:
        word = self.spec.state
        target = wanted.state
        if not plan.reload:
            target = replace(target, programs=live.programs, maps=live.maps)
        before = planning.describe(live, planning.state_word(live))
        after = planning.describe(target, word)
        for name, entry in live.maps.items():
            if name in after["maps"] and target.maps[name].id != entry.id:
                after["maps"][name] += " (replaced)"
        waste = self.folder.has_waste()
        if waste:
            before["leftovers"] = self.folder.staging
        if not plan.changed:
            # `attached` without an attach list is `loaded` in fact; that is no difference.
            before["state"] = word
        changed = plan.changed or waste
        return Result(changed, self._view(target, word), before, after, self.warnings)

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
                    "pin": path("maps", one.name, content=one.mark),
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
