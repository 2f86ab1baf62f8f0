# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can an operator read the tables, and do they leave nothing out?"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi, tables


def connection(
    port: int,
    channel: str,
    reason: str | None,
    byte_count: int,
    *,
    messages: int = 1,
    addr: str = "10.88.0.2",
) -> dict[str, Any]:
    return {
        "channel": channel,
        "reason": reason,
        "bytes": byte_count,
        "messages": messages,
        "client": {"addr": addr, "port": port},
        "server": {"addr": "10.88.0.3", "port": 6379},
    }


THREE = [
    connection(40001, "tcp", "blocking", 2048),
    connection(40002, "sockmap", None, 3 * 1024**2, messages=1234),
    connection(40003, "sockmap", None, 5 * 1024**3, addr="fd00::2"),
]


def test_connections_are_aligned_sorted_summed_and_explained() -> None:
    assert tables.connections_table(THREE).splitlines() == [
        "CONNECTION                         CHANNEL    BYTES  MESSAGES  REASON",
        "---------------------------------  -------  -------  --------  --------",
        "[fd00::2]:40003 -> 10.88.0.3:6379  sockmap  5.0 GiB         1  -",
        "10.88.0.2:40002 -> 10.88.0.3:6379  sockmap  3.0 MiB      1234  -",
        "10.88.0.2:40001 -> 10.88.0.3:6379  tcp      2.0 KiB         1  blocking",
        "",
        "3 connections: 2 by sockmap (5.0 GiB), 1 by tcp (2.0 KiB)",
        f"blocking (1): {abi.EXPLANATIONS[abi.Reason.BLOCKING]}",
    ]


def test_a_limit_says_how_many_it_leaves_out_and_still_counts_them() -> None:
    lines = tables.connections_table(THREE, 1).splitlines()
    assert lines[2].startswith("[fd00::2]:40003")
    assert lines[3] == "... and 2 more"
    assert lines[5].startswith("3 connections: 2 by sockmap")


def test_no_connections_say_so() -> None:
    assert tables.connections_table([]) == "No connections in scope."


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**3, "1.0 GiB"),
        (2048 * 1024**5, "2048.0 PiB"),
    ],
)
def test_bytes_are_in_binary_units(count: Any, text: Any) -> None:
    assert tables.byte_text(count) == text


BENCH = {
    "topology": "veth",
    "workload": "redis-get-c50",
    "unit": "req/s",
    "better": "higher",
    "tcp": 81234.5,
    "ours": 121851.75,
    "naive": None,
    "unix": 9.876,
    "ratio": 1.5,
    "ci": [1.444, 1.556],
    "runs": 7,
    "cpu_ratio": 0.5,
}


def test_measurements_are_aligned_and_absent_ones_marked() -> None:
    text = tables.bench_table([BENCH, {**BENCH, "ci": None, "cpu_ratio": None, "unit": "us"}])
    header, _rule, first, second = text.splitlines()
    assert " ".join(header.split()) == "TOPOLOGY WORKLOAD UNIT TCP OURS RATIO CI CPU UNIX RUNS"
    assert " ".join(first.split()) == (
        "veth redis-get-c50 req/s 81,234 121,852 1.50 1.44-1.56 0.50 9.88 7"
    )
    assert second.split()[6:8] == ["-", "-"]
    assert len(header) == len(first) == len(second)


def test_machines_have_columns_of_their_own_and_are_labelled_by_their_accelerator() -> None:
    machines = {
        **BENCH,
        "topology": "vm",
        "unix": None,
        "spin": 150000.0,
        "spin_ratio": 1.8,
        "loopback": 200000.0,
        "host_cpu_ratio": 0.4,
        "guests": {"accelerator": "tcg", "kernel": "6.12", "cpus": 1},
    }
    header, _rule, first, second = tables.bench_table([machines, BENCH]).splitlines()
    assert " ".join(header.split()) == (
        "TOPOLOGY WORKLOAD UNIT TCP OURS RATIO CI CPU HOST-CPU SPIN SPIN-RATIO UNIX LOOPBACK RUNS"
    )
    assert " ".join(first.split()) == (
        "vm/tcg redis-get-c50 req/s 81,234 121,852 1.50 1.44-1.56 0.50 0.40 150,000 1.80 - "
        "200,000 7"
    )
    assert second.split()[0] == "veth"


def test_no_measurements_say_so() -> None:
    assert tables.bench_table([]) == "No measurements."
