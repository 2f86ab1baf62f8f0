# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is pinned and what is wanted to the steps between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.plan import (
    Link,
    Map,
    ObjectState,
    Program,
    describe,
    make_plan,
    map_conflict,
    state_word,
)

HASH = Map("ports", "hash", 4, 4, 64, layout=("int", "int"), id=10)
LIVE = ObjectState(
    {"p": Program("p", "aa", "sock_ops", 1, frozenset({10}))},
    {"ports": HASH},
    {"p@%2F": Link("p@%2F", "p", "cgroup", "cgroup /", 7, 1, 100)},
)
WANT = ObjectState(
    {"p": Program("p", "aa", "sock_ops", 2, frozenset({10}))},
    {"ports": HASH},
    {"p@%2F": Link("p@%2F", "p", "cgroup", "cgroup /", 7)},
)
NEW_CODE = replace(WANT, programs={"p": replace(WANT.programs["p"], tag="bb")})


def steps(live: ObjectState, want: ObjectState) -> tuple[bool, list[tuple[str, str]]]:
    plan = make_plan(live, want)
    return plan.reload, [(step.action, step.key) for step in plan.steps]


def link(key: str, target_id: int, prog_id: int = 0, kind: str = "cgroup") -> dict[str, Link]:
    return {key: Link(key, "p", kind, kind, target_id, prog_id)}


def test_is_the_same_object_left_alone() -> None:
    assert steps(LIVE, WANT) == (False, [("keep", "p@%2F")])
    assert not make_plan(LIVE, WANT).changed


@pytest.mark.parametrize(
    ("live", "want", "expected"),
    [
        # Nothing there yet.
        (ObjectState(), WANT, (True, [("create", "p@%2F")])),
        # Other instructions: the link moves to the new program.
        (LIVE, NEW_CODE, (True, [("update", "p@%2F")])),
        # Another cgroup: the new link comes first, then the old one goes.
        (
            LIVE,
            replace(WANT, links=link("p@%2Fa", 8)),
            (False, [("create", "p@%2Fa"), ("drop", "p@%2F")]),
        ),
        # The cgroup was deleted and made again: same path, other id.
        (LIVE, replace(WANT, links=link("p@%2F", 8)), (False, [("replace", "p@%2F")])),
        # A killed upgrade left the link with a program that is not pinned.
        (replace(LIVE, links=link("p@%2F", 7, 9)), WANT, (False, [("update", "p@%2F")])),
        # Attached by something else than wanted.
        (replace(LIVE, links=link("p@%2F", 7, 1, "map")), WANT, (False, [("replace", "p@%2F")])),
        # state=loaded.
        (LIVE, replace(WANT, links={}), (False, [("drop", "p@%2F")])),
        # A map cannot be carried over.
        (LIVE, replace(WANT, maps={"ports": replace(HASH, id=11)}), (True, [("update", "p@%2F")])),
        # A program went, or came.
        (replace(LIVE, programs={}), WANT, (True, [("update", "p@%2F")])),
        # The pinned program uses a map that is not pinned: somebody mixed two loads.
        (
            replace(LIVE, programs={"p": replace(LIVE.programs["p"], map_ids=frozenset({99}))}),
            WANT,
            (True, [("update", "p@%2F")]),
        ),
    ],
)
def test_are_the_steps_those_that_are_needed(
    live: ObjectState, want: ObjectState, expected: tuple[bool, list[tuple[str, str]]]
) -> None:
    assert steps(live, want) == expected
    assert make_plan(live, want).changed


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (HASH, ""),
        (replace(HASH, id=99), ""),
        (replace(HASH, layout=None), ""),
        (replace(HASH, type="lru_hash"), "its type is hash, the object needs lru_hash"),
        (replace(HASH, key_size=8), "its key size is 4, the object needs 8"),
        (replace(HASH, value_size=8), "its value size is 4, the object needs 8"),
        (replace(HASH, max_entries=1), "its max entries is 64, the object needs 1"),
        (replace(HASH, flags=1), "its flags is 0, the object needs 1"),
        (replace(HASH, layout=("int", "enum")), "its key or value has other fields"),
        (replace(HASH, content="ff"), "its content differs"),
    ],
)
def test_is_a_map_reused_only_where_its_entries_still_mean_the_same(other: Map, why: str) -> None:
    assert map_conflict(HASH, other) == why


def test_may_a_perf_event_array_have_as_many_entries_as_there_are_cpus() -> None:
    wanted = Map("events", "perf_event_array", 4, 4, 0)
    assert map_conflict(replace(wanted, max_entries=2), wanted) == ""


def test_is_the_diff_without_ids_and_sorted() -> None:
    two = replace(LIVE, maps={"z": replace(HASH, name="z"), "a": replace(HASH, name="a")})
    shown = describe(two, "attached")
    assert list(shown["maps"]) == ["a", "z"]
    assert shown == {
        "state": "attached",
        "programs": {"p": "aa"},
        "maps": dict.fromkeys(("a", "z"), "hash, key 4, value 4, 64 entries"),
        "links": {"p@%2F": "cgroup /"},
    }
    assert describe(LIVE, "attached") == describe(WANT, "attached")


@pytest.mark.parametrize(
    ("target_id", "prog_id", "text"),
    [
        (7, 1, "cgroup"),
        (7, 9, "cgroup (another program)"),
        (0, 1, "cgroup (cgroup was deleted)"),
    ],
)
def test_does_the_diff_say_what_is_wrong_with_a_link(
    target_id: int, prog_id: int, text: str
) -> None:
    shown = describe(replace(LIVE, links=link("p@%2F", target_id, prog_id)), "attached")
    assert shown["links"] == {"p@%2F": text}


@pytest.mark.parametrize(
    ("state", "word"),
    [(ObjectState(), "absent"), (replace(LIVE, links={}), "loaded"), (LIVE, "attached")],
)
def test_is_the_state_named_as_the_module_names_it(state: ObjectState, word: str) -> None:
    assert state_word(state) == word


OPS = Map("o", "struct_ops", 4, 128, 1, content="c1", id=20)
OPS_LINK = Link("o", "o", "struct_ops", "struct_ops", id=200)
OPS_LIVE = replace(LIVE, maps={"o": OPS}, links={"o": replace(OPS_LINK, prog_id=20)})
OPS_LIVE = replace(OPS_LIVE, programs={"p": replace(LIVE.programs["p"], map_ids=frozenset())})
# Every load makes another map.
OPS_WANT = replace(OPS_LIVE, maps={"o": replace(OPS, id=21)}, links={"o": replace(OPS_LINK, id=0)})


def with_map(state: ObjectState, **changes: object) -> ObjectState:
    return replace(state, maps={"o": replace(state.maps["o"], **changes)})  # type: ignore[arg-type]


def ops_link(prog_id: int) -> dict[str, Link]:
    return {"o": replace(OPS_LINK, prog_id=prog_id)}


@pytest.mark.parametrize(
    ("live", "want", "expected"),
    [
        (OPS_LIVE, OPS_WANT, (False, [("keep", "o")])),
        (ObjectState(), OPS_WANT, (True, [("create", "o")])),
        # Other programs in the same places, or other data; or not known what they are.
        (OPS_LIVE, with_map(OPS_WANT, content="c2"), (True, [("update", "o")])),
        (OPS_LIVE, with_map(OPS_WANT, content=""), (False, [("keep", "o")])),
        (with_map(OPS_LIVE, content=""), OPS_WANT, (False, [("keep", "o")])),
        # A killed upgrade left the link with a map that is not pinned.
        (replace(OPS_LIVE, links=ops_link(9)), OPS_WANT, (False, [("update", "o")])),
        # Detached behind our back.
        (replace(OPS_LIVE, links=ops_link(0)), OPS_WANT, (False, [("replace", "o")])),
        # Only loaded until now: its programs come with the first attachment of a new load.
        (replace(OPS_LIVE, links={}), OPS_WANT, (False, [("create", "o")])),
        (
            with_map(replace(OPS_LIVE, links={}), unset=True),
            OPS_WANT,
            (True, [("create", "o")]),
        ),
        (
            with_map(replace(OPS_LIVE, links={}), unset=True),
            replace(OPS_WANT, links={}),
            (False, []),
        ),
        # Something else has the name.
        (
            replace(OPS_LIVE, maps={"o": replace(HASH, name="o", id=20)}, links={}),
            OPS_WANT,
            (True, [("create", "o")]),
        ),
    ],
)
def test_are_struct_ops_maps_known_by_what_is_in_them(
    live: ObjectState, want: ObjectState, expected: tuple[bool, list[tuple[str, str]]]
) -> None:
    assert steps(live, want) == expected


@pytest.mark.parametrize(
    ("prog_id", "text"),
    [
        (20, "struct_ops"),
        (9, "struct_ops (another program)"),
        (0, "struct_ops (detached)"),
    ],
)
def test_does_the_diff_say_what_is_wrong_with_a_struct_ops_link(prog_id: int, text: str) -> None:
    shown = describe(replace(OPS_LIVE, links=ops_link(prog_id)), "attached")
    assert shown["links"] == {"o": text}
    assert describe(OPS_WANT, "attached")["links"] == {"o": "struct_ops"}
