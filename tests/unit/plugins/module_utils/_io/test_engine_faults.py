# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every change that the loader makes is made to fail, and to be its last before kill -9.

The kernel, the pins and the links are real; only the n-th change is taken away from them.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.bpffs import PinFolder
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import Engine, Result
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.libbpf import Bpf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    ObjectSpec,
    parse_attach,
)

pytestmark = pytest.mark.root

FOLDER_CHANGES = ("pin", "mkdir", "unlink", "rmdir", "rename", "exchange")
BPF_CHANGES = ("link_create", "link_update", "prog_attach", "prog_detach")
MOST_CHANGES = 80
# Pins come in rows, one for each program and map. Beginning, middle and end of a row are enough.
PINS_PER_STEP = 3


class Saboteur:
    """Runs `action` in place of the n-th change of an engine; counts them."""

    def __init__(self, spec: ObjectSpec, nth: int, action: Callable[[], None]) -> None:
        self.count, self.pins, self.nth, self.action = 0, 0, nth, action
        bpf = Bpf()
        folder = PinFolder(bpf, spec.bpffs, spec.name)
        for target, names in ((folder, FOLDER_CHANGES), (bpf, BPF_CHANGES)):
            for name in names:
                setattr(target, name, self._guard(getattr(target, name)))
        self.engine = Engine(spec, bpf, folder=folder)

    def _guard(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            row = change.__name__ == "pin" and self.pins % PINS_PER_STEP != 0
            self.pins += change.__name__ == "pin"
            self.count += not row
            if self.count == self.nth and not row:
                self.action()
            return change(*arguments)

        return guarded


def fail() -> None:
    """What a broken disk would say, which no code path expects."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def die() -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def run(spec: ObjectSpec) -> Result:
    """Undisturbed."""
    return Engine(spec, Bpf()).run(check=False)


def snapshot(spec: ObjectSpec) -> dict[str, tuple[int, int, int]]:
    """Everything pinned, waste included: id, for links also program id and target id."""
    bpf, found = Bpf(), {}
    for top, folders, files in os.walk(spec.bpffs):
        if top == spec.bpffs:
            files = []  # noqa: PLW2901 the kernel's own maps.debug and progs.debug
        for folder in folders:
            found[os.path.join(top, folder) + "/"] = (0, 0, 0)
        for file in files:
            path = os.path.join(top, file)
            fd = bpf.obj_get(path)
            kind = bpf.kind(fd)
            if kind == "link":
                link = bpf.link_info(fd)
                found[path] = (link.id, link.prog_id, link.target_id)
            else:
                info: Any = bpf.prog_info(fd) if kind == "prog" else bpf.map_info(fd)
                found[path] = (info.id, 0, 0)
            os.close(fd)
    return found


Case = tuple[ObjectSpec, ObjectSpec]


@pytest.fixture(params=["install", "upgrade", "replace", "relink", "detach", "remove"])
def case(
    request: pytest.FixtureRequest, spec: ObjectSpec, objects: dict[str, str], cgroup: str
) -> Case:
    """(what is there, what is wanted)."""
    full = replace(spec, replace_maps=True)
    attach = [
        {"program": "count_events", "type": "cgroup", "cgroup": f"{cgroup}/c"},
        {"program": "pass_messages", "type": "map", "map": "sockets"},
    ]
    elsewhere = replace(full, attach=parse_attach(attach))
    absent = replace(full, state="absent")
    cases = {
        "install": (absent, full),
        "upgrade": (full, replace(full, path=objects["two"])),
        "replace": (elsewhere, replace(full, path=objects["wider"])),
        "relink": (full, elsewhere),
        "detach": (full, replace(full, state="loaded")),
        "remove": (full, absent),
    }
    return cases[request.param]


def test_does_a_failure_at_any_change_leave_all_or_nothing(case: Case) -> None:
    before, wanted = case
    rolled_back = 0
    run(before)
    saved = snapshot(before)
    for nth in range(1, MOST_CHANGES):
        saboteur = Saboteur(wanted, nth, fail)
        message = ""
        try:
            saboteur.engine.run(check=False)
        except TcpSmError as error:
            message = str(error)
        else:
            break
        assert "Input/output error" in message
        if snapshot(before) == saved:
            rolled_back += 1
        else:
            # Past the point of no return; only cleaning up is left, and the next run does it.
            _assert_whole_after_next_run(wanted)
            run(before)
            saved = snapshot(before)
    assert saboteur.count < nth
    assert rolled_back > 0
    _assert_whole_after_next_run(wanted)


def test_does_the_next_run_heal_what_kill_9_left_at_any_change(case: Case) -> None:
    before, wanted = case
    for nth in range(1, MOST_CHANGES):
        run(before)
        saved = programs_of(before)
        if not _killed(wanted, nth):
            break
        now = programs_of(before)
        assert now == saved or not now & saved, "a mixture of two versions is pinned"
        _assert_whole_after_next_run(wanted)
    assert nth > 1


def programs_of(spec: ObjectSpec) -> set[int]:
    """Ids of the programs pinned in place."""
    folder = f"{spec.bpffs}/{spec.name}/progs/"
    return {entry[0] for path, entry in snapshot(spec).items() if path.startswith(folder)} - {0}


def _killed(spec: ObjectSpec, nth: int) -> bool:
    """Run in a child that dies at its n-th change; False if it came to the end."""
    child = os.fork()
    if child == 0:
        Saboteur(spec, nth, die).engine.run(check=False)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert status in {0, signal.SIGKILL}
    return status != 0


def _assert_whole_after_next_run(spec: ObjectSpec) -> None:
    run(spec)
    result = run(spec)
    assert not result.changed
    folders = [item.name for item in os.scandir(spec.bpffs) if item.is_dir()]
    assert folders == ([] if spec.state == "absent" else [spec.name])
    pinned = {path for path in snapshot(spec) if not path.endswith("/")}
    shown = (*result.object["programs"], *result.object["maps"], *result.object["links"])
    assert pinned == {item["pin"] for item in shown}
    wanted_links = len(spec.attach) if spec.state == "attached" else 0
    assert len(result.object["links"]) == wanted_links
