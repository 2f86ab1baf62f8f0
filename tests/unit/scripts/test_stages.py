# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the summary of `make test` tell the truth?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "stages.py"
PASS = '<testcase name="a"/>'
FAIL = '<testcase name="b"><failure/></testcase>'
ERROR = '<testcase name="c"><error/></testcase>'
SKIP = '<testcase name="d"><skipped/></testcase>'
TASK = '<testcase name="e"><system-out>{"changed": true}</system-out></testcase>'
HELD = '<testcase name="f"><system-out>{"msg": "All assertions passed"}</system-out></testcase>'


@pytest.fixture
def stages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stages", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["stages"] = module
    spec.loader.exec_module(module)
    return module


def write(folder: Path, name: str, *cases: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")


@pytest.mark.parametrize(
    ("stage", "files", "code", "expected"),
    [
        ("unit", {"unit.xml": [PASS, PASS, SKIP]}, 0, (2, 0, 1)),
        ("unit", {"unit.xml": [PASS, FAIL, ERROR]}, 1, (1, 2, 0)),
        # A runner that died after its tests passed is a failure all the same.
        ("unit", {"unit.xml": [PASS]}, 2, (1, 1, 0)),
        ("unit", {}, 2, (0, 1, 0)),
        ("lint", {}, 0, (1, 0, 0)),
        # Several files of one stage add up; another stage's that starts alike does not.
        ("unit", {"unit-0.xml": [PASS], "unit-1.xml": [PASS], "units-0.xml": [FAIL]}, 0, (2, 0, 0)),
        ("unit", {"unit-other.xml": [FAIL], "unit.xml": [PASS]}, 0, (1, 0, 0)),
        ("molecule", {"molecule/verify-1.xml": [TASK, HELD, SKIP]}, 0, (1, 0, 0)),
        ("integration", {"integration-0.xml": [TASK, HELD, ERROR]}, 1, (1, 1, 0)),
    ],
)
def test_is_every_outcome_counted_once(
    stages: ModuleType,
    tmp_path: Path,
    stage: str,
    files: dict[str, list[str]],
    code: int,
    expected: tuple[int, int, int],
) -> None:
    for name, cases in files.items():
        write(tmp_path, name, *cases)
    counts = stages.count_stage(stage, code, tmp_path)
    assert (counts.passed, counts.failed, counts.skipped) == expected


def test_is_every_stage_a_target_and_in_one_lane_only(stages: ModuleType) -> None:
    names = [stages.FIRST, *(stage for lane in stages.LANES for stage in lane)]
    makefile = SCRIPT.parents[1].joinpath("Makefile").read_text()
    assert len(names) == len(set(names))
    assert [name for name in names if f"\n{name}:" not in makefile] == []


def test_does_the_last_line_skip_blank_ones(stages: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\n  the last  \n\n")
    assert stages.last_line(log) == "the last"
    log.write_text("")
    assert stages.last_line(log) == ""


def test_are_causes_told_by_frequency_with_an_example(stages: ModuleType, tmp_path: Path) -> None:
    text = "def test():\n>   assert a == b\nE   assert 1 == 2\nE     more"
    write(
        tmp_path,
        "unit.xml",
        PASS,
        '<testcase name="x"><failure message="rare"/></testcase>',
        *[f'<testcase name="{name}"><error>{text}</error></testcase>' for name in ("y", "z")],
    )
    told = stages.causes("unit", tmp_path)
    assert told == ["2 x y: assert 1 == 2; more", "1 x x: rare"]


def test_is_a_stage_without_a_report_told_by_its_log(
    stages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "OUTPUT", tmp_path)
    (tmp_path / "lint.log").write_text("make: lint: no such file\n")
    (told,) = stages.causes("lint", tmp_path)
    assert told.endswith("lint.log: make: lint: no such file")
