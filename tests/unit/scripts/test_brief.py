# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the demo's output have what matters, and nothing else?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CALLBACK = Path(__file__).resolve().parents[3] / "scripts" / "callback"
COMMAND: dict[str, Any] = {"ansible.builtin.command": "true"}


def show(folder: Path, *tasks: dict[str, Any], slow: float = 1000) -> list[str]:
    """What a play prints, without empty lines and without the recap."""
    play = {
        "name": "The play",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": tasks,
    }
    (folder / "play.json").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "play.json"],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACK),
            "ANSIBLE_STDOUT_CALLBACK": "brief",
            "ANSIBLE_FORCE_COLOR": "0",
            "TCP_SM_BRIEF_SLOW": str(slow),
        },
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line]
    return lines[: next(n for n, line in enumerate(lines) if line.startswith("PLAY RECAP"))]


def test_changes_have_a_line(tmp_path: Path) -> None:
    (tmp_path / "more.yml").write_text(json.dumps([{"name": "Included", **COMMAND}]))
    assert show(
        tmp_path,
        {"name": "Quiet", **COMMAND, "changed_when": False},
        {"name": "Skipped", **COMMAND, "when": False},
        {"name": "Changes", **COMMAND},
        {"name": "Many", **COMMAND, "loop": [1, 2]},
        {"name": "Include", "ansible.builtin.include_tasks": "more.yml"},
    ) == [
        "The play",
        "  changed localhost: Changes",
        "  changed localhost: Many",
        "  changed localhost: Included",
    ]


def test_what_takes_its_time_has_a_line_even_as_an_item(tmp_path: Path) -> None:
    shown = show(
        tmp_path,
        {"name": "Quiet", **COMMAND, "changed_when": False},
        {"name": "Many", **COMMAND, "loop": ["a", "b"]},
        {"name": "Skipped", **COMMAND, "when": False},
        slow=0,
    )
    assert [re.sub(r"\d+ s$", "0 s", line) for line in shown] == [
        "The play",
        "  ok      localhost: Quiet, 0 s",
        "  changed localhost: Many, a, 0 s",
        "  changed localhost: Many, b, 0 s",
    ]


def test_what_is_waited_for_is_named_once(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"echo >>{flag}; test $(wc -l <{flag}) = 3"
    assert show(
        tmp_path,
        {
            "name": "Ready",
            "ansible.builtin.command": {"argv": ["sh", "-c", script]},
            "register": "found",
            "until": "found is succeeded",
            "delay": 0,
            "changed_when": False,
        },
    ) == ["The play", "  waiting localhost: Ready"]


def test_tables_are_printed_as_they_are(tmp_path: Path) -> None:
    for message in ("A  'B'\n-  ---", ["A  'B'", "-  ---"]):
        shown = show(tmp_path, {"name": "Show it", "ansible.builtin.debug": {"msg": message}})
        assert shown == ["The play", "Show it:", "A  'B'", "-  ---"]


def test_failures_are_shown_as_ansible_does(tmp_path: Path) -> None:
    shown = show(tmp_path, {"name": "Fails", "ansible.builtin.command": "false"})
    assert shown[1].startswith("TASK [Fails] ***")
    assert [line for line in shown if line.startswith("fatal: [localhost]: FAILED! => ")]
