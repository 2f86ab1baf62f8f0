# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tarball, installed elsewhere and cut down to what Ansible reads, does the whole job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
KEPT = {"meta", "plugins", "roles", "playbooks"}
TALK = Path(__file__).with_name("talk.py")


def environment(home: Path) -> dict[str, str]:
    """Nothing that points to the source tree's configuration or collections."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
    return env | {
        "ANSIBLE_COLLECTIONS_PATH": str(home / "collections"),
        "ANSIBLE_HOME": str(home / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "true",
    }


@dataclass
class Installed:
    """A collection in a folder of its own, and what its playbooks are told."""

    home: Path
    name: str
    cgroup: Path

    @property
    def pins(self) -> Path:
        return self.home / "bpf" / self.name

    def play(self, playbook: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run colocated.tcp_sm.PLAYBOOK from outside the source tree."""
        variables = {
            "host_name": self.name,
            "host_bpffs": str(self.home / "bpf"),
            "host_object_dir": str(self.home / "lib" / "tcp_sm"),
            "host_config_dir": str(self.home / "etc" / "tcp_sm"),
            "container_cgroups": [f"/{self.cgroup.name}"],
        }
        command = [
            *(BIN / "ansible-playbook", "-i", "localhost,", "-c", "local"),
            *("-e", f"ansible_python_interpreter={sys.executable}"),
            *(f"colocated.tcp_sm.{playbook}", "-e", json.dumps(variables | more), *words),
        ]
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.home,
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def must(self, playbook: str, *words: str, **more: Any) -> str:
        """Run a playbook that has to succeed; its output."""
        done = self.play(playbook, *words, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def tarball() -> Path:
    """The newest build."""
    version = next(
        line.split()[1]
        for line in (ROOT / "galaxy.yml").read_text().splitlines()
        if line.startswith("version:")
    )
    return ROOT / "build" / f"colocated-tcp_sm-{version}.tar.gz"


@pytest.fixture(scope="module")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Installed by ansible-galaxy without a network, then cut down to KEPT."""
    home = tmp_path_factory.mktemp("installed")
    galaxy = [str(BIN / "ansible-galaxy"), "collection", "install", "--offline", "--no-deps"]
    words = ["-p", str(home / "collections"), str(tarball)]
    subprocess.run([*galaxy, *words], check=True, cwd=home, env=environment(home))
    tree = home / "collections" / "ansible_collections" / "colocated" / "tcp_sm"
    for path in tree.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    cgroup = Path(cgroup2_root()) / f"tcp_sm_package_{os.getpid()}"
    cgroup.mkdir()
    collection = Installed(home, f"tcp_sm_package_{os.getpid()}", cgroup)
    yield collection
    if collection.pins.exists():
        collection.play("remove")
    cgroup.rmdir()


def test_the_tarball_carries_what_runs_and_no_sources_of_the_build(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        names = set(archive.getnames())
    tops = {name.split("/")[0] for name in names}
    assert {"roles/host/files/bpf/sockmap.bpf.o", "plugins/modules/bpf_object.py"} <= names
    assert {f"roles/guest/files/bpf/{name}.bpf.o" for name in ("ring", "handshake")} <= names
    assert {"roles/guest/files/module/version", "roles/guest/files/module/tcp_sm.tar"} <= names
    assert any(name.startswith("roles/host/files/runtime/tcp_sm_runtime") for name in names)
    assert not tops & {"bpf", "build", "molecule", "scripts", "tests", ".venv", "Makefile", "kmod"}
    assert not [name for name in names if name.endswith(".pyc")]
    assert tarball.stat().st_size < 1 << 20


def test_a_check_before_the_first_run_changes_nothing(installed: Installed) -> None:
    output = installed.must("site", "--check", "--diff")
    assert "failed=0" in output
    assert not installed.pins.exists()
    assert not (installed.home / "lib").exists()
    assert not (installed.home / "etc").exists()


def test_site_accelerates_and_status_says_so(installed: Installed) -> None:
    installed.must("site")
    again = installed.must("site")
    assert "changed=0 " in again, again
    status = installed.home / "status.json"
    with subprocess.Popen(
        [sys.executable, TALK, installed.cgroup / "cgroup.procs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as talk:
        assert talk.stdout is not None
        assert talk.stdout.readline() == "ready\n"
        output = installed.must("status", status_json=str(status))
        talk.communicate("end\n", timeout=10)
    assert talk.returncode == 0
    (connections,) = (host["connections"] for host in json.loads(status.read_text()).values())
    busy = [entry for entry in connections if entry["channel"] == "sockmap" and entry["bytes"]]
    assert busy, output
    assert busy[0]["reason"] is None
    assert busy[0]["client"]["cgroup_path"].strip("/") == installed.cgroup.name


def test_remove_leaves_nothing(installed: Installed) -> None:
    installed.must("remove")
    assert not installed.pins.exists()
    assert not list((installed.home / "lib").rglob("*"))
    assert not (installed.home / "etc" / "tcp_sm").exists()
    command = ["bpftool", "cgroup", "show", str(installed.cgroup)]
    attached = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert not attached.strip()
    assert "changed=0 " in installed.must("remove")
