# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark of virtual machines, with this machine in the place of both."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tcp_sm_bench import agent, drive, guests, model, probe, remote, tools

UPTIME = "1000.50 1500.25\n"
STAT = "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 2\ncpu1 1 2\nintr 4711 0 3 9\nctxt 815\nbtime 1\n"
INTERRUPTS = """           CPU0       CPU1
  0:         24          1   IO-APIC   2-edge      timer
 26:          7          5  PCI-MSIX-0000:0a:00.0   0-edge      tcp_sm
 27:        100        200  PCI-MSIX-0000:01:00.0   1-edge      virtio0-input.0
NMI:          0          0   Non-maskable interrupts
ERR:          0
"""
CARDS = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:    5000      50    0    0    0     0          0         0     5000      50    0
  eth0: 1000000     900    0    0    0     0          0         0   200000     800    0
"""
STATUS = "chunk 1\nepoch 3\nslots 510\nready 1\nopened 12\naborted 0\n"


def test_busy_time_is_what_was_not_idle_on_all_processors() -> None:
    assert probe.busy_seconds(UPTIME, 2) == pytest.approx(500.75)


def test_totals_are_found_by_name() -> None:
    assert (probe.counter(STAT, "ctxt"), probe.counter(STAT, "intr")) == (815, 4711)
    assert probe.counter(STAT, "nothing") == 0


def test_interrupts_of_a_device_are_those_of_all_processors() -> None:
    assert probe.interrupts(INTERRUPTS, "tcp_sm") == 12
    assert probe.interrupts(INTERRUPTS, "absent") == 0


def test_loopback_is_no_network_card() -> None:
    assert probe.card_bytes(CARDS) == 1_200_000


def test_the_modules_status_tells_the_connections() -> None:
    assert probe.ring_connections(STATUS) == 12


def test_this_machine_can_be_sampled() -> None:
    before = probe.sample()
    while probe.sample()["busy"] <= before["busy"]:
        pass
    after = probe.sample()
    assert {"busy", "context_switches", "interrupts", "doorbells", "card_bytes"} <= set(after)
    assert after["context_switches"] >= before["context_switches"]


def test_a_process_is_charged_what_it_used() -> None:
    before = probe.process_seconds(os.getpid())
    sum(range(1_000_000))
    assert 0 < probe.process_seconds(os.getpid()) - before < 60


@pytest.mark.parametrize(
    ("word", "label"),
    [("qemu\n", "tcg"), ("kvm\n", "kvm"), ("vmware\n", "vmware"), ("", "unknown")],
)
def test_the_accelerator_is_named(word: str, label: str) -> None:
    assert probe.accelerator(word) == label


def test_no_machine_is_nobodys() -> None:
    assert probe.find_qemu("00000000-0000-0000-0000-000000000000") == 0


def test_a_parameter_is_set_and_what_it_was_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MODULE", tmp_path)
    (tmp_path / "spin_us").write_text("0\n")
    assert probe.set_parameter("spin_us", 50) == 0
    assert probe.set_parameter("spin_us", 0) == 50
    assert (tmp_path / "spin_us").read_text() == "0"


@pytest.mark.parametrize("arm", ["ours", "spin"])
@pytest.mark.parametrize("rings", [[1, 0], [0, 0], [None, 1], [None, None]])
def test_a_ring_that_was_not_used_is_an_error(arm: str, rings: list[float | None]) -> None:
    guests.check_channel(arm, [1, 3])
    with pytest.raises(tools.RunError, match="no connection went through a ring"):
        guests.check_channel(arm, rings)


def test_tcp_that_used_a_ring_is_an_error() -> None:
    guests.check_channel("tcp", [0, None])
    with pytest.raises(tools.RunError, match="went through a ring"):
        guests.check_channel("tcp", [0, 1])


def test_an_agent_answers_errors_by_their_text() -> None:
    answer = agent.Agent().answer('["run", [["false"], 5]]')
    assert "`false` failed (1)" in answer["error"]
    assert agent.Agent().answer('["run", [["echo", "x"], 5]]') == {"result": "x\n"}


def login(name: str) -> remote.Login:
    return remote.Login(name, ["sh", "-c"], sys.executable)


def plan_value(directory: Path) -> dict[str, Any]:
    words = {"words": ["sh", "-c"], "python": sys.executable}
    return {
        "server": {"name": "vm1", **words},
        "client": {"name": "vm2", **words},
        "host": {"name": "hypervisor", **words},
        "address": "127.0.0.1",
        "directory": str(directory),
        "spin_us": 50,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client": {"name": "vm1", "words": []}}, "vm1 cannot be both ends"),
        ({"client": None}, "not a description of guests"),
        ({"host": {"name": "x", "wrong": 1}}, "not a description of guests"),
        ({"spin_us": None}, "not a description of guests"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guests.parse_plan(plan_value(tmp_path) | change)


def test_a_machine_that_lets_nobody_in_is_named() -> None:
    closed = remote.Login("vm9", ["sh", "-c", "echo Permission denied >&2; exit 255"])
    with pytest.raises(remote.RemoteError, match=r"failed on vm9 \(255\): Permission denied"):
        closed.do("true")


def test_an_agent_that_does_not_start_is_reported_with_what_it_said(tmp_path: Path) -> None:
    with (
        remote.Remote(login("vm9"), str(tmp_path / "absent")) as gone,
        pytest.raises(remote.RemoteError, match=r"vm9: its agent has ended: .*absent"),
    ):
        gone.call("sample")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[guests.Plan]:
    """Both guests and the hypervisor are this machine, so they share the directory."""
    made = guests.parse_plan(plan_value(tmp_path_factory.mktemp("guests") / "bench"))
    guests.up(made)
    yield made
    guests.down(made)
    assert not Path(made.directory).exists()


@pytest.fixture
def ground(plan: guests.Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[guests.GuestGround]:
    """Without the kernel module there are no rings, and nothing spins."""
    monkeypatch.setattr(guests, "check_channel", lambda arm, rings: None)
    monkeypatch.setattr(guests.GuestGround, "_set_spin", lambda self, microseconds: None)
    with guests.GuestGround(plan) as made:
        yield made


@pytest.mark.parametrize("name", ["blocking-pingpong-64", "stream-down-4k"])
def test_a_workload_runs_on_all_arms(ground: guests.GuestGround, name: str) -> None:
    (workload,) = model.select([name])
    settings = drive.Settings(list(model.ARMS), 2, 0.05)
    entry = drive.run_workload(ground, workload, settings)
    assert entry["errors"] == []
    assert entry["topology"] == "vm"
    described = entry["guests"]
    assert isinstance(described, dict)
    assert described["kernel"] == os.uname().release
    assert entry["runs"] == 2
    for arm in workload.arms("vm"):
        value = entry[arm]
        assert isinstance(value, float)
        assert value > 0
    counted = entry["per_op"]
    assert isinstance(counted, dict)
    assert counted["tcp"]["context_switches"] > 0


def test_a_run_that_fails_in_a_guest_is_an_error_of_its_arm(ground: guests.GuestGround) -> None:
    (workload,) = model.select(["pingpong-64"])
    where = ground.where("tcp", workload)
    with pytest.raises(tools.RunError, match=r"vm2: .*Connection refused"):
        ground.run("tcp", tools.TOOLS["load"].client(where, 0.05, 0).words)


def test_leaving_ends_the_servers_that_were_started(plan: guests.Plan) -> None:
    (workload,) = model.select(["pingpong-64"])
    with guests.GuestGround(plan) as ground:
        pid = ground.start("tcp", ground.where("tcp", workload))
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
