# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does tcp_sm_info return one schema in every state, and fail for nothing that is missing?

The integration target of the same name runs it against real programs and traffic.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import status
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi
from ansible_collections.colocated.tcp_sm.plugins.modules import tcp_sm_info

PARTS = {"features", "objects", "counters", "connections", "profiles", "ring"}


def run(capsys: pytest.CaptureFixture[str], **params: Any) -> dict[str, Any]:
    """The module's result; the exit code is part of it."""
    with patch_module_args(params), pytest.raises(SystemExit) as ended:
        tcp_sm_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {"exit_code": ended.value.code, **result}


@pytest.mark.parametrize("check", [False, True])
def test_a_host_without_anything_gives_every_part(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, check: bool
) -> None:
    result = run(capsys, bpffs=str(tmp_path), _ansible_check_mode=check)
    assert result["exit_code"] == 0
    assert result["changed"] is False
    assert set(result) >= PARTS
    assert "bpffs" in [one["feature"] for one in result["features"]["missing"]]
    assert result["objects"]["state"] == "absent"
    assert result["objects"]["name"] == "tcp_sm"
    assert (result["connections"], result["profiles"]) == ([], [])
    names = [(one["name"], one["state"]) for one in result["ring"]["objects"]]
    assert names == [("tcp_sm_ring", "absent"), ("tcp_sm_handshake", "absent")]
    assert result["ring"]["counters"] == result["counters"]
    assert set(result["counters"]["reasons"]) == {
        name for reason in abi.Reason if (name := abi.reason_name(reason))
    }


def test_the_ring_may_have_names_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "ring" / "mine_handshake" / "holiday_pictures").mkdir(parents=True)
    result = run(capsys, bpffs=str(tmp_path), ring_bpffs=f"{tmp_path}/ring", ring_name="mine")
    names = [(one["name"], one["state"]) for one in result["ring"]["objects"]]
    assert names == [("mine_ring", "absent"), ("mine_handshake", "unknown")]
    assert (result["objects"]["name"], result["objects"]["state"]) == ("tcp_sm", "absent")


@pytest.mark.parametrize("part", sorted(PARTS))
def test_only_what_was_asked_for_is_returned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str
) -> None:
    result = run(capsys, bpffs=str(tmp_path), gather=[part])
    assert PARTS & set(result) == {part}


def test_asking_for_nothing_returns_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not PARTS & set(run(capsys, bpffs=str(tmp_path), gather=[]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gather": ["weather"]}, "value of gather must be one or more of"),
        ({"object": "x"}, "Unsupported parameters"),
    ],
)
def test_bad_parameters_are_refused(
    capsys: pytest.CaptureFixture[str], params: dict[str, Any], message: str
) -> None:
    result = run(capsys, **params)
    assert result["exit_code"] == 1
    assert message in result["msg"]


def test_foreign_pins_are_a_warning_and_an_unknown_state(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tcp_sm" / "holiday_pictures").mkdir(parents=True)
    wanted = ["objects", "counters", "connections", "profiles"]
    result = run(capsys, bpffs=str(tmp_path), gather=wanted)
    assert result["exit_code"] == 0
    assert result["objects"]["state"] == "unknown"
    assert result["connections"] == []
    assert re.search("holiday_pictures was not pinned by this collection", str(result["warnings"]))


def test_what_is_foreign_is_said_once_and_hides_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tcp_sm_handshake" / "holiday_pictures").mkdir(parents=True)
    result = run(capsys, bpffs=str(tmp_path), gather=["objects", "connections", "ring"])
    assert result["objects"]["state"] == "absent"
    assert [one["state"] for one in result["ring"]["objects"]] == ["absent", "unknown"]
    path = tmp_path / "tcp_sm_handshake" / "holiday_pictures"
    assert str(result["warnings"]).count(f"{path} was not pinned") == 1


def test_a_part_that_cannot_be_read_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(status.Status, "counters", fail)
    result = run(capsys, bpffs=str(tmp_path), gather=["objects", "counters"])
    assert result["objects"]["state"] == "absent"
    assert result["counters"]["closed"] == 0
    assert "Input/output error" in str(result["warnings"])


def documented(fields: dict[str, Any], value: Any, at: str) -> None:
    """Fail for a key of ``value`` that RETURN does not name, and for one that is missing."""
    if isinstance(value, list):
        for one in value:
            documented(fields, one, at)
    elif isinstance(value, dict) and fields:
        assert set(value) == set(fields), at
        for key, inner in value.items():
            documented(fields[key].get("contains", {}), inner, f"{at}.{key}")


def test_the_documentation_names_every_key_and_option(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run(capsys, bpffs=str(tmp_path))
    pages = yaml.safe_load(tcp_sm_info.RETURN)
    assert set(pages) == PARTS
    for part, page in pages.items():
        documented(page.get("contains", {}), result[part], part)
    options = yaml.safe_load(tcp_sm_info.DOCUMENTATION)["options"]
    assert options["gather"]["choices"] == list(tcp_sm_info.GATHER)
    assert options["gather"]["default"] == list(tcp_sm_info.GATHER)
    assert yaml.safe_load(tcp_sm_info.EXAMPLES)
