# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the agent serve machines, notice every end, and lose nothing when it ends itself?"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from agent_host import ROOT, Agent, FakeMachine, wait_for
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.hypervisor import (
    normal_regions,
)

ASSIGNED, DEAD = 1, 2


# Joining.


def test_a_machine_hears_version_id_memory_and_all_doorbells(agent: Agent, machines: Any) -> None:
    agent.region(chunks=[{"owner": "a", "size": "4M"}, {"owner": "b", "size": "4M"}], vectors=2)
    agent.start()
    b = machines(agent, "b")
    b("greet", 3 + 2 * 16)
    messages = b("more")
    assert messages[:3] == [[0, False], [1, False], [-1, True]]
    assert all(with_fd for _value, with_fd in messages[3:])
    # Sixteen chunks in any case, two doorbells each, the own ones last.
    values = [value for value, _fd in messages[3:]]
    assert sorted(values) == sorted([*range(16), *range(16)])
    assert values[-2:] == [1, 1]


def test_two_machines_ring_each_other(two: tuple[FakeMachine, FakeMachine]) -> None:
    a, b = two
    a("ring", 1)
    assert b("heard", 1) == 1
    b("ring", 0)
    b("ring", 0)
    assert a("heard", 1) == 2
    assert a("numbers") == b("numbers")


def test_a_life_begins_with_another_epoch(agent: Agent, machines: Any) -> None:
    agent.region(chunks=[{"owner": "a", "size": "4M"}])
    agent.start()
    before = agent.chunk(0)["epoch"]
    a = machines(agent, "a")
    a("greet")
    assert a("entry", 0)[:2] == [ASSIGNED, before + 1]
    status = agent.chunk(0)
    assert status["machine"]["pid"] == a.pid
    assert (status["state"], status["module"]) == ("assigned", False)
    a("take", 0)
    assert agent.chunk(0)["module"]


def test_a_chunk_declared_later_is_announced_to_those_who_are_there(
    agent: Agent, machines: Any
) -> None:
    region = agent.region(
        size="64M", chunks=[{"owner": f"vm{n}", "size": "1M", "ring_size": 4096} for n in range(16)]
    )
    agent.start()
    one = machines(agent, "vm0")
    assert len(one("greet")) == 3 + 16
    region_of(agent, region, "late")
    late = machines(agent, "late")
    assert late("greet", 20)[1] == [16, False]
    assert one("greet", 20)[-1] == [16, True]
    one("ring", 16)
    assert late("heard", 1) == 1


def region_of(agent: Agent, region: dict[str, Any], owner: str) -> None:
    """Declare a chunk as the module does while the agent runs."""
    from tcp_sm_agent._io.region_state import apply_chunk
    from tcp_sm_agent._model.region_spec import ChunkSpec

    raw = {"region": region["name"], "path": region["path"], "owner": owner, "size": "1M"}
    spec = ChunkSpec.parse({**raw, "ring_size": "4K"})
    assert apply_chunk(spec, lock_path=str(agent.folder / "lock")).changed


REFUSED: dict[str, tuple[list[str], str]] = {
    "stranger": (["-name", "guest=stranger"], "no chunk of region one is declared for stranger"),
    "nobody": ([], "names no machine; a QEMU needs -name or -uuid"),
    "twice": (["-name", "guest=a"], "chunk 0 of a is in use by that machine already"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_who_has_no_chunk_is_refused_and_told(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], kind: str
) -> None:
    arguments, reason = REFUSED[kind]
    before = agent.fds()
    refused = FakeMachine(*arguments, str(agent.folder / "one.sock"))
    try:
        assert refused("greet") == [[-1, False]]
    finally:
        refused.close()
    assert reason in agent.log.read_text()
    refusals = agent.status()["regions"][0]["refusals"]
    assert reason in refusals[-1]["reason"]
    assert agent.chunk(0)["machine"]["pid"] == two[0].pid
    assert agent.fds() == before


def test_a_name_that_no_chunk_can_hold_is_refused(agent: Agent, machines: Any) -> None:
    agent.region(automatic={"count": 2, "size": "4M"})
    agent.start()
    assert machines(agent, "x" * 64)("greet") == [[-1, False]]
    assert "at most 63 bytes" in agent.status()["regions"][0]["refusals"][-1]["reason"]
    assert agent.chunk(0)["owner"] == ""
    assert machines(agent, "x" * 63)("greet")[1] == [0, False]


def test_many_refusals_do_not_fill_the_memory(agent: Agent, machines: Any) -> None:
    agent.region(chunks=[])
    agent.start()
    for number in range(20):
        machines(agent, f"vm{number}")("greet")
    region = agent.status()["regions"][0]
    assert region["counters"]["refused"] == 20
    assert len(region["refusals"]) == 8


def test_a_machine_that_talks_is_dropped(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    two[0]("say", "hello")
    assert two[0]("eof", 2)
    assert "it sent data, which the protocol does not know" in agent.log.read_text()


def test_a_machine_that_does_not_read_holds_nobody_up(agent: Agent, machines: Any) -> None:
    chunks = [{"owner": f"vm{n}", "size": "192K", "ring_size": 4096} for n in range(200)]
    agent.region(size="64M", chunks=chunks, vectors=8)
    agent.start()
    slow = machines(agent, "vm0")
    wait_for(lambda: agent.chunk(0)["machine"], "vm0 joins")
    quick = machines(agent, "vm1")
    told = 3 + 200 * 8
    assert len(quick("greet", told)) == told
    assert len(slow("greet", told)) == told


# Automatic chunks.


def test_automatic_chunks_go_to_whoever_comes(agent: Agent, machines: Any) -> None:
    agent.region(automatic={"count": 2, "size": "4M"})
    agent.start()
    x, y = machines(agent, "x"), machines(agent, "y")
    assert {x("greet")[1][0], y("greet")[1][0]} == {0, 1}
    assert machines(agent, "z")("greet") == [[-1, False]]
    assert "all its automatic ones are taken" in agent.log.read_text()


def test_a_dead_machines_automatic_chunk_is_given_on_when_all_have_let_go(
    agent: Agent, machines: Any
) -> None:
    agent.region(automatic={"count": 2, "size": "4M"})
    agent.start()
    x, y = machines(agent, "x"), machines(agent, "y")
    mine, other = x("greet")[1][0], y("greet")[1][0]
    y("take", other)
    x.kill()
    wait_for(lambda: y("entry", mine)[0] == DEAD, "x is dead")
    # y has not looked at the table yet: x's chunk still belongs to x.
    assert machines(agent, "z")("greet") == [[-1, False]]
    y("see", other, mine, y("entry", mine)[1])
    z = machines(agent, "z")
    assert z("greet")[1][0] == mine
    assert agent.chunk(mine)["owner"] == "z"
    assert machines(agent, "x")("greet") == [[-1, False]]


# Ends.


def dies(machine: FakeMachine) -> None:
    machine.kill()


def dies_while_a_child_holds_everything_open(machine: FakeMachine) -> None:
    machine("fork")
    machine.kill()


def is_unplugged(machine: FakeMachine) -> None:
    machine("hangup")


@pytest.mark.parametrize("end", [dies, dies_while_a_child_holds_everything_open, is_unplugged])
def test_an_end_is_told_within_a_second(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], end: Any
) -> None:
    a, b = two
    epoch = b("entry", 0)[1]
    assert b("heard") == 0
    begin = time.monotonic()
    end(a)
    assert b("heard", 1) >= 1
    assert time.monotonic() - begin < 1
    assert b("entry", 0)[:2] == [DEAD, epoch + 1]
    assert b("attention", 1) == 1
    assert agent.chunk(0)["machine"] is None


def test_the_reason_of_an_end_is_logged(agent: Agent, two: tuple[FakeMachine, FakeMachine]) -> None:
    two[0].kill()
    two[1]("hangup")
    wait_for(lambda: agent.log.read_text().count(" left: ") == 2, "both left")
    log = agent.log.read_text()
    assert f"a (pid {two[0].pid}) left: its process ended" in log
    assert f"b (pid {two[1].pid}) left: its device was taken out" in log
    counters = agent.status()["regions"][0]["counters"]
    assert (counters["joined"], counters["left"], counters["died"]) == (2, 2, 1)


def test_the_next_life_gets_the_same_chunk_and_doorbell(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    a, b = two
    before = b("numbers")
    a.kill()
    b("heard", 1)
    b("ring", 0)  # nobody is there to hear
    dead = b("entry", 0)[1]
    again = machines(agent, "a")
    assert again("greet")[1] == [0, False]
    assert b("entry", 0)[:2] == [ASSIGNED, dead + 1]
    assert again("numbers") == before
    assert again("heard") == 0
    b("ring", 0)
    assert again("heard", 1) == 1
    # A second announcement, or a leave, would corrupt QEMU's memory.
    assert len(b("more")) == 3 + 16


def test_the_same_process_may_take_the_device_out_and_in_again(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    a, b = two
    for _round in range(3):
        a("hangup")
        assert b("heard", 1) >= 1
        a("connect", agent.folder / "one.sock")
        assert a("greet")[1] == [0, False]
    assert b("entry", 0)[0] == ASSIGNED


def test_a_hundred_joins_and_leaves_leak_nothing(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    a, b = two
    before = agent.fds()
    for _round in range(100):
        a("hangup")
        a("connect", agent.folder / "one.sock")
        a("greet")
    assert agent.fds() == before
    counters = agent.status()["regions"][0]["counters"]
    assert (counters["joined"], counters["left"]) == (102, 100)
    assert b("entry", 0)[0] == ASSIGNED


def test_a_machine_that_scribbles_over_everything_harms_only_its_region(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    agent.region("other", chunks=[{"owner": "c", "size": "4M"}])
    agent.reload()
    c = machines(agent, "c", "other")
    c("greet")
    a, b = two
    a("scribble", 0, 65536)
    machines(agent, "a")("greet")
    agent.reload()
    begin = time.monotonic()
    a.kill()
    assert b("heard", 1) >= 1
    assert time.monotonic() - begin < 1
    assert "magic number" in agent.status()["regions"][0]["error"]
    assert agent.chunk(0, region=1)["machine"]["pid"] == c.pid
    assert agent.running()


# Restarts.


def test_a_killed_agent_leaves_machines_to_ring_each_other(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    agent.kill()
    two[0]("ring", 1)
    assert two[1]("heard", 1) == 1


def test_its_successor_touches_no_living_chunk_and_notices_the_next_end(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    a, b = two
    entries = [a("entry", 0), a("entry", 1)]
    agent.kill()
    agent.start()
    assert [a("entry", 0), a("entry", 1)] == entries
    machine = agent.chunk(0)["machine"]
    assert machine["pid"] == a.pid
    assert (machine["connected"], machine["doorbell"]) == (False, True)
    begin = time.monotonic()
    a.kill()
    assert b("heard", 1) >= 1
    assert time.monotonic() - begin < 1
    assert b("entry", 0)[:2] == [DEAD, entries[0][1] + 1]
    assert b("attention", 1) == 1


def test_machines_of_before_and_after_a_restart_ring_each_other(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    a, b = two
    agent.kill()
    agent.start()
    a.kill()
    wait_for(lambda: b("entry", 0)[0] == DEAD, "a is dead")
    again = machines(agent, "a")
    again("greet")
    again("ring", 1)
    assert wait_for(lambda: b("heard", 0.1), "b hears the new a")
    b("ring", 0)
    assert again("heard", 1) == 1


def test_a_chunk_declared_after_a_restart_is_heard_by_older_machines(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    agent.kill()
    agent.start()
    region_of(agent, agent.config["regions"][0], "late")
    late = machines(agent, "late")
    assert late("greet")[1] == [2, False]
    two[0]("ring", 2)
    assert late("heard", 1) == 1
    late("ring", 0)
    assert two[0]("heard", 1) == 1


def test_an_agent_killed_twice_still_knows_the_doorbells(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    for _round in range(2):
        agent.kill()
        agent.start()
        assert agent.chunk(0)["machine"]["doorbell"]
    two[1].kill()
    assert two[0]("heard", 1) >= 1


def test_who_died_while_there_was_no_agent_is_dead_afterwards(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    a, b = two
    agent.kill()
    epoch = b("entry", 0)[1]
    a.kill()
    assert b("entry", 0)[:2] == [ASSIGNED, epoch]
    agent.start()
    assert b("entry", 0)[:2] == [DEAD, epoch + 1]
    assert b("heard", 1) >= 1
    assert b("attention", 1) == 1


def test_who_unplugged_while_there_was_no_agent_may_come_back(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    a, b = two
    agent.kill()
    agent.start()
    epoch = b("entry", 0)[1]
    a("hangup")
    # No socket tells; whoever connects again does, and a look at what the process has mapped.
    a("connect", agent.folder / "one.sock")
    assert a("greet")[-1][1]
    assert b("entry", 0)[:2] == [ASSIGNED, epoch + 2]
    b("hangup")
    agent.reload()
    assert a("entry", 1)[0] == DEAD


def test_a_chunk_that_is_only_declared_survives_a_restart(agent: Agent) -> None:
    agent.region(chunks=[{"owner": "a", "size": "4M"}])
    agent.start()
    before = agent.chunk(0)
    agent.kill()
    agent.start()
    assert agent.chunk(0) == before
    assert before["state"] == "assigned"


def test_a_machine_without_doorbell_is_found_and_its_end_noticed(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    region = agent.config["regions"][0]
    region_of(agent, region, "plain")
    plain = FakeMachine("-name", "guest=plain", "--map", region["path"])
    machines.made.append(plain)
    plain("entry", 2)
    agent.reload()
    machine = agent.chunk(2)["machine"]
    assert (machine["pid"], machine["connected"], machine["doorbell"]) == (plain.pid, False, False)
    epoch = plain("entry", 2)[1]
    plain.kill()
    assert two[0]("heard", 1) >= 1
    assert two[0]("entry", 2)[:2] == [DEAD, epoch + 1]
    again = FakeMachine("-name", "guest=plain", "--map", region["path"])
    machines.made.append(again)
    again("entry", 2)
    agent.reload()
    assert again("entry", 2)[:2] == [ASSIGNED, epoch + 2]


# Being a service.


def test_sigterm_ends_it_cleanly(agent: Agent, two: tuple[FakeMachine, FakeMachine]) -> None:
    assert agent.stop() == 0
    left = {path.name for path in agent.folder.iterdir()}
    # Machines still run: their doorbells are for its successor to find.
    assert left == {"agent.json", "log", "one.sock.doorbells", "lock"} - {"lock"}
    two[0]("ring", 1)
    assert two[1]("heard", 1) == 1
    agent.start()
    for machine in two:
        machine.kill()
    wait_for(lambda: not agent.chunk(1)["machine"] and not agent.chunk(0)["machine"], "both end")
    assert agent.stop() == 0
    assert {path.name for path in agent.folder.iterdir()} == {"agent.json", "log"}


def test_an_idle_agent_uses_no_processor(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    assert two[0]("heard") == 0
    before = agent.cpu()
    time.sleep(2)
    assert agent.cpu() - before < 0.1


def test_out_of_descriptors_it_waits_and_goes_on(agent: Agent, machines: Any) -> None:
    agent.region(size="32M", automatic={"count": 16, "size": "1M", "ring_size": "4K"})

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (42, 42))

    agent.start(preexec_fn=few)
    made = []
    for number in range(12):
        made.append(machines(agent, f"vm{number}"))
        time.sleep(0.02)
    log = agent.log
    wait_for(lambda: "Too many open files" in log.read_text(), "descriptors run out")
    before = agent.cpu()
    time.sleep(1.5)
    assert agent.cpu() - before < 0.3
    for machine in made:
        machine.kill()
    wait_for(agent.answers, "it goes on")
    again = machines(agent, "vm0")
    assert again("greet")[1][0] in range(16)


def test_a_second_agent_is_refused(agent: Agent, two: tuple[FakeMachine, FakeMachine]) -> None:
    path = agent.config["regions"][0]["path"]
    second = agent.call("run", "--region", path, "--socket", str(agent.folder / "second"))
    assert second.returncode == 1
    assert "Cannot serve region" in second.stderr
    assert "another agent does" in second.stderr
    assert two[0]("entry", 0)[0] == ASSIGNED
    same = agent.call("run", "--config", str(agent.config_path))
    assert same.returncode == 1
    assert "another process does" in same.stderr


def test_reload_adds_and_removes_regions_and_disturbs_nobody(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    other = agent.region("other", chunks=[{"owner": "c", "size": "4M"}])
    agent.reload()
    c = machines(agent, "c", "other")
    assert c("greet")[1] == [0, False]
    agent.config["regions"].remove(other)
    agent.reload()
    assert c("eof", 2)
    assert not Path(other["socket"]).exists()
    assert [region["name"] for region in agent.status()["regions"]] == ["one"]
    machine = agent.chunk(0)["machine"]
    assert (machine["pid"], machine["connected"]) == (two[0].pid, True)


def test_a_broken_configuration_changes_nothing(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    agent.config_path.write_text("{")
    agent.signal(signal.SIGHUP)
    wait_for(lambda: "going on as before" in agent.log.read_text(), "it complains")
    assert agent.chunk(0)["machine"]["pid"] == two[0].pid


def test_a_region_that_cannot_be_served_is_tried_again(agent: Agent, machines: Any) -> None:
    bad = agent.region("bad", chunks=[{"owner": "b", "size": "4M"}])
    agent.region("good", chunks=[{"owner": "a", "size": "4M"}])
    Path(bad["path"]).write_bytes(bytes(65536))
    agent.start()
    assert machines(agent, "a", "good")("greet")[1] == [0, False]
    first = agent.status()["regions"][0]
    assert "magic number" in first["error"]
    os.unlink(bad["path"])
    agent.reload()
    assert machines(agent, "b", "bad")("greet")[1] == [0, False]
    assert agent.status()["regions"][0]["error"] is None


def test_a_defect_does_not_end_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    loop = importlib.import_module("tcp_sm_agent.loop").Loop()
    called = []
    loop.after(0, lambda: int("odd"))
    loop.after(0, lambda: called.append(1))
    loop.step()
    loop.close()
    assert called == [1]
    assert "a defect of the agent" in caplog.text
    assert "ValueError: invalid literal" in caplog.text


def test_a_defect_at_one_region_is_that_regions_error(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = importlib.import_module("tcp_sm_agent.config")
    service = importlib.import_module("tcp_sm_agent.service")
    agent.region()

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(service, "RegionFile", fail)
    with pytest.raises(service.TcpSmError, match=r"AssertionError\(\)"):
        service.Service(config.parse_config(agent.config)).run(strict=True)
    assert "in fail" in caplog.text


@pytest.mark.root
def test_a_file_that_a_stranger_put_there_is_not_served(agent: Agent, machines: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    region = agent.region(chunks=[{"owner": "a", "size": "4M"}])
    agent.call("create", "--path", region["path"], "--size", "16M", "--owner", "a")
    os.chown(region["path"], 12345, -1)
    agent.start()
    assert "belongs to user 12345, and neither" in agent.status()["regions"][0]["error"]
    # Without the agent it says the same.
    shown = agent.call("status", "--control", "/none", "--region", region["path"])
    assert "belongs to user 12345" in shown.stdout
    region["owner"] = "12345"
    agent.reload()
    assert machines(agent, "a")("greet")[1] == [0, False]


def test_a_region_is_made_with_equal_parts_where_no_size_is_given(agent: Agent) -> None:
    agent.region(chunks=[{"owner": "a"}, {"owner": "b", "size": "1M"}], parts=4)
    agent.start()
    assert (agent.chunk(0)["size"], agent.chunk(1)["size"]) == (4177920, 1 << 20)


def test_a_region_made_anew_is_served_when_nobody_uses_the_old(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    region = agent.config["regions"][0]
    old = agent.status()["regions"][0]["fingerprint"]
    os.unlink(region["path"])
    agent.reload()
    status = agent.status()["regions"][0]
    assert (status["replaced"], status["fingerprint"]) == (True, old)
    for machine in two:
        machine.kill()
    wait_for(lambda: not agent.chunk(0)["machine"] and not agent.chunk(1)["machine"], "both end")
    agent.reload()
    status = agent.status()["regions"][0]
    assert status["fingerprint"] != old
    assert machines(agent, "a")("greet")[1] == [0, False]


def test_a_deleted_socket_comes_back(
    agent: Agent, two: tuple[FakeMachine, FakeMachine], machines: Any
) -> None:
    os.unlink(agent.folder / "one.sock")
    agent.reload()
    two[0].kill()
    two[1]("heard", 1)
    assert machines(agent, "a")("greet")[1] == [0, False]


def test_the_socket_has_the_permissions_of_the_configuration(agent: Agent) -> None:
    region = agent.region(socket_mode="0620", mode="0640")
    agent.start()
    assert os.stat(region["socket"]).st_mode & 0o777 == 0o620
    assert os.stat(region["path"]).st_mode & 0o777 == 0o640
    region["socket_mode"] = "0660"
    agent.reload()
    assert os.stat(region["socket"]).st_mode & 0o777 == 0o660


def test_metrics_say_what_the_status_says(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    agent.reload()
    text = Path(agent.config["metrics"]).read_text()
    assert 'tcp_sm_region_machines{region="one",connected="true"} 2\n' in text
    assert 'tcp_sm_region_events_total{region="one",event="joined"} 2\n' in text
    assert 'tcp_sm_chunk_module{region="one",chunk="1",owner="b"} 1\n' in text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    used = {line.split("{")[0].split()[0] for line in text.splitlines() if line[0] != "#"}
    assert used == names
    two[0].kill()
    agent.stop()
    assert not Path(agent.config["metrics"]).exists()


def test_status_is_a_table_or_json_also_without_an_agent(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    where = ("--control", agent.config["control"], "--config", str(agent.config_path))
    shown = agent.call("status", *where)
    assert shown.returncode == 0
    assert f"pid {two[0].pid}, connected, module runs" in shown.stdout
    agent.stop()
    shown = agent.call("status", *where)
    assert shown.returncode == 3
    assert shown.stdout.startswith("agent: not running")
    raw = agent.call("status", "--json", *where)
    assert json.loads(raw.stdout)["regions"][0]["chunks"][1]["owner"] == "b"


def test_a_slow_reader_of_the_status_holds_nobody_up(
    agent: Agent, two: tuple[FakeMachine, FakeMachine]
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(agent.config["control"])
        two[0].kill()
        assert two[1]("heard", 1) >= 1


def test_the_daemon_starts_once_and_stops(agent: Agent) -> None:
    agent.region(chunks=[{"owner": "a", "size": "4M"}])
    agent.write()
    pidfile, log = agent.folder / "pid", agent.folder / "daemon.log"
    run = ("run", "--daemon", "--config", str(agent.config_path), "--pidfile", str(pidfile))
    try:
        assert agent.call(*run, "--log", str(log)).returncode == 0
        pid = int(pidfile.read_text())
        assert agent.status()["agent"]["pid"] == pid
        again = agent.call(*run)
        assert (again.returncode, again.stdout) == (0, "running already\n")
        assert agent.call("reload", "--pidfile", str(pidfile)).returncode == 0
        wait_for(lambda: "configuration read again" in log.read_text(), "reload")
    finally:
        stopped = agent.call("stop", "--pidfile", str(pidfile))
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert not pidfile.exists()
    # Nobody may have reaped it yet.
    assert not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    stopped = agent.call("stop", "--pidfile", str(pidfile))
    assert (stopped.returncode, stopped.stdout) == (0, "not running\n")
    assert agent.call("reload", "--pidfile", str(pidfile)).returncode == 1


def test_a_daemon_that_cannot_start_says_so(agent: Agent) -> None:
    run = ("run", "--daemon", "--config", str(agent.config_path), "--pidfile")
    failed = agent.call(*run, str(agent.folder / "pid"))
    assert failed.returncode == 1
    assert "Cannot read the configuration" in failed.stderr
    agent.config["control"] = "/proc/no/such"
    agent.write()
    log = agent.folder / "daemon.log"
    failed = agent.call(*run, str(agent.folder / "pid"), "--log", str(log))
    assert failed.returncode == 1
    assert "Cannot listen on /proc/no/such" in log.read_text()
    assert not (agent.folder / "pid").exists()


@pytest.mark.parametrize(
    ("pidfile", "log", "message"),
    [
        ("pid", "no/such/log", "Cannot start: the log {}/no/such/log cannot be written: No such"),
        ("log/pid", "log", "Cannot start: the pidfile {}/log/pid cannot be written: "),
    ],
)
def test_a_daemon_without_log_or_pidfile_says_so(
    agent: Agent, pidfile: str, log: str, message: str
) -> None:
    agent.write()
    names = "--pidfile", str(agent.folder / pidfile), "--log", str(agent.folder / log)
    failed = agent.call("run", "--daemon", "--config", str(agent.config_path), *names)
    assert failed.returncode == 1
    written = agent.folder / "log"
    said = failed.stderr + (written.read_text() if written.exists() else "")
    assert message.format(agent.folder) in said
    assert "Traceback" not in said


def test_systemd_is_told_when_it_is_ready(agent: Agent) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(agent.folder / "notify"))
        sock.settimeout(10)
        agent.env["NOTIFY_SOCKET"] = str(agent.folder / "notify")
        agent.region()
        agent.start()
        assert sock.recv(64) == b"READY=1"


BAD_CONFIG: dict[str, tuple[Any, str]] = {
    "no dictionary": ([], "needs a dictionary"),
    "unknown key": ({"region": []}, "unknown region"),
    "unknown key of a region": ({"regions": [{"name": "x", "size": 1, "sice": 2}]}, "unknown sice"),
    "no name": ({"regions": [{"size": "1M"}]}, "name: ''"),
    "no size": ({"regions": [{"name": "x"}]}, "size: region x needs one"),
    "odd size": ({"regions": [{"name": "x", "size": "3M"}]}, "not a power of two"),
    "vectors": ({"regions": [{"name": "x", "size": "1M", "vectors": 9}]}, "vectors: 9 must be"),
    "mode": ({"regions": [{"name": "x", "size": "1M", "mode": "rw"}]}, "x: mode: 'rw' must be"),
    "unquoted mode": ({"regions": [{"name": "x", "size": "1M", "mode": 416}]}, "mode: 416 must be"),
    "unquoted mode of the socket": (
        {"regions": [{"name": "x", "size": "1M", "socket_mode": 432}]},
        "quote them: '0640'",
    ),
    "group": ({"regions": [{"name": "x", "size": "1M", "group": "no such"}]}, "'no such'"),
    "socket": ({"regions": [{"name": "x", "size": "1M", "socket": "s"}]}, "must be absolute"),
    "chunk": (
        {"regions": [{"name": "x", "size": "1M", "chunks": [{"owner": "a", "sise": 1}]}]},
        "chunks: unknown sise",
    ),
    "twice": (
        {"regions": [{"name": "x", "size": "1M"}, {"name": "x", "size": "1M", "path": "/y"}]},
        "two have the name x",
    ),
    "no list": ({"regions": {}}, "regions: needs a list"),
    "NUL": ({"regions": [], "metrics": "/a\0"}, "metrics: '/a\\x00' must be absolute"),
    "NUL in an account": (
        {"regions": [{"name": "x", "size": "1M", "group": "a\0"}]},
        "There is no group 'a\\x00'",
    ),
    "half a character": (
        {"regions": [{"name": "x", "size": "1M", "host": "\ud800"}]},
        "surrogates",
    ),
}


@pytest.mark.parametrize("text", ["", '{"regions": [{"name": "x", "si', "[" * 100000, "\xff"])
def test_a_truncated_configuration_says_what_to_do(agent: Agent, text: str) -> None:
    agent.config_path.write_text(text, encoding="latin-1")
    checked = agent.call("check", "--config", str(agent.config_path))
    assert checked.returncode == 1
    assert f"Cannot read the configuration {agent.config_path}: it is no JSON" in checked.stderr
    assert "Restore it from a backup; or delete it" in checked.stderr


@pytest.mark.parametrize("kind", [kind for kind in BAD_CONFIG if kind != "no list"])
def test_a_configuration_with_a_mistake_is_refused(agent: Agent, kind: str) -> None:
    raw, message = BAD_CONFIG[kind]
    agent.config_path.write_text(json.dumps(raw))
    checked = agent.call("check", "--config", str(agent.config_path))
    assert checked.returncode == 1
    assert f"Configuration {agent.config_path}: " in checked.stderr
    assert message in checked.stderr


def test_what_the_role_writes_is_taken() -> None:
    config = importlib.import_module("tcp_sm_agent.config")
    regions = [
        {"name": "x", "size": "16M", "vms": ["a", {"name": "b", "chunk_size": "1M"}]},
        {"name": "y", "size": "16M", "automatic": {"count": 2}, "mode": "0640", "vectors": "8"},
    ]
    written = json.loads(json.dumps(normal_regions(regions, "/run/tcp_sm", socket_owner="root")))
    x, y = config.parse_config({"regions": written}).regions
    assert [(one.owner, one.size) for one in x.spec.chunks] == [("a", 0), ("b", 1 << 20)]
    assert (y.spec.automatic.count, y.access.mode, y.vectors) == (2, 0o640, 8)


def test_create_makes_a_region_and_nothing_where_one_is(agent: Agent) -> None:
    path = str(agent.shm / "x")
    make = ("create", "--path", path, "--size", "16M", "--owner", "a", "--owner", "b")
    made = agent.call(*make)
    assert made.returncode == 0
    assert "chunk 1: b, " in made.stdout
    again = agent.call(*make)
    assert again.returncode == 1
    assert "something is there already" in again.stderr
    odd = agent.call("create", "--path", path + "2", "--size", "10M")
    assert "not a power of two" in odd.stderr
    assert os.listdir(agent.shm) == ["x"]


def test_the_archive_that_is_installed_has_all_that_it_needs(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    build = importlib.import_module("build")
    zipped = agent.folder / "agent.zip"
    zipped.write_bytes(build.agent_archive())
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import tcp_sm_agent.cli;"
        "print([m for m in sys.modules if 'ansible' in m])"
    )
    # Without site-packages: nothing but the standard library.
    command = ["/usr/bin/python3", "-I", "-S", "-c", code, str(zipped)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
    assert build.agent_archive() == zipped.read_bytes()
