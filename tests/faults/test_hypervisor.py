# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Does role hypervisor share memory, leave machines alone that run, and leave nothing behind?"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region import CHUNK_MAGIC
from installation import Result, ansible, recap, wait

PATIENCE = 30.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)
    return answer


@dataclass
class Hypervisor:
    """A private installation on this machine."""

    home: Path
    shm: Path

    @property
    def agent(self) -> Path:
        return self.home / "lib" / "tcp_sm_agent.zip"

    @property
    def config(self) -> Path:
        return self.home / "etc" / "agent.json"

    def region(self, *vms: Any, **options: Any) -> dict[str, Any]:
        """The one region, for these machines."""
        path = str(self.shm / "lab")
        region = {"name": "lab", "path": path, "size": "32M", "parts": 4, "vms": list(vms)}
        return region | options

    def variables(self, **changed: Any) -> dict[str, Any]:
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "hypervisor_object_dir": str(self.home / "lib"),
            "hypervisor_config_dir": str(self.home / "etc"),
            "hypervisor_run_dir": str(self.home / "run"),
            "hypervisor_log": str(self.home / "agent.log"),
            "hypervisor_domains": False,
            "hypervisor_regions": [self.region("a", "b")],
            **changed,
        }

    def play(self, playbook: str, *words: str, **changed: Any) -> Result:
        """Run a playbook of the collection on one hypervisor."""
        return self.play_many(playbook, {"here": {}}, *words, **changed)

    def play_many(
        self, playbook: str, cases: dict[str, dict[str, Any]], *words: str, **changed: Any
    ) -> Result:
        """The same with several, which are all this machine, each with variables of its own."""
        return wait(self.begin(playbook, cases, *words, **changed))

    def begin(
        self, playbook: str, cases: dict[str, dict[str, Any]], *words: str, **changed: Any
    ) -> subprocess.Popen[str]:
        """The same, without waiting for its end."""
        inventory = self.home / "hosts.json"
        group = {"hosts": cases, "vars": self.variables(**changed)}
        inventory.write_text(json.dumps({"hypervisors": group}), encoding="utf-8")
        command = ["ansible-playbook", f"colocated.tcp_sm.{playbook}", *words]
        return ansible(command, ["setsid"], inventory=str(inventory))

    def kill_after(self, task: str, playbook: str, **changed: Any) -> None:
        """Run a playbook, and kill it when that task has ended."""
        run = self.begin(playbook, {"here": {}}, **changed)
        assert run.stdout is not None
        seen = ""
        for line in run.stdout:
            seen += line
            if task in seen and line.startswith("changed:"):
                break
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        assert task in seen, seen

    def changes(self, playbook: str, *words: str, **changed: Any) -> int:
        """Of a run that must succeed."""
        done = self.play(playbook, *words, **changed)
        assert done.returncode == 0, done.stdout
        return recap(done)["changed"]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The installed agent's command line, by the system's Python."""
        return subprocess.run(
            ["/usr/bin/env", "python3", "-m", "tcp_sm_agent", *words],
            env={**os.environ, "PYTHONPATH": str(self.agent)},
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        control = str(self.home / "run" / "agent.sock")
        shown = self.command("status", "--json", "--control", control)
        answer: dict[str, Any] = json.loads(shown.stdout) if shown.returncode == 0 else {}
        return answer

    def machines(self) -> dict[str, Any]:
        """Owner -> the machine that has its chunk."""
        (region,) = self.status()["regions"]
        return {chunk["owner"]: chunk["machine"] for chunk in region["chunks"]}

    def pretend_module(self, owner: str, magic: int) -> None:
        """Write what a guest's module writes into its chunk when it takes it; 0: when it leaves."""
        (region,) = self.status()["regions"]
        (chunk,) = [one for one in region["chunks"] if one["owner"] == owner]
        with open(region["path"], "r+b") as file:
            file.seek(chunk["offset"])
            file.write(struct.pack("<QII", magic, chunk["index"], chunk["epoch"]))

    def left(self) -> list[str]:
        """Everything on disk and in memory."""
        files = [path for top in (self.home, self.shm) for path in top.rglob("*")]
        return sorted(str(path) for path in files if path.name != "hosts.json")


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """Nothing is applied yet."""
    shm = Path(f"/dev/shm/tcp_sm_faults_{os.getpid()}")
    shm.mkdir()
    made = Hypervisor(tmp_path, shm)
    try:
        yield made
    finally:
        if made.agent.exists():
            made.command("stop", "--pidfile", str(made.home / "run" / "agent.pid"))
        for path in shm.iterdir():
            path.unlink()
        shm.rmdir()


@pytest.fixture
def start(hypervisor: Hypervisor) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a real QEMU that has a doorbell device and executes nothing."""
    with contextlib.ExitStack() as stack:

        def begin(name: str) -> subprocess.Popen[bytes]:
            socket = f"socket,path={hypervisor.home}/run/lab.sock,id=c"
            device = "ivshmem-doorbell,vectors=1,chardev=c"
            command = ["qemu-system-x86_64", "-name", f"guest={name}", "-S", "-nodefaults"]
            command += ["-machine", "pc,accel=tcg", "-m", "16", "-display", "none"]
            command += ["-chardev", socket, "-device", device]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            wait_for(lambda: (hypervisor.machines()[name] or {}).get("connected"), f"{name} joins")
            return process

        yield begin


def test_is_memory_shared_checked_first_and_removed_without_a_trace(
    hypervisor: Hypervisor,
) -> None:
    assert hypervisor.changes("remove") == 0
    nothing = hypervisor.left()
    assert hypervisor.changes("site", "--check", "--diff") > 0
    assert hypervisor.left() == nothing
    assert hypervisor.changes("site") > 0
    agent = hypervisor.status()["agent"]
    (region,) = hypervisor.status()["regions"]
    owners = [(chunk["owner"], chunk["size"]) for chunk in region["chunks"]]
    quarter = ((32 << 20) - 65536) // 4 // 4096 * 4096
    assert owners == [("a", quarter), ("b", quarter)]
    assert hypervisor.changes("site") == 0
    assert hypervisor.changes("site", "--check") == 0
    assert hypervisor.status()["agent"] == agent
    assert hypervisor.changes("remove", "--check") > 0
    assert hypervisor.status()["agent"] == agent
    assert hypervisor.changes("remove") > 0
    assert hypervisor.left() == nothing
    assert hypervisor.changes("remove") == 0


def test_are_running_machines_left_alone(
    hypervisor: Hypervisor, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    hypervisor.changes("site")
    machine = start("a")
    agent = hypervisor.status()["agent"]

    # Another machine comes, one that does not run goes; the agent is told and not restarted.
    metrics = str(hypervisor.home / "metrics.prom")
    regions = [hypervisor.region("a", "c", {"name": "d", "ring_size": "16K"})]
    wanted = {"hypervisor_regions": regions, "hypervisor_metrics": metrics}
    assert hypervisor.changes("site", **wanted) > 0
    assert sorted(hypervisor.machines()) == ["a", "c", "d"]
    assert hypervisor.machines()["a"]["connected"]
    assert hypervisor.status()["agent"] == agent
    wait_for(lambda: "tcp_sm_region_machines" in Path(metrics).read_text(), "metrics")
    assert hypervisor.changes("site", **wanted) == 0

    # What it uses itself stays.
    uses = rf"a \(pid {machine.pid}\)"
    for changed, message in (
        ([hypervisor.region("c", "d")], rf"Cannot remove chunk 0 of a .*{uses} uses it"),
        ([hypervisor.region("a", "c", size="64M")], rf"Cannot resize region lab: {uses}"),
        ([], rf"Cannot remove region lab: {uses} has it mapped"),
    ):
        configured = hypervisor.config.read_bytes()
        refused = hypervisor.play("site", hypervisor_regions=changed)
        assert hypervisor.config.read_bytes() == configured
        assert refused.returncode != 0, refused.stdout
        assert re.search(message, refused.stdout), refused.stdout
        assert hypervisor.machines()["a"]["connected"]
    refused = hypervisor.play("remove")
    assert re.search(rf"Cannot remove region lab: {uses}", refused.stdout), refused.stdout
    assert hypervisor.status()["agent"] == agent
    # While its guest's module is there, not even its device may be taken out.
    hypervisor.pretend_module("a", CHUNK_MAGIC)
    refused = hypervisor.play("remove")
    assert re.search(r"a: the tcp_sm module of this machine uses shared memory", refused.stdout)
    assert "Take the devices out" not in refused.stdout
    hypervisor.pretend_module("a", 0)

    # Another version of the agent takes over, with the doorbells.
    with hypervisor.agent.open("ab") as file:
        file.write(b"\0")
    assert hypervisor.changes("site", **wanted) > 0
    now = hypervisor.status()["agent"]
    assert now["pid"] != agent["pid"]
    assert hypervisor.machines()["a"] == {
        **hypervisor.machines()["a"],
        "pid": machine.pid,
        "connected": False,
        "doorbell": True,
    }
    assert machine.poll() is None

    # By force, it goes on alone.
    assert hypervisor.changes("remove", hypervisor_force=True) > 0
    assert machine.poll() is None
    assert hypervisor.left() == []


def test_do_machines_that_come_or_go_leave_the_others_as_they_are(hypervisor: Hypervisor) -> None:
    def places() -> dict[str, tuple[int, int]]:
        (region,) = hypervisor.status()["regions"]
        return {chunk["owner"]: (chunk["offset"], chunk["size"]) for chunk in region["chunks"]}

    seen: dict[str, tuple[int, int]] = {}
    for machines in ("abc", "ab", "abde"):
        region = hypervisor.region(*machines)
        del region["parts"]  # so that another number of machines means other shares
        wanted = {"hypervisor_regions": [region]}
        assert hypervisor.changes("site", "--check", **wanted) > 0
        assert hypervisor.changes("site", **wanted) > 0
        assert hypervisor.changes("site", **wanted) == 0
        assert sorted(places()) == list(machines)
        assert {name: places()[name] for name in seen if name in machines} == {
            name: place for name, place in seen.items() if name in machines
        }
        seen = places()


def test_does_an_agent_that_is_killed_come_back_with_the_next_run(
    hypervisor: Hypervisor, start: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    hypervisor.changes("site")
    start("b")
    os.kill(hypervisor.status()["agent"]["pid"], 9)
    wait_for(lambda: not hypervisor.status(), "the agent is gone")
    # A reboot would have emptied the memory, too: the region comes from the configuration.
    assert hypervisor.changes("site") == 1
    assert hypervisor.machines()["b"]["doorbell"]


def test_is_a_run_that_was_killed_made_good_by_the_next(hypervisor: Hypervisor) -> None:
    """What failed before: the agent was never told, and the region of another run forgotten."""
    other = {"name": "other", "path": str(hypervisor.shm / "other"), "size": "1M"}
    hypervisor.changes("site", hypervisor_regions=[hypervisor.region("a", "b"), other])
    agent = hypervisor.status()["agent"]
    hypervisor.kill_after("Write the agent's configuration", "site")
    assert len(hypervisor.status()["regions"]) == 2
    assert Path(other["path"]).exists()
    assert hypervisor.changes("site") > 0
    assert len(hypervisor.status()["regions"]) == 1
    assert hypervisor.status()["agent"] == agent
    assert not Path(other["path"]).exists()
    assert hypervisor.changes("site") == 0
    # A removal finds it as well.
    hypervisor.changes("site", hypervisor_regions=[hypervisor.region("a", "b"), other])
    hypervisor.kill_after("Write the agent's configuration", "site")
    assert hypervisor.changes("remove") > 0
    assert hypervisor.left() == []


def test_is_an_agent_of_another_version_restarted_also_after_a_killed_run(
    hypervisor: Hypervisor,
) -> None:
    hypervisor.changes("site")
    pidfile = str(hypervisor.home / "run" / "agent.pid")
    with hypervisor.agent.open("ab") as file:
        file.write(b"\0")
    hypervisor.command("stop", "--pidfile", pidfile)
    names = ["--config", str(hypervisor.config), "--pidfile", pidfile]
    assert hypervisor.command("run", "--daemon", *names).returncode == 0
    other = hypervisor.status()["agent"]
    hypervisor.kill_after("Install the agent's program", "site")
    assert hypervisor.status()["agent"] == other
    assert hypervisor.changes("site") == 2
    assert hypervisor.status()["agent"]["program"] != other["program"]
    assert hypervisor.changes("site") == 0


def test_is_a_damaged_record_of_the_last_run_told(hypervisor: Hypervisor) -> None:
    hypervisor.changes("site")
    whole = hypervisor.config.read_bytes()
    for content in (whole[:100], b'{"regions": 3}'):
        hypervisor.config.write_bytes(content)
        for playbook in ("site", "remove"):
            done = hypervisor.play(playbook)
            assert done.returncode != 0
            assert re.search(r"agent.json on here cannot be understood.*Or delete it", done.stdout)
        assert hypervisor.config.read_bytes() == content
    hypervisor.config.write_bytes(whole)
    assert hypervisor.changes("site") == 0


# systemd has a log of its own.
LOG: dict[str, tuple[dict[str, Any], str]] = {
    "no folder of the log": (
        {"hypervisor_log": "/no/such/log"},
        r"hypervisor_log names /no/such/log, and .* has no folder /no/such\. Make it",
    )
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no size": ({"hypervisor_regions": [{"name": "x"}]}, r"size"),
    "odd size": (
        {"hypervisor_regions": [{"name": "x", "size": "100M"}]},
        r"hypervisor_regions\[0\] \(x\): size: 100M is not a power of two",
    ),
    "chunk too large": (
        {"hypervisor_regions": [{"name": "x", "size": "1M", "vms": ["a"], "chunk_size": "1M"}]},
        r"hypervisor_regions\[0\] \(x\): size: a chunk for a of 1M is larger than region x",
    ),
    "too many": (
        {"hypervisor_regions": [{"name": "x", "size": "1M", "vms": ["a", "b", "c", "d"]}]},
        r"a chunk for a gets one of the equal parts of region x \(1M\), 240K, which has no room",
    ),
    "twice in a region": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "vms": ["a", "a"]}]},
        r"vms: a is there twice",
    ),
    "in two regions": (
        {
            "hypervisor_regions": [
                {"name": "x", "size": "16M", "vms": ["a"]},
                {"name": "y", "size": "16M", "vms": ["a"]},
            ]
        },
        r"a is in x and in y; a machine belongs to one region",
    ),
    "two of one name": (
        {"hypervisor_regions": [{"name": "x", "size": "16M"}, {"name": "x", "size": "16M"}]},
        r"two regions have the name x",
    ),
    "parts": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "parts": 1, "vms": ["a", "b"]}]},
        r"parts: 1 must be a number of at least 2",
    ),
    "unknown group": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "socket_group": "no such"}]},
        r"region x: socket_group names 'no such'; create it first",
    ),
    "group beyond numbers": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "group": "4294967295"}]},
        r"region x: group names '4294967295'; create it first",
    ),
    "unquoted mode": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "socket_mode": 0o660}]},
        r"socket_mode.*quote",
    ),
    "relative folder": ({"hypervisor_run_dir": "run"}, r"hypervisor_run_dir \(run\).*absolute"),
    "blank in a folder": (
        {"hypervisor_object_dir": "/tmp/tcp sm/lib"},
        r"hypervisor_object_dir \(/tmp/tcp sm/lib\).*without blanks",
    ),
    "colon in a folder": ({"hypervisor_config_dir": "/tmp/a:b"}, r"without blanks, quotes"),
    "no folder of metrics": (
        {"hypervisor_metrics": "/no/such/a.prom"},
        r"hypervisor_metrics names /no/such/a.prom, and .* has no folder /no/such\. Make it",
    ),
    "no folder of a socket": (
        {"hypervisor_regions": [{"name": "x", "size": "16M", "socket": "/no/such/socket"}]},
        r"hypervisor_regions names /no/such/socket, and .* has no folder /no/such",
    ),
    "odd name": ({"hypervisor_name": "a/b"}, r"hypervisor_name \(a/b\) takes letters"),
    "unknown domain": (
        {"hypervisor_domains": True, "hypervisor_libvirt_uri": "test:///default"},
        r"Cannot find domain a at test:///default",
    ),
    **({} if Path("/run/systemd/system").is_dir() else LOG),
    "no libvirt": (
        {"hypervisor_domains": True, "hypervisor_libvirt_uri": "no:///such"},
        r"no:///such",
    ),
}


def test_is_bad_input_refused_before_anything_is_made(hypervisor: Hypervisor) -> None:
    cases = {kind.replace(" ", "_"): variables for kind, (variables, _message) in BAD.items()}
    for name, variables in cases.items():
        # Not all of them at one place: a refusal must not depend on what another one left.
        home = str(hypervisor.home / name)
        defaults = {f"hypervisor_{kind}_dir": f"{home}/{kind}" for kind in ("object", "config")}
        cases[name] = defaults | {"hypervisor_run_dir": f"{home}/run"} | variables
    done = hypervisor.play_many("site", cases)
    output = dict.fromkeys(cases, "")
    for line in done.stdout.splitlines():
        if found := re.match(r"(?:fatal|failed): \[([a-z_]+)", line):
            output[found[1]] += line
    for kind, (_variables, message) in BAD.items():
        assert re.search(message, output[kind.replace(" ", "_")]), (kind, done.stdout)
    assert hypervisor.left() == []
    assert list(hypervisor.shm.iterdir()) == []
    assert not Path("/dev/shm/x").exists()
