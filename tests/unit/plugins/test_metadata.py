# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what describes the collection agree with what is in it?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_the_action_group_has_every_module() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("[a-z]*.py")}
    assert set(runtime["action_groups"]["all"]) == modules


def test_nothing_was_added_in_a_version_to_come() -> None:
    galaxy = ROOT / "galaxy.yml"
    if not galaxy.exists():
        pytest.skip("SKIPPED: galaxy.yml is not part of an installed collection")
    version = yaml.safe_load(galaxy.read_text(encoding="utf-8"))["version"].split(".")
    for path in [*ROOT.glob("plugins/*/*.py"), *ROOT.glob("plugins/*/*.yml")]:
        for added in re.findall(r"version_added: ([0-9.]+)", path.read_text(encoding="utf-8")):
            assert [int(one) for one in added.split(".")] <= [int(one) for one in version], path
