# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are struct_ops maps attached, recognised, exchanged and taken away? In the real kernel, with a
type that every kernel has: a congestion control is there while its link is.

Libraries that cannot do it must say so: they are met on Debian 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import engine
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.bpffs import PinFolder
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import Result
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.hints import OPS_LIBBPF
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.libbpf import Bpf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.status import Status
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    InputError,
    KernelError,
    MissingError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    ObjectSpec,
    parse_attach,
)

pytestmark = pytest.mark.root

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
LINK = {"type": "struct_ops", "map": "unit_congestion"}
Apply = Callable[..., Result]


def available() -> set[str]:
    """Of the congestion controls in the kernel, those of the fixture."""
    return {name for name in AVAILABLE.read_text().split() if name.startswith("tcp_sm_")}


@pytest.fixture
def apply(tmp_path: Path) -> Apply:
    """engine.apply under a lock of this test's own."""

    def run(spec: ObjectSpec, check: bool = False) -> Result:
        return engine.apply(spec, check, lock_path=str(tmp_path / "lock"))

    return run


@pytest.fixture
def wanted(objects: dict[str, str], bpffs: str) -> ObjectSpec:
    """The fixture, attached."""
    raw = {"name": "unit", "path": objects["ops"], "bpffs": bpffs, "attach": [LINK]}
    return ObjectSpec.parse(raw)


@pytest.fixture
def ops(wanted: ObjectSpec, apply: Apply) -> Any:
    """The fixture, where the library can do it; gone at the end."""
    if Bpf().version < OPS_LIBBPF:
        pytest.skip("SKIPPED: libbpf is too old for struct_ops by link")
    yield wanted
    apply(replace(wanted, state="absent"))
    assert available() == set()


def link_of(result: Result) -> dict[str, Any]:
    (link,) = result.object["links"]
    found: dict[str, Any] = link
    return found


def test_is_an_attached_map_there_and_recognised(ops: ObjectSpec, apply: Apply) -> None:
    predicted = apply(ops, check=True)
    assert available() == set()
    first = apply(ops)
    assert available() == {"tcp_sm_unit"}
    assert (predicted.before, predicted.after) == (first.before, first.after)
    assert predicted.object["maps"][0]["pin"] == first.object["maps"][0]["pin"]
    link = link_of(first)
    assert (link["program"], link["type"], link["target"]) == (
        *("unit_congestion", "struct_ops", "struct_ops"),
    )
    assert Path(link["pin"]) == Path(ops.bpffs, "unit", "links", "unit_congestion")
    again = apply(ops)
    assert not again.changed
    assert again.object == first.object
    assert again.before == again.after == first.after


def test_does_the_status_show_it(ops: ObjectSpec, apply: Apply) -> None:
    done = apply(ops)
    with Status(ops.bpffs, "unit") as status:
        shown = status.objects()
    assert shown["state"] == "attached"
    assert shown["links"] == done.object["links"]
    assert shown["maps"] == done.object["maps"]


@pytest.mark.parametrize("other", ["ops two", "ops swapped"])
def test_is_it_exchanged_without_a_gap(
    ops: ObjectSpec, apply: Apply, objects: dict[str, str], other: str
) -> None:
    first = link_of(apply(ops))
    change = replace(ops, path=objects[other])
    predicted = apply(change, check=True)
    second = apply(change)
    assert predicted.changed
    assert (predicted.before, predicted.after) == (second.before, second.after)
    assert link_of(second)["id"] == first["id"]
    assert available() == {"tcp_sm_unit"}
    assert not apply(change).changed
    bpf = Bpf()
    fd = bpf.obj_get(first["pin"])
    assert bpf.link_info(fd).target_id == second.object["maps"][0]["id"]


def test_is_a_member_that_is_no_function_seen(
    ops: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    """Another name cannot take the place of the old one, so there is another link."""
    first = link_of(apply(ops))
    change = replace(ops, path=objects["ops renamed"])
    assert apply(change).changed
    assert available() == {"tcp_sm_other"}
    assert link_of(apply(change))["id"] != first["id"]
    assert not apply(change).changed


def test_is_a_map_that_was_only_loaded_attached_later(ops: ObjectSpec, apply: Apply) -> None:
    loaded = replace(ops, state="loaded")
    assert apply(loaded).changed
    assert available() == set()
    assert not apply(loaded).changed
    assert apply(ops).changed
    assert available() == {"tcp_sm_unit"}
    assert not apply(ops).changed
    # Now it has its programs, and comes back without being loaded anew.
    assert apply(loaded).changed
    assert available() == set()
    programs = apply(loaded).object["programs"]
    again = apply(ops)
    assert again.object["programs"] == programs
    assert available() == {"tcp_sm_unit"}


def test_is_everything_put_back_when_the_exchange_fails(
    ops: ObjectSpec, apply: Apply, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = apply(ops)
    commit = PinFolder.commit

    def fail(_folder: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PinFolder, "commit", fail)
    with pytest.raises(KernelError, match="Input/output error"):
        apply(replace(ops, path=objects["ops two"]))
    monkeypatch.setattr(PinFolder, "commit", commit)
    assert available() == {"tcp_sm_unit"}
    again = apply(ops)
    assert not again.changed
    assert again.object == first.object


def test_is_a_type_that_nobody_has_named(
    ops: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    with pytest.raises(KernelError) as error:
        apply(replace(ops, path=objects["ops unknown"]))
    assert "nor a loaded module has the struct_ops type no_such_ops" in str(error.value)
    assert "pahole" in str(error.value)
    assert "Nothing was changed." in str(error.value)


def test_is_only_a_struct_ops_map_attached_as_one(
    ops: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    for path, name, message in (
        (objects["one"], "ports", "map ports of the object .* cannot be attached as struct_ops"),
        (objects["ops"], "nope", "has no map 'nope' to attach; it has unit_congestion"),
    ):
        attach = parse_attach([{"type": "struct_ops", "map": name}])
        with pytest.raises(InputError, match=message):
            apply(replace(ops, path=path, attach=attach))


def test_does_an_old_library_say_what_is_needed(
    wanted: ObjectSpec, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitated where the library is new, by hiding the map as old ones do."""
    if Bpf().version >= OPS_LIBBPF:
        monkeypatch.setattr(Bpf, "version", (1, 1))
        monkeypatch.setattr(
            "ansible_collections.colocated.tcp_sm.plugins.module_utils._io.libbpf.BpfObject.maps",
            lambda _self: {},
        )
    with pytest.raises(MissingError) as error:
        apply(wanted)
    assert r"does not know its section .struct_ops.link. Install libbpf 1.4" in str(error.value)
    assert not list(Path(wanted.bpffs).glob("unit*"))
