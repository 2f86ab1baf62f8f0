# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's edge: its options, and how outcomes and errors become its answer."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import Result
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    InputError,
    KernelError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import ObjectSpec
from ansible_collections.colocated.tcp_sm.plugins.modules import bpf_object

GOOD: dict[str, Any] = {"name": "x", "path": "/x.o"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ObjectSpec, bool]]:
    """What the module asked of the engine, which says that nothing changed."""
    seen: list[tuple[ObjectSpec, bool]] = []

    def apply(spec: ObjectSpec, check: bool) -> Result:
        seen.append((spec, check))
        return Result(False, {"name": spec.name}, {"state": "a"}, {"state": "b"}, ["careful"])

    monkeypatch.setattr(bpf_object, "apply", apply)
    return seen


def test_do_options_reach_the_engine(run_module: Any, calls: list[Any]) -> None:
    answer = run_module(
        bpf_object,
        **GOOD,
        check=True,
        max_entries={"m": "5"},
        attach=[{"program": "p", "type": "cgroup", "cgroup": "a"}],
    )
    ((spec, check),) = calls
    assert check
    assert spec.max_entries == {"m": 5}
    assert [item.target for item in spec.attach] == ["cgroup /a"]
    assert answer["object"] == {"name": "x"}
    assert answer["diff"] == {"before": {"state": "a"}, "after": {"state": "b"}}
    assert not answer["changed"]
    assert "careful" in str(answer["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required arguments: name"),
        ({"name": "x"}, "state is attached but all of the following are missing: path"),
        ({"name": "x", "state": "loaded"}, "state is loaded but all of the following are missing"),
        ({**GOOD, "state": "on"}, "value of state must be one of: attached, loaded, absent"),
        ({**GOOD, "attach": [{"program": "p", "type": "xdp"}]}, "value of type must be one of"),
        (
            {**GOOD, "attach": [{"program": "p", "type": "cgroup"}]},
            "type is cgroup but all of the following are missing: cgroup",
        ),
        (
            {**GOOD, "attach": [{"program": "p", "type": "map"}]},
            "type is map but all of the following are missing: map",
        ),
        (
            {**GOOD, "attach": [{"type": "tracing"}]},
            "type is tracing but all of the following are missing: program",
        ),
        (
            {**GOOD, "attach": [{"type": "struct_ops"}]},
            "type is struct_ops but all of the following are missing: map",
        ),
        ({**GOOD, "colour": "red"}, "Unsupported parameters"),
        ({"name": "a.b", "path": "/x"}, "name: 'a.b' must be 1 to 64 letters"),
        ({**GOOD, "sha256": "1"}, "sha256: '1' is not 64 hexadecimal digits"),
    ],
)
def test_are_bad_options_refused_before_the_engine(
    run_module: Any, calls: list[Any], options: dict[str, Any], message: str
) -> None:
    answer = run_module(bpf_object, **options)
    assert answer["failed"]
    assert message in answer["msg"]
    assert calls == []


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (InputError("too odd"), {}),
        (KernelError("too odd", "R0 invalid"), {"verifier_log": "R0 invalid"}),
    ],
)
def test_is_a_refusal_a_message_and_no_traceback(
    run_module: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, extra: dict[str, str]
) -> None:
    def refuse(_spec: ObjectSpec, _check: bool) -> Result:
        raise error

    monkeypatch.setattr(bpf_object, "apply", refuse)
    answer = run_module(bpf_object, **GOOD)
    assert answer["failed"]
    assert answer["msg"] == "too odd"
    assert {key: answer[key] for key in extra} == extra
    assert "exception" not in answer


@pytest.mark.root
def test_does_the_real_thing_come_and_go(
    run_module: Any, objects: dict[str, str], bpffs: str
) -> None:
    options = {"name": "unit", "path": objects["one"], "bpffs": bpffs, "state": "loaded"}
    assert run_module(bpf_object, **options, check=True)["changed"]
    first = run_module(bpf_object, **options)
    assert first["changed"]
    assert [one["name"] for one in first["object"]["programs"]] == [
        *("count_events", "count_receives", "dump_sockets", "pass_messages")
    ]
    assert first["object"]["links"] == []
    assert not run_module(bpf_object, **options)["changed"]
    absent = {"name": "unit", "bpffs": bpffs, "state": "absent"}
    gone = run_module(bpf_object, **absent)
    assert gone["changed"]
    assert set(gone["object"]) == set(first["object"])
    assert not run_module(bpf_object, **absent)["changed"]
