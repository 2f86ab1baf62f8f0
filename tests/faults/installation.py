# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""An installation of the tests' own on this machine, and what can be seen of it from outside."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup_path

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK_SECONDS = 240
Result = subprocess.CompletedProcess[str]


def bpftool(*words: str) -> Any:
    """The JSON answer of bpftool; raises where it reports an error."""
    done = subprocess.run(["bpftool", "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip() or "null")


def ansible(
    command: list[str], prefix: list[str] | None = None, inventory: str = "inventories/local.yml"
) -> subprocess.Popen[str]:
    """Start a program of the virtual environment in the source tree; output is merged."""
    env = os.environ | {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_PIPELINING": "true",
        "ANSIBLE_NOCOLOR": "1",
        # One line a message, so that a test can match across the places where YAML would fold it.
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
    }
    program = str(Path(sys.executable).parent / command[0])
    return subprocess.Popen(
        [*(prefix or []), program, "-i", inventory, *command[1:]],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait(process: subprocess.Popen[str]) -> Result:
    """Collect a started program; it is killed after PLAYBOOK_SECONDS."""
    try:
        output, _ = process.communicate(timeout=PLAYBOOK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"{process.args!r} took over {PLAYBOOK_SECONDS} s:\n{output}")
    return subprocess.CompletedProcess(process.args, process.returncode, output, "")


@dataclass
class Installation:
    """Role variables of one private installation, and readers of what it left on the machine."""

    home: Path
    name: str
    cgroup: str

    @property
    def bpffs(self) -> Path:
        return self.home / "bpf"

    @property
    def pins(self) -> Path:
        return self.bpffs / self.name

    @property
    def object_file(self) -> Path:
        return self.home / "lib" / "bpf" / "sockmap.bpf.o"

    @property
    def declaration(self) -> Path:
        return self.home / "etc" / "declaration.json"

    def variables(self) -> dict[str, Any]:
        """What every play of this installation is given."""
        return {
            "host_name": self.name,
            "host_bpffs": str(self.bpffs),
            "host_object_dir": str(self.home / "lib"),
            "host_config_dir": str(self.home / "etc"),
            "container_cgroups": [self.cgroup],
        }

    def start(
        self, playbook: str, *words: str, prefix: list[str] | None = None, **changed: Any
    ) -> subprocess.Popen[str]:
        """Start a playbook of the collection by its full name."""
        variables = json.dumps(self.variables() | changed)
        command = ["ansible-playbook", f"colocated.tcp_sm.{playbook}", "-e", variables, *words]
        return ansible(command, prefix)

    def play(self, playbook: str, *words: str, **changed: Any) -> Result:
        """Run a playbook of the collection to its end."""
        return wait(self.start(playbook, *words, **changed))

    def pinned(self) -> dict[str, Any]:
        """Path below the BPF file system -> id; and the content of the maps that configure."""
        found: dict[str, Any] = {}
        # Every bpffs has the kernel's own maps.debug and progs.debug at its top.
        for path in sorted(p for p in self.bpffs.glob("*/**/*") if not p.is_dir()):
            kind = {"progs": "prog", "links": "link"}.get(path.parent.name, "map")
            shown = bpftool(kind, "show", "pinned", str(path))
            found[str(path.relative_to(self.bpffs))] = shown["id"]
        for name in ("tcp_sm_config", "tcp_sm_ports", "tcp_sm_cidrs"):
            path = self.pins / "maps" / name
            if path.exists():
                entries = bpftool("map", "dump", "pinned", str(path))
                # A hash map gives them in an order that differs from load to load.
                found[f"content of {name}"] = sorted(entries, key=lambda entry: entry["key"])
        return found

    def files(self) -> dict[str, str]:
        """Path of every file on disk -> its SHA-256."""
        return {
            str(path.relative_to(self.home)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("lib", "etc")
            for path in sorted((self.home / folder).rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }

    def snapshot(self) -> Snapshot:
        """All that a failed run must leave as it was."""
        attached = bpftool("cgroup", "show", cgroup_path(self.cgroup)) or []
        return self.pinned(), self.files(), sorted(entry["id"] for entry in attached)


def recap(result: Result) -> dict[str, int]:
    """Counters of the play's last line: ``ok``, ``changed``, ``failed``, ..."""
    lines = [line for line in result.stdout.splitlines() if " : ok=" in line]
    assert lines, result.stdout
    counters = lines[-1].partition(" : ")[2].split()
    return {name: int(value) for name, _, value in (word.partition("=") for word in counters)}


def changes(installation: Installation, playbook: str, *words: str, **changed: Any) -> int:
    """Run a playbook that must succeed; the number of its changed tasks."""
    done = installation.play(playbook, *words, **changed)
    assert done.returncode == 0, done.stdout
    return recap(done)["changed"]


Snapshot = tuple[dict[str, Any], dict[str, str], list[Any]]


@dataclass(frozen=True)
class FirstRuns:
    """Snapshots before, after ``--check`` and after the first run; changes each announced."""

    nothing: Snapshot
    removed: int
    predicted: int
    after_check: Snapshot
    mounted_by_check: bool
    changed: int
    applied: Snapshot


def first_runs(installation: Installation) -> FirstRuns:
    """Remove nothing, check, apply."""
    nothing = installation.snapshot()
    removed = changes(installation, "remove")
    predicted = changes(installation, "site", "--check", "--diff", container_ports_exclude=[22])
    after_check = installation.snapshot()
    mounted = os.path.ismount(installation.bpffs)
    changed = changes(installation, "site", container_ports_exclude=[22])
    applied = installation.snapshot()
    return FirstRuns(nothing, removed, predicted, after_check, mounted, changed, applied)


def make_installation(home: Path, name: str) -> Installation:
    """An installation with a cgroup; nothing is applied yet."""
    cgroup = f"/{name}"
    Path(cgroup_path(name)).mkdir(exist_ok=True)
    return Installation(home, name, cgroup)


def dispose(installation: Installation) -> None:
    """Remove all that a test may have left."""
    if installation.pinned() or installation.files() or os.path.ismount(installation.bpffs):
        changes(installation, "remove")
    subprocess.run(["umount", "-q", str(installation.bpffs)], check=False)
    Path(cgroup_path(installation.cgroup)).rmdir()
