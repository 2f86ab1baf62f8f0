# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's edge: its options, and how outcomes and errors become its answer."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import libvirt as io
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.domain import (
    DomainError,
    DomainSpec,
)
from ansible_collections.colocated.tcp_sm.plugins.modules import ivshmem_domain

NEEDED = {"domain": "web1", "region": "lab"}


@pytest.fixture(autouse=True)
def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "IMPORT_ERROR", None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DomainSpec, bool]]:
    """What the module asked for."""
    seen: list[tuple[DomainSpec, bool]] = []

    def apply_domain(spec: DomainSpec, check: bool) -> io.DomainResult:
        seen.append((spec, check))
        return io.DomainResult(True, {"name": "web1"}, {"name": "lab"}, None, [], ["careful"])

    monkeypatch.setattr(io, "apply_domain", apply_domain)
    return seen


def test_do_options_reach_the_plan(run_module: Any, calls: list[Any]) -> None:
    answer = run_module(ivshmem_domain, check=True, **NEEDED)
    ((spec, check),) = calls
    assert check
    assert (spec.domain, spec.state, spec.scope, spec.uri) == (
        "web1",
        "present",
        "both",
        "qemu:///system",
    )
    assert spec.device.describe() == {
        "name": "lab",
        "model": "doorbell",
        "server": "/run/tcp_sm/lab.sock",
        "vectors": 1,
        "size": 0,
        "role": "peer",
    }
    assert answer["changed"]
    assert answer["live"] == {"name": "lab"}
    assert answer["persistent"] is None
    assert "careful" in str(answer["warnings"])
    assert "diff" not in answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required arguments: domain, region"),
        ({**NEEDED, "state": "gone"}, "value of state must be one of: present, absent"),
        ({**NEEDED, "model": "usb"}, "value of model must be one of: doorbell, plain"),
        ({**NEEDED, "model": "plain", "size": "3M"}, "size=3M cannot be right"),
        ({**NEEDED, "vectors": "many"}, "vectors"),
    ],
    ids=str,
)
def test_are_bad_options_refused_before_libvirt(
    run_module: Any, calls: list[Any], options: dict[str, Any], message: str
) -> None:
    answer = run_module(ivshmem_domain, **options)
    assert answer["failed"]
    assert message in answer["msg"]
    assert calls == []


def test_is_a_refusal_a_message_and_no_traceback(
    run_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_spec: DomainSpec, _check: bool) -> io.DomainResult:
        raise DomainError("too odd")

    monkeypatch.setattr(io, "apply_domain", refuse)
    answer = run_module(ivshmem_domain, **NEEDED)
    assert answer["failed"]
    assert answer["msg"] == "too odd"
    assert "exception" not in answer


def test_is_a_missing_library_named(run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "IMPORT_ERROR", "Traceback")
    answer = run_module(ivshmem_domain, **NEEDED)
    assert answer["failed"]
    assert "libvirt-python" in answer["msg"]
