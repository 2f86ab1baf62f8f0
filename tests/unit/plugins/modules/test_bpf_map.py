# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's edge: its options, and how outcomes and errors become its answer."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.maps import MapResult
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import MapSpec
from ansible_collections.colocated.tcp_sm.plugins.modules import bpf_map, bpf_object


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MapSpec, bool]]:
    """What the module asked of the engine."""
    seen: list[tuple[MapSpec, bool]] = []

    def apply_map(spec: MapSpec, check: bool) -> MapResult:
        seen.append((spec, check))
        return MapResult(True, [{"key": 1, "value": 2}], {}, {"1": 2}, ["careful"])

    monkeypatch.setattr(bpf_map, "apply_map", apply_map)
    return seen


def test_do_options_reach_the_engine(run_module: Any, calls: list[Any]) -> None:
    answer = run_module(bpf_map, path="/m", entries=[{"key": 1, "value": {"a": [1]}}])
    ((spec, check),) = calls
    assert not check
    assert (spec.path, spec.state, spec.lock_timeout) == ("/m", "present", 30)
    assert spec.entries == ({"key": 1, "value": {"a": [1]}},)
    assert answer["entries"] == [{"key": 1, "value": 2}]
    assert answer["diff"] == {"before": {}, "after": {"1": 2}}
    assert answer["changed"]
    assert "careful" in str(answer["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required arguments: path"),
        ({"path": "/m", "state": "gone"}, "value of state must be one of: present, absent, exact"),
        ({"path": "/m", "entries": [{"value": 1}]}, "missing required arguments: key"),
        ({"path": "/m", "entries": [{"key": 1}]}, "entries[0]: needs a value for state=present"),
        ({"path": "/m", "entries": ["x"]}, "dictionary requested, could not parse"),
    ],
)
def test_are_bad_options_refused_before_the_engine(
    run_module: Any, calls: list[Any], options: dict[str, Any], message: str
) -> None:
    answer = run_module(bpf_map, **options)
    assert answer["failed"]
    assert message in answer["msg"]
    assert calls == []


def test_is_a_refusal_a_message_and_no_traceback(
    run_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_spec: MapSpec, _check: bool) -> MapResult:
        raise InputError("too odd")

    monkeypatch.setattr(bpf_map, "apply_map", refuse)
    answer = run_module(bpf_map, path="/m")
    assert answer["failed"]
    assert answer["msg"] == "too odd"
    assert "exception" not in answer


@pytest.mark.root
def test_are_real_entries_written_once(
    run_module: Any, objects: dict[str, str], bpffs: str
) -> None:
    run_module(bpf_object, name="unit", path=objects["one"], bpffs=bpffs, state="loaded")
    options = {"path": f"{bpffs}/unit/maps/ports", "entries": [{"key": "80", "value": "0x2"}]}
    assert run_module(bpf_map, **options, check=True)["changed"]
    assert run_module(bpf_map, path=options["path"])["entries"] == []
    assert run_module(bpf_map, **options)["entries"] == [{"key": 80, "value": 2}]
    assert not run_module(bpf_map, **options)["changed"]
