# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report is what the role's task file writes, so Ansible writes it here too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

ROLES = Path(__file__).parents[3] / "roles"
ENTRY = {
    "topology": "veth",
    "workload": "pingpong-64",
    "unit": "us",
    "better": "lower",
    "tcp": 20.0,
    "ours": 10.0,
    "naive": 16.0,
    "unix": 5.0,
    "ratio": 2.0,
    "ci": [1.5, 2.5],
    "runs": 5,
    "cpu_ratio": 0.5,
    "errors": [],
}
SLOWER = {**ENTRY, "workload": "wrk-1m", "unit": "req/s", "better": "higher", "unix": None}
SLOWER |= {"ratio": 0.8, "ci": [0.7, 0.9], "cpu_ratio": 1.3, "errors": ["naive: <hung> & lost"]}
MACHINES = {
    **ENTRY,
    "topology": "vm",
    "workload": "blocking-pingpong-64",
    "naive": None,
    "unix": None,
}
MACHINES |= {
    "spin": 8.0,
    "spin_ratio": 2.5,
    "loopback": 4.0,
    "host_cpu_ratio": 0.3,
    "guests": {"accelerator": "tcg", "kernel": "6.12", "cpus": 1},
    "cpu_us_per_op": {"tcp": 40.0, "ours": 20.0},
    "per_op": {
        "tcp": {"doorbells": 0.0, "context_switches": 4.0, "card_bytes": 260.0},
        "ours": {"doorbells": 2.0, "context_switches": 4.5, "card_bytes": 0.125},
    },
}
EMPTY = {**ENTRY, "workload": "wrk-1k", "tcp": None, "naive": None, "unix": None}
EMPTY |= {"ratio": None, "ci": None, "cpu_ratio": None, "runs": 0}
CONTAINER = "0123456789abcdef" * 4
CONNECTIONS = [
    {
        "channel": "sockmap",
        "reason": None,
        "bytes": 4096,
        "messages": 3,
        "client": {"addr": "fd00::2", "port": 40000, "cgroup_path": "/a<b>"},
        "server": {"addr": "10.0.0.2", "port": 80, "cgroup_path": f"/docker-{CONTAINER}.scope/c"},
    },
    {
        "channel": "tcp",
        "reason": "blocking",
        "bytes": 1 << 30,
        "messages": 0,
        "client": {"addr": "10.0.0.3", "port": 40001, "cgroup_path": "/"},
        "server": None,
    },
    {
        "channel": "ring",
        "reason": None,
        "bytes": 8192,
        "messages": 3,
        "client": {"addr": "10.0.0.4", "port": 40002, "cgroup_path": "/"},
        "server": None,
    },
]


class Page(HTMLParser):
    """Checks that elements are closed in order; collects tags, classes and text."""

    VOID = frozenset({"meta", "rect", "line", "path", "circle", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str, css: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag and attrs.get("class") == css]


def write_report(directory: Path, results: list[Any], connections: list[Any]) -> str:
    """Runs the task file; returns Ansible's output."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.include_role": {"name": "bench", "tasks_from": "report"}}],
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "bench_report_dir": str(directory / "report"),
            "bench_title": "Title <&>",
            "bench_meta": {"machine": "m", "kernel": "6.18", "accelerator": "none", "runs": 8},
            "bench_results": results,
            "bench_connections": connections,
        },
    }
    (directory / "play.json").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "play.json"],
        cwd=directory,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write_report(directory, [ENTRY, SLOWER, EMPTY], CONNECTIONS)
    return directory


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page((report / "report" / "index.html").read_text())


def test_json_holds_exactly_what_was_given(report: Path) -> None:
    content = json.loads((report / "report" / "report.json").read_text())
    assert list(content) == ["meta", "connections", "bench"]
    assert content["bench"] == [ENTRY, SLOWER, EMPTY]
    assert content["connections"] == CONNECTIONS


def test_a_second_run_changes_nothing(report: Path) -> None:
    out = write_report(report, [ENTRY, SLOWER, EMPTY], CONNECTIONS)
    assert re.search(r"changed=0 .*failed=0", out), out


def test_the_page_loads_nothing(page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe"}
    assert not [attrs for _, attrs in page.elements if {"src", "href"} & attrs.keys()]


def test_bars_show_direction_size_and_interval(page: Page) -> None:
    gain = [bar for bar in page.having("rect", "gain") if "x" in bar]
    loss = [bar for bar in page.having("rect", "loss") if "x" in bar]
    unity = page.having("line", "unity")[0]["x1"]
    assert unity is not None
    assert [bar["x"] for bar in gain] == [unity], "2.0 begins at the line and goes right"
    left, width = (float(loss[0][key] or 0) for key in ("x", "width"))
    assert left + width == pytest.approx(float(unity), abs=0.2), "0.8 ends at the line"
    assert width < float(gain[0]["width"] or 0)
    assert len(page.having("path", "whisker")) == 2


def test_a_workload_without_a_result_keeps_its_row_and_has_no_bar(page: Page) -> None:
    assert len(page.having("text", "name")) == 3
    assert len(page.having("text", "value")) == 2


def test_what_others_wrote_is_text_and_no_markup(page: Page) -> None:
    for text in ("Title <&>", "naive: <hung> & lost", "/a<b>", "[fd00::2]:40000"):
        assert text in page.text


def test_accelerated_connections_come_first_and_then_the_largest(page: Page) -> None:
    found = re.findall(r"(?:^|\n)(ring|sockmap|tcp)", page.text.split("Why on TCP")[1])
    assert found == ["ring", "sockmap", "tcp"]


def test_containers_have_short_ids_and_the_whole_one_as_a_title(page: Page) -> None:
    assert "/docker-0123456789ab.scope/c" in page.text
    assert CONTAINER not in page.text
    titles = [attrs["title"] for tag, attrs in page.elements if tag == "small"]
    assert f"/docker-{CONTAINER}.scope/c" in titles


def test_sections_say_how_many_runs_they_have(tmp_path: Path) -> None:
    write_report(tmp_path, [ENTRY, {**SLOWER, "runs": 8}, {**MACHINES, "runs": 3}, EMPTY], [])
    html = (tmp_path / "report" / "index.html").read_text()
    assert re.findall(r"Medians of (.*?), each", html) == ["5 to 8 runs", "3 runs"]
    assert "<dt>kernel</dt>" in html
    assert "<dt>runs</dt>" not in html


def test_machines_are_labelled_and_have_their_own_marks(tmp_path: Path) -> None:
    write_report(tmp_path, [MACHINES, ENTRY], [])
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert "Two virtual machines (tcg)" in page.text
    assert len(page.having("path", "spin")) == 2, "one mark and the legend's"
    assert len(page.having("rect", "alone")) == 2
    for text in ("Spinning", "Its ratio", "Inside one", "Context switches", "0.12"):
        assert text in page.text


def test_hosts_alone_do_not_speak_of_machines(page: Page) -> None:
    assert not page.having("path", "spin")
    for text in ("Spinning", "Inside one", "What an operation takes"):
        assert text not in page.text


def test_without_measurements_or_connections_there_is_still_a_page(tmp_path: Path) -> None:
    write_report(tmp_path, [], [])
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert "svg" not in {tag for tag, _ in page.elements}
