# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmark reads from other programs, and its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from tcp_sm_bench import drive, stage

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
    assert drive.parse_redis(text) == 74074.07


@pytest.mark.parametrize(
    "text", ["", "WARNING: could not fetch server CONFIG\n", '"GET","1"\n"SET","2"\n']
)
def test_redis_without_exactly_one_result_is_an_error(text: str) -> None:
    with pytest.raises(drive.RunError, match="in place of one result"):
        drive.parse_redis(text)


def test_wrk_gives_rate_and_total() -> None:
    assert drive.parse_wrk(WRK) == drive.Count(71414, 64996.66)


@pytest.mark.parametrize(
    "line",
    ["  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 71414"],
)
def test_wrk_errors_are_failures_even_with_a_rate(line: str) -> None:
    with pytest.raises(drive.RunError, match=line.strip()):
        drive.parse_wrk(WRK.replace("Requests/sec", f"{line}\nRequests/sec"))


def test_wrk_that_got_nothing_is_a_failure() -> None:
    with pytest.raises(drive.RunError, match="no clean result"):
        drive.parse_wrk(WRK.replace("64996.66", "0.00"))


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
    assert drive.is_listening_tcp(TCP_TABLE, port) == listening


@pytest.mark.parametrize(
    ("path", "listening"), [("/run/a/socket", True), ("/run/b/socket", False), ("/run/a", False)]
)
def test_a_server_is_ready_when_its_path_listens(path: str, listening: bool) -> None:
    assert drive.is_listening_unix(UNIX_TABLE, path) == listening
