# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the records of single sockets to connections with both ends.

Private to this collection. Two records are one connection when both initial
sequence numbers agree and one is the client's, the other the server's; the
addresses are no help, since network namespaces and DNAT make them differ or
collide.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import abi
from .records import Record


@dataclasses.dataclass(frozen=True)
class Names:
    """What numbers in records are called on this machine; unknown ones stay ``None``.

    ``cgroups``: cgroup id to path below the cgroup2 mount. ``netns``: inode
    number to the name of the network namespace.
    """

    cgroups: Mapping[int, str] = dataclasses.field(default_factory=dict)
    netns: Mapping[int, str] = dataclasses.field(default_factory=dict)


# What the sockmap channel says of a socket that the ring channel may be for.
_NOT_LOCAL = (abi.Reason.NO_LOCAL_PEER, abi.Reason.MODE_PASS)


def one_each(sockmap: Iterable[Record], ring: Iterable[Record]) -> list[Record]:
    """One record for each socket that the programs of both channels watch.

    Where it is accelerated, the record of the channel that does it. On TCP, the ring channel's
    reason counts for connections that leave this machine, and the sockmap channel's for others.
    """
    chosen = {record.cookie: record for record in sockmap}
    for record in ring:
        other = chosen.get(record.cookie)
        if other is None or _ring_decides(other, record):
            chosen[record.cookie] = record
    return list(chosen.values())


def _ring_decides(sockmap: Record, ring: Record) -> bool:
    if abi.Channel.TCP not in (sockmap.channel, ring.channel):
        return True
    if sockmap.channel != ring.channel:
        return ring.channel != abi.Channel.TCP
    return sockmap.reason in _NOT_LOCAL and ring.reason != abi.Reason.SAME_GUEST


def join(records: Iterable[Record], names: Names | None = None) -> list[dict[str, Any]]:
    """Connections in the order in which they were opened.

    Each is ``{channel, reason, bytes, messages, redirected_bytes, tcp_bytes,
    state, client, server}``. ``bytes`` and ``messages`` count both directions:
    what was redirected, plus what went by TCP where the channel is ``tcp``.
    An end is ``{addr, port, cgroup, cgroup_path, netns, netns_name, cookie}``;
    of an end that is not a socket of this kernel only address and port are set.
    Listening sockets are left out.
    """
    names = names or Names()
    # A walk over sockets that come and go may meet one twice; the later reading counts.
    latest = {record.cookie: record for record in records}
    ends = [record for record in latest.values() if record.tcp_state != abi.TcpState.LISTEN]
    ends.sort(key=lambda record: (record.opened_ns, record.cookie))
    partners = _pair_up(ends)
    result = []
    for record in ends:
        partner = partners.get(record.cookie)
        if partner is None:
            result.append(_connection(record, None, names))
        elif record.side == abi.Side.CLIENT:
            result.append(_connection(record, partner, names))
    return result


def across(machines: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One list of what several machines said of their connections, as ``join`` returns them.

    Two machines that hold one end each of the same addresses and ports speak of one connection:
    it gets both ends, the larger counts, which are the later reading, and the channel and reason
    of the end that is on TCP. Addresses of loopback are never compared.
    """
    found: list[dict[str, Any]] = []
    halves: dict[tuple[Any, ...], dict[str, Any]] = {}
    for connection in (one for connections in machines for one in connections):
        key = _addresses(connection)
        other = halves.pop(key, None)
        if other is not None and _missing_end(other) != _missing_end(connection):
            other.update(_merged(other, connection))
            continue
        found.append(dict(connection))
        if _missing_end(connection) and not _is_loopback(connection):
            halves[key] = found[-1]
    return found


def _addresses(connection: Mapping[str, Any]) -> tuple[Any, ...]:
    ends = connection["client"], connection["server"]
    return tuple(end[part] for end in ends for part in ("addr", "port"))


def _is_loopback(connection: Mapping[str, Any]) -> bool:
    return ipaddress.ip_address(connection["client"]["addr"]).is_loopback


def _missing_end(connection: Mapping[str, Any]) -> str | None:
    """The end that the machine knows nothing of but its address."""
    for end in ("client", "server"):
        if connection[end]["cookie"] is None:
            return end
    return None


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    deciding = other if one["reason"] is None else one
    counts = ("bytes", "messages", "redirected_bytes", "tcp_bytes")
    return {
        **{name: deciding[name] for name in ("channel", "reason")},
        **{name: max(one[name], other[name]) for name in counts},
        **{
            end: one[end] if one[end]["cookie"] is not None else other[end]
            for end in ("client", "server")
        },
    }


def _pair_up(ends: list[Record]) -> dict[int, Record]:
    """The other end of each record that has exactly one, by cookie."""
    servers: dict[tuple[int, int], list[Record]] = {}
    for record in ends:
        if record.side == abi.Side.SERVER:
            servers.setdefault((record.client_isn, record.server_isn), []).append(record)
    partners: dict[int, Record] = {}
    for client in ends:
        if client.side != abi.Side.CLIENT:
            continue
        found = [
            server
            for server in servers.get((client.client_isn, client.server_isn), ())
            if server.cookie not in partners and _may_join(client, server)
        ]
        if found:
            partners[client.cookie] = found[0]
            partners[found[0].cookie] = client
    return partners


def _may_join(client: Record, server: Record) -> bool:
    """Whether nothing the two ends say contradicts their being one connection."""
    if (client.client_isn, client.server_isn) == (0, 0):
        return False  # never paired: zero is "not known", not a number
    return client.peer_cookie in (0, server.cookie) and server.peer_cookie in (0, client.cookie)


def _connection(first: Record, second: Record | None, names: Names) -> dict[str, Any]:
    """``first`` is the client's record, or the only one."""
    both = [first] if second is None else [first, second]
    deciding = _deciding_end(both)
    on_tcp = deciding.channel == abi.Channel.TCP
    # Each direction is counted at both ends, read at slightly different times:
    # the larger number is the later one.
    redirected = _direction(both, "bytes")
    tcp_bytes = _tcp_bytes(both)
    messages = _direction(both, "msgs")
    if on_tcp:
        messages += _direction(both, "passed_msgs")
    return {
        "channel": abi.channel_name(deciding.channel),
        "reason": _reason(deciding),
        "bytes": redirected + (tcp_bytes if on_tcp else 0),
        "messages": messages,
        "redirected_bytes": redirected,
        "tcp_bytes": tcp_bytes,
        "state": abi.state_name(first.tcp_state),
        **_ends(first, second, names),
    }


def _deciding_end(both: list[Record]) -> Record:
    """The end that says where the connection stands.

    One end on TCP puts the connection there; between two, the one whose reason
    is its own and not the other's refusal.
    """
    on_tcp = [record for record in both if record.channel == abi.Channel.TCP]
    own = [record for record in on_tcp if record.reason not in _SECOND_HAND]
    return (own or on_tcp or both)[0]


_SECOND_HAND = (abi.Reason.NONE, abi.Reason.PEER_LEFT, abi.Reason.STARTING)


def _reason(record: Record) -> str | None:
    if record.channel != abi.Channel.TCP:
        return None
    return abi.reason_name(record.reason) or abi.UNKNOWN_REASON


def _direction(both: list[Record], field: str) -> int:
    """A counter of both directions: what ``both[0]`` sent plus what it received."""
    first, *rest = both
    sent = max(getattr(first.tx, field), *(getattr(other.rx, field) for other in rest), 0)
    received = max(getattr(first.rx, field), *(getattr(other.tx, field) for other in rest), 0)
    return int(sent + received)


def _tcp_bytes(both: list[Record]) -> int:
    first, *rest = both
    sent = max(_payload_sent(first), *(_payload_received(other) for other in rest), 0)
    received = max(_payload_received(first), *(_payload_sent(other) for other in rest), 0)
    return sent + received


# The kernel counts sequence numbers. A client's SYN is among those acknowledged (a server's
# is not: its socket is made after that), and so is a FIN, at either end.
_FIN_ACKNOWLEDGED = (abi.TcpState.FIN_WAIT2, abi.TcpState.TIME_WAIT)
_FIN_RECEIVED = (
    abi.TcpState.CLOSE_WAIT,
    abi.TcpState.LAST_ACK,
    abi.TcpState.CLOSING,
    abi.TcpState.TIME_WAIT,
)


def _payload_sent(record: Record) -> int:
    flags = (record.side == abi.Side.CLIENT) + (record.tcp_state in _FIN_ACKNOWLEDGED)
    return max(record.tcp_sent - flags, 0)


def _payload_received(record: Record) -> int:
    return max(record.tcp_received - (record.tcp_state in _FIN_RECEIVED), 0)


def _ends(first: Record, second: Record | None, names: Names) -> dict[str, Any]:
    own = _known_end(first, names)
    other = _known_end(second, names) if second else _unknown_end(first)
    if first.side == abi.Side.CLIENT:
        return {"client": own, "server": other}
    return {"client": other, "server": own}


def _known_end(record: Record, names: Names) -> dict[str, Any]:
    return {
        "addr": record.local_addr,
        "port": record.local_port,
        "cgroup": record.cgroup,
        "cgroup_path": names.cgroups.get(record.cgroup),
        "netns": record.netns,
        "netns_name": names.netns.get(record.netns),
        "cookie": record.cookie,
    }


def _unknown_end(other: Record) -> dict[str, Any]:
    return {
        "addr": other.remote_addr,
        "port": other.remote_port,
        "cgroup": None,
        "cgroup_path": None,
        "netns": None,
        "netns_name": None,
        "cookie": None,
    }
