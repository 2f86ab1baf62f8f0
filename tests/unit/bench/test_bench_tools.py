# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmark reads from other programs, how it calls them, and its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from tcp_sm_bench import machine, model, stage, tools

WRK = """Running 1s test @ http://127.0.0.1:20000/file
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   488.79us  230.40us   6.33ms   93.62%
    Req/Sec    65.37k     4.28k   70.44k    81.82%
  71414 requests in 1.10s, 86.71MB read
Requests/sec:  64996.66
Transfer/sec:     78.92MB
"""


def test_redis_csv_gives_the_rate() -> None:
    text = '"test","rps","avg_latency_ms","min_latency_ms"\n"GET","74074.07","0.364","0.072"\n'
    assert tools.parse_redis(text) == 74074.07


@pytest.mark.parametrize(
    "text", ["", "WARNING: could not fetch server CONFIG\n", '"GET","1"\n"SET","2"\n']
)
def test_redis_without_exactly_one_result_is_an_error(text: str) -> None:
    with pytest.raises(tools.RunError, match="in place of one result"):
        tools.parse_redis(text)


def test_wrk_gives_rate_and_total() -> None:
    assert tools.parse_wrk(WRK) == tools.Count(71414, 64996.66)


@pytest.mark.parametrize(
    "line",
    ["  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 71414"],
)
def test_wrk_errors_are_failures_even_with_a_rate(line: str) -> None:
    with pytest.raises(tools.RunError, match=line.strip()):
        tools.parse_wrk(WRK.replace("Requests/sec", f"{line}\nRequests/sec"))


def test_wrk_that_got_nothing_is_a_failure() -> None:
    with pytest.raises(tools.RunError, match="no clean result"):
        tools.parse_wrk(WRK.replace("64996.66", "0.00"))


def where(name: str, unix: bool = False) -> tools.Where:
    (workload,) = model.select([name])
    return tools.Where(workload, unix, "192.0.2.1", 20000, "/run/x", "/opt/load")


def test_a_blocking_workload_says_so_to_the_load_generator() -> None:
    calls = {
        name: tools.TOOLS["load"].client(where(name), 0.5, 0).words
        for name in ("pingpong-64", "blocking-pingpong-64")
    }
    assert calls["pingpong-64"] == ["/opt/load", "pingpong", "192.0.2.1", "20000", "64", "0.5"]
    assert calls["blocking-pingpong-64"] == [*calls["pingpong-64"], "blocking"]


def test_redis_gets_as_many_requests_as_fit_once_its_rate_is_known() -> None:
    redis = tools.TOOLS["redis"]
    first = redis.client(where("redis-set-c50-p16"), 0.5, 0)
    later = redis.client(where("redis-set-c50-p16"), 0.5, 9000)
    assert first.words[first.words.index("-n") + 1] == "32000"
    assert later.words[later.words.index("-n") + 1] == "4500"
    assert later.count('"SET","8000.0"\n') == tools.Count(4500, 8000.0)


@pytest.mark.parametrize(("unit", "value"), [("us", 2000.0), ("conn/s", 500.0), ("MB/s", 0.032)])
def test_the_load_generators_line_becomes_the_workloads_unit(unit: str, value: float) -> None:
    text = '{"ops": 250, "bytes": 16000, "seconds": 0.5}'
    assert tools.parse_load(text, unit) == tools.Count(250, pytest.approx(value))


def test_a_load_that_moved_nothing_is_a_failure() -> None:
    with pytest.raises(tools.RunError, match=r"moved nothing in 0\.5 s"):
        tools.parse_load('{"ops": 0, "bytes": 0, "seconds": 0.5}', "us")


def test_an_unix_server_is_known_by_its_path_and_a_tcp_server_by_its_port() -> None:
    assert where("pingpong-64").listens_at == 20000
    assert where("pingpong-64", unix=True).listens_at == "/run/x/socket"


def test_nginx_serves_a_file_of_the_right_size() -> None:
    server = tools.TOOLS["wrk"].server(where("wrk-64k"))
    assert len(server.files["file"]) == 65536
    assert b"listen 192.0.2.1:20000" in server.files["nginx.conf"]


def test_cgroup2_is_found_on_a_hybrid_machine() -> None:
    mounts = (
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"
    )
    assert stage.cgroup2_mount(mounts) == Path("/sys/fs/cgroup/unified")


def test_no_cgroup2_says_how_to_mount_one() -> None:
    with pytest.raises(stage.StageError, match="mount -t cgroup2 none /sys/fs/cgroup"):
        stage.cgroup2_mount("proc /proc proc rw 0 0\n")


def test_the_ends_of_veth_are_in_different_namespaces() -> None:
    veth, loopback = stage.place("x", "veth"), stage.place("x", "loopback")
    assert veth.server_netns != veth.client_netns
    assert loopback.server_netns == loopback.client_netns


TCP_TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 91
   1: 0100007F:4E21 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 92
"""
UNIX_TABLE = """Num       RefCount Protocol Flags    Type St Inode Path
00000000b4a1c8b0: 00000002 00000000 00010000 0001 01 73191 /run/a/socket
000000007f1b6f2b: 00000003 00000000 00000000 0001 03 73192 /run/b/socket
00000000ad3e2bb1: 00000003 00000000 00000000 0001 03 73193
"""


@pytest.mark.parametrize(("port", "listening"), [(20000, True), (20001, False), (40000, False)])
def test_a_server_is_ready_when_its_port_listens(port: int, listening: bool) -> None:
    assert machine.is_listening_tcp(TCP_TABLE, port) == listening


@pytest.mark.parametrize(
    ("path", "listening"), [("/run/a/socket", True), ("/run/b/socket", False), ("/run/a", False)]
)
def test_a_server_is_ready_when_its_path_listens(path: str, listening: bool) -> None:
    assert machine.is_listening_unix(UNIX_TABLE, path) == listening
