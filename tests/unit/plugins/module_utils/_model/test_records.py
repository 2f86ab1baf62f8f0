# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are records and counters decoded field by field, and broken ones refused?

The bytes are laid out here by hand, offset by offset from bpf/tcp_sm.h, so
that the decoder is not held against itself.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi, records

RECORD_SIZE = 168
# Offsets in struct tcp_sm_record.
FAMILY, SIDE, CHANNEL, REASON, EVENT, VERSION = 124, 130, 131, 132, 134, 135


def record_bytes(**patches: int) -> bytearray:
    data = bytearray(RECORD_SIZE)
    struct.pack_into("=6Q", data, 0, 11, 12, 13, 14, 15, 16)
    struct.pack_into("=4Q", data, 48, 21, 22, 23, 24)
    struct.pack_into("=4Q", data, 80, 31, 32, 33, 34)
    struct.pack_into("=3I", data, 112, 41, 42, 43)
    struct.pack_into("=3H", data, 124, 2, 40000, 6379)
    struct.pack_into("=6B", data, 130, 1, 0, 6, 1, 2, 1)
    data[136:152] = ipaddress.IPv6Address("::ffff:10.88.0.2").packed
    data[152:168] = ipaddress.IPv6Address("2001:db8::1").packed
    for name, value in patches.items():
        offset = globals()[name]
        struct.pack_into("=H" if name == "FAMILY" else "=B", data, offset, value)
    return data


def test_every_field_is_decoded() -> None:
    (record,) = records.parse_records(bytes(record_bytes()))
    assert record == records.Record(
        cookie=11,
        peer_cookie=12,
        cgroup=13,
        opened_ns=14,
        tcp_sent=15,
        tcp_received=16,
        tx=records.Flow(21, 22, 23, 24),
        rx=records.Flow(31, 32, 33, 34),
        client_isn=41,
        server_isn=42,
        netns=43,
        side=abi.Side.SERVER,
        channel=abi.Channel.TCP,
        reason=abi.Reason.BLOCKING,
        tcp_state=1,
        event=abi.Event.CLOSE,
        local_addr="10.88.0.2",
        local_port=40000,
        remote_addr="2001:db8::1",
        remote_port=6379,
    )


def test_a_stream_of_records_keeps_its_order() -> None:
    stream = bytes(record_bytes(SIDE=0) + record_bytes() + record_bytes(CHANNEL=1, REASON=0))
    sides = [(int(one.side), int(one.channel)) for one in records.parse_records(stream)]
    assert sides == [(0, 0), (1, 0), (1, 1)]
    assert records.parse_records(b"") == []


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"VERSION": 2}, "record 1: it has ABI 2 and this collection reads ABI 1; use the version"),
        ({"FAMILY": 1}, "record 1: 1 is no address family of TCP"),
        ({"SIDE": 2}, "record 1: 2 is not a valid Side"),
        ({"CHANNEL": 3}, "record 1: 3 is not a valid Channel"),
        ({"REASON": 63}, "record 1: 63 is not a valid Reason"),
        ({"EVENT": 3}, "record 1: 3 is not a valid Event"),
    ],
)
def test_a_value_out_of_range_is_named(patch: Any, message: Any) -> None:
    with pytest.raises(records.RecordError, match=message):
        records.parse_records(bytes(record_bytes() + record_bytes(**patch)))


@pytest.mark.parametrize("length", [1, 167, 169, 335])
def test_a_torn_stream_is_refused(length: Any) -> None:
    stream = bytes(record_bytes() * 3)[:length]
    with pytest.raises(records.RecordError, match=f"{length} bytes are not a whole number"):
        records.parse_records(stream)


def stats_bytes(factor: int) -> bytes:
    values = [1, 2, 3, 4, 5, 6, 7, 8, 9] + [0] * 64
    values[9 + 6] = 100  # BLOCKING
    return struct.pack("=73Q", *(value * factor for value in values))


def test_counters_are_summed_over_cpus() -> None:
    total = records.sum_stats([stats_bytes(1), stats_bytes(10)])
    assert total["opened"] == {"tcp": 11, "sockmap": 22, "ring": 33}
    assert {name: total[name] for name in total if name not in ("opened", "reasons")} == {
        "closed": 44,
        "redirected_bytes": 55,
        "redirected_msgs": 66,
        "passed_msgs": 77,
        "left": 88,
        "lost_events": 99,
    }
    assert total["reasons"]["blocking"] == 1100
    assert sum(total["reasons"].values()) == 1100
    assert len(total["reasons"]) == len(abi.Reason) - 1


def test_an_unknown_reason_is_shown_once_it_was_counted() -> None:
    counted = bytearray(stats_bytes(1))
    struct.pack_into("=Q", counted, (9 + 63) * 8, 3)
    assert records.sum_stats([bytes(counted)])["reasons"]["reason_63"] == 3


def test_counters_of_another_size_are_refused() -> None:
    with pytest.raises(records.RecordError, match="583 bytes where 584 are expected"):
        records.sum_stats([stats_bytes(1)[:-1]])


def test_no_cpu_gives_zeros() -> None:
    assert records.sum_stats([])["opened"] == {"tcp": 0, "sockmap": 0, "ring": 0}
