# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records and counters as the BPF programs write them, checked and decoded.

Private to this collection. Bytes in, dataclasses out; every field that has a
range is held to it, so that nothing later needs to doubt a value.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from . import abi


class RecordError(ValueError):
    """Bytes that are not what this version of the programs writes."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """One direction of a connection, named by its sender (``struct tcp_sm_flow``)."""

    bytes: int
    msgs: int
    read_bytes: int
    passed_msgs: int


@dataclasses.dataclass(frozen=True)
class Record:
    """What one end of a connection knows (``struct tcp_sm_record``)."""

    cookie: int
    peer_cookie: int
    cgroup: int
    opened_ns: int
    tcp_sent: int
    tcp_received: int
    tx: Flow
    rx: Flow
    client_isn: int
    server_isn: int
    netns: int
    side: abi.Side
    channel: abi.Channel
    reason: abi.Reason
    tcp_state: int
    event: abi.Event
    local_addr: str
    local_port: int
    remote_addr: str
    remote_port: int


def parse_records(data: bytes) -> list[Record]:
    """All records of a byte stream; raises :class:`RecordError` for a foreign or torn one."""
    size = abi.struct_size("tcp_sm_record")
    if len(data) % size:
        raise RecordError(
            f"reading connection records: {len(data)} bytes are not a whole number of records "
            f"of {size} bytes; the loaded BPF object is of another version of this collection"
        )
    return list(_parse_each(data, size))


def _parse_each(data: bytes, size: int) -> Iterator[Record]:
    for index in range(len(data) // size):
        raw = abi.unpack("tcp_sm_record", data[index * size : (index + 1) * size])
        try:
            yield _parse_one(raw)
        except ValueError as error:
            raise RecordError(f"reading connection record {index}: {error}") from None


def _parse_one(raw: dict[str, Any]) -> Record:
    if raw["version"] != abi.ABI_VERSION:
        raise ValueError(
            f"it has ABI {raw['version']} and this collection reads ABI {abi.ABI_VERSION}; "
            "use the version of the collection that loaded the BPF object"
        )
    if raw["family"] not in (socket.AF_INET, socket.AF_INET6):
        raise ValueError(f"{raw['family']} is no address family of TCP")
    return Record(
        **{name: raw[name] for name in _COPIED},
        tx=Flow(**raw["tx"]),
        rx=Flow(**raw["rx"]),
        client_isn=raw["pair"]["client_isn"],
        server_isn=raw["pair"]["server_isn"],
        side=abi.Side(raw["side"]),
        channel=abi.Channel(raw["channel"]),
        reason=abi.Reason(raw["reason"]),
        event=abi.Event(raw["event"]),
        local_addr=address_text(raw["local_addr"]),
        remote_addr=address_text(raw["remote_addr"]),
    )


_COPIED = (
    "cookie",
    "peer_cookie",
    "cgroup",
    "opened_ns",
    "tcp_sent",
    "tcp_received",
    "netns",
    "tcp_state",
    "local_port",
    "remote_port",
)


# Ten thousand connections have few addresses, and each takes as long to format as all the rest.
@functools.lru_cache(maxsize=4096)
def address_text(packed: bytes) -> str:
    """16 bytes as text, a v4-mapped address in its IPv4 form."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def sum_stats(per_cpu: Iterable[bytes]) -> dict[str, Any]:
    """The counters of ``struct tcp_sm_stats``, summed over CPUs.

    ``opened`` is by channel and ``reasons`` by reason, under lower-case names.
    Raises :class:`RecordError` when a value has another size.
    """
    size = abi.struct_size("tcp_sm_stats")
    total = abi.unpack("tcp_sm_stats", bytes(size))
    for data in per_cpu:
        if len(data) != size:
            raise RecordError(
                f"reading counters: a value has {len(data)} bytes where {size} are expected; "
                "the loaded BPF object is of another version of this collection"
            )
        total = _add(total, abi.unpack("tcp_sm_stats", data))
    opened, reasons = total.pop("opened"), total.pop("reasons")
    return {
        "opened": {abi.channel_name(code): count for code, count in enumerate(opened)},
        **total,
        "reasons": {
            abi.reason_name(code): count
            for code, count in enumerate(reasons)
            # A code this version does not know is shown only when it was counted.
            if code and (count or code in abi.EXPLANATIONS)
        },
    }


def _add(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [a + b for a, b in zip(value, right[name], strict=True)]
        if isinstance(value, list)
        else value + right[name]
        for name, value in left.items()
    }
