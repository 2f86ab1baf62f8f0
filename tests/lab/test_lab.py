# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded lab and the demo on it, beside a lab that may be running on this machine.

Containers only, as `make demo VMS=no`. The scenario `vm` of molecule has virtual machines as well.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "tcp_sm_lab_test"
# The first lab on a machine builds its root file system.
PLAY_SECONDS = 280
pytestmark = pytest.mark.timeout(3 * PLAY_SECONDS)


@dataclass(frozen=True)
class Lab:
    """Where this test's lab and installation live."""

    home: Path

    @property
    def report(self) -> Path:
        return self.home / "report"

    def variables(self) -> dict[str, Any]:
        return {
            "lab_netns": NAME,
            "lab_dir": f"/var/lib/{NAME}",
            "lab_run_dir": f"/run/{NAME}",
            "lab_cgroup": f"/{NAME}",
            "lab_report_dir": str(self.report),
            "lab_workloads": ["redis-get-c50", "wrk-64k"],
            "lab_runs": 2,
            "host_name": NAME,
            "host_bpffs": str(self.home / "bpf"),
            "host_object_dir": str(self.home / "lib" / "tcp_sm"),
            "host_config_dir": str(self.home / "etc" / "tcp_sm"),
            "hypervisor_name": NAME,
            "hypervisor_run_dir": f"/run/{NAME}_agent",
            "hypervisor_log": str(self.home / "agent.log"),
        }

    def play(self, playbook: str, *options: str, **more: Any) -> str:
        """Run a playbook as `make demo` does; its output."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        variables = json.dumps(self.variables() | more)
        command = [program, "-i", "inventories/lab", "--limit", "!guests"]
        command += [f"playbooks/{playbook}.yml", "-e", variables, *options]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=PLAY_SECONDS,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A running lab; removed with everything on it."""
    started = Lab(tmp_path_factory.mktemp("lab"))
    try:
        started.play("lab")
        yield started
    finally:
        started.play("remove")
        started.play("lab", lab_state="absent")


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    assert "changed=0 " in lab.play("lab")


def test_the_demo_reports_redis_and_nginx_through_shared_memory(lab: Lab) -> None:
    lab.play("site")
    output = lab.play("demo")
    report = json.loads((lab.report / "report.json").read_text())
    assert {"machine", "kernel", "date", "accelerator"} <= set(report["meta"])
    assert [entry["workload"] for entry in report["bench"]] == ["redis-get-c50", "wrk-64k"]
    assert all(entry["tcp"] > 0 and entry["ours"] > 0 for entry in report["bench"]), output
    busy = [entry for entry in report["connections"] if entry["channel"] == "sockmap"]
    assert {entry["server"]["port"] for entry in busy} >= {8001, 6379}, output
    assert all(entry["bytes"] > 0 and entry["reason"] is None for entry in busy), output
    on_tcp = [entry for entry in report["connections"] if entry["channel"] == "tcp"]
    assert all(entry["reason"] for entry in on_tcp), output
    page = (lab.report / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "the page loads something"


def test_a_mode_is_changed_by_its_role_alone(lab: Lab) -> None:
    output = lab.play("site", "--tags", "container", container_mode="pass")
    assert not set(re.findall(r"colocated\.tcp_sm\.(\w+) :", output)) - {"container"}, output
    assert "changed=2 " in output, "the configuration, and what is restored after a reboot"
    assert "changed=0 " in lab.play("site", "--tags", "container", container_mode="pass")
    # No other role has anything to add.
    assert "changed=0 " in lab.play("site", container_mode="pass")
    assert "changed=2 " in lab.play("site", "--tags", "container")


def test_removal_leaves_nothing(lab: Lab) -> None:
    lab.play("remove")
    lab.play("lab", lab_state="absent")
    left = [f"/var/lib/{NAME}", f"/run/{NAME}", f"/run/{NAME}_agent", f"/run/netns/{NAME}"]
    assert not [path for path in left if Path(path).exists()]
    assert NAME not in Path("/proc/self/mounts").read_text()
    roots = [
        line.split()[1]
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if line.split()[2] in ("cgroup", "cgroup2")
    ]
    assert not [root for root in roots if (Path(root) / NAME).exists()]
    assert "changed=0 " in lab.play("lab", lab_state="absent")
