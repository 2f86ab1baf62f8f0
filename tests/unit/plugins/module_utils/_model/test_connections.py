# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are two ends joined exactly when they are one connection, and counted once?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi, connections
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.records import Flow, Record

CLIENT = Record(
    cookie=1,
    peer_cookie=2,
    cgroup=100,
    opened_ns=1000,
    tcp_sent=11,  # 10 bytes and the SYN
    tcp_received=20,
    tx=Flow(bytes=500, msgs=5, read_bytes=500, passed_msgs=1),
    rx=Flow(bytes=7000, msgs=7, read_bytes=7000, passed_msgs=2),
    client_isn=0xAAAA,
    server_isn=0xBBBB,
    netns=4026531840,
    side=abi.Side.CLIENT,
    channel=abi.Channel.SOCKMAP,
    reason=abi.Reason.NONE,
    tcp_state=1,
    event=abi.Event.STATUS,
    local_addr="10.88.0.2",
    local_port=40000,
    remote_addr="10.0.0.1",
    remote_port=80,
)


def changed(record: Record, **fields: Any) -> Record:
    return dataclasses.replace(record, **fields)


# The server behind DNAT: another address and port than the client dialled.
SERVER = changed(
    CLIENT,
    cookie=2,
    peer_cookie=1,
    cgroup=200,
    opened_ns=1001,
    tcp_sent=20,
    tcp_received=10,
    tx=CLIENT.rx,
    rx=CLIENT.tx,
    netns=4026532000,
    side=abi.Side.SERVER,
    local_addr="10.88.0.3",
    local_port=8080,
    remote_addr="10.88.0.1",
    remote_port=40000,
)
NAMES = connections.Names(cgroups={100: "/web", 200: "/db"}, netns={4026532000: "lab"})


def test_two_ends_become_one_connection_with_both_names() -> None:
    (one,) = connections.join([SERVER, CLIENT], NAMES)
    assert one == {
        "channel": "sockmap",
        "reason": None,
        "bytes": 7500,
        "messages": 12,
        "redirected_bytes": 7500,
        "tcp_bytes": 30,
        "state": "established",
        "client": {
            "addr": "10.88.0.2",
            "port": 40000,
            "cgroup": 100,
            "cgroup_path": "/web",
            "netns": 4026531840,
            "netns_name": None,
            "cookie": 1,
        },
        "server": {
            "addr": "10.88.0.3",
            "port": 8080,
            "cgroup": 200,
            "cgroup_path": "/db",
            "netns": 4026532000,
            "netns_name": "lab",
            "cookie": 2,
        },
    }


def test_tcp_bytes_count_where_the_channel_is_tcp() -> None:
    ends = [
        changed(end, channel=abi.Channel.TCP, reason=abi.Reason.STREAM) for end in (CLIENT, SERVER)
    ]
    (one,) = connections.join(ends)
    assert (one["channel"], one["reason"]) == ("tcp", "stream")
    assert one["bytes"] == 7500 + 30
    assert one["messages"] == 12 + 3


def test_the_later_reading_of_a_counter_counts_once() -> None:
    late = changed(
        SERVER, rx=Flow(600, 6, 600, 1), tx=Flow(8000, 8, 8000, 2), tcp_received=11, tcp_sent=25
    )
    (one,) = connections.join([CLIENT, late])
    assert (one["bytes"], one["messages"], one["tcp_bytes"]) == (8600, 14, 36)


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        ((1, 0), (1, 0), ("sockmap", None)),
        ((0, 6), (1, 0), ("tcp", "blocking")),
        ((1, 0), (0, 20), ("tcp", "stream")),
        ((0, 21), (0, 6), ("tcp", "blocking")),
        ((0, 6), (0, 21), ("tcp", "blocking")),
        ((0, 24), (0, 12), ("tcp", "rcvlowat")),
        ((0, 24), (0, 24), ("tcp", "starting")),
        ((0, 21), (1, 0), ("tcp", "peer_left")),
        ((0, 0), (0, 0), ("tcp", "unknown")),
        ((2, 0), (2, 0), ("ring", None)),
    ],
)
def test_the_end_with_a_reason_of_its_own_decides(client: Any, server: Any, expected: Any) -> None:
    ends = [
        changed(end, channel=abi.Channel(channel), reason=abi.Reason(reason))
        for end, (channel, reason) in ((CLIENT, client), (SERVER, server))
    ]
    (one,) = connections.join(ends)
    assert (one["channel"], one["reason"]) == expected


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        ({}, {}, 30),
        ({"tcp_state": 4}, {"tcp_state": 8, "tcp_received": 11}, 30),
        ({"tcp_state": 5, "tcp_sent": 12}, {"tcp_state": 8, "tcp_received": 11}, 30),
        ({"tcp_state": 8, "tcp_received": 21}, {"tcp_state": 5, "tcp_sent": 21}, 30),
        (
            {"tcp_state": 6, "tcp_sent": 12, "tcp_received": 21},
            {"tcp_state": 9, "tcp_received": 11},
            30,
        ),
        (
            {"tcp_sent": 0, "tcp_received": 0, "tcp_state": 2},
            {"tcp_sent": 0, "tcp_received": 0},
            0,
        ),
    ],
)
def test_syn_and_fin_are_no_bytes(
    client: dict[str, int], server: dict[str, int], expected: int
) -> None:
    (one,) = connections.join([changed(CLIENT, **client), changed(SERVER, **server)])
    assert one["tcp_bytes"] == expected


ALONE = {"peer_cookie": 0, "channel": abi.Channel.TCP, "reason": abi.Reason.NO_LOCAL_PEER}


def test_a_client_alone_knows_the_address_it_dialled() -> None:
    (one,) = connections.join([changed(CLIENT, **ALONE)], NAMES)
    assert one["client"]["cgroup_path"] == "/web"
    assert one["server"] == {
        "addr": "10.0.0.1",
        "port": 80,
        "cgroup": None,
        "cgroup_path": None,
        "netns": None,
        "netns_name": None,
        "cookie": None,
    }
    assert (one["reason"], one["bytes"]) == ("no_local_peer", 7500 + 30)


def test_a_server_alone_knows_who_called() -> None:
    (one,) = connections.join([changed(SERVER, **ALONE)], NAMES)
    assert (one["client"]["addr"], one["client"]["port"], one["client"]["cookie"]) == (
        "10.88.0.1",
        40000,
        None,
    )
    assert one["server"]["cookie"] == 2


@pytest.mark.parametrize(
    "server",
    [
        changed(SERVER, server_isn=1),
        changed(SERVER, client_isn=1),
        changed(SERVER, side=abi.Side.CLIENT),
        changed(SERVER, peer_cookie=99),
    ],
)
def test_strangers_are_not_joined(server: Any) -> None:
    assert len(connections.join([CLIENT, server])) == 2


def test_a_client_that_names_another_peer_is_not_joined() -> None:
    assert len(connections.join([changed(CLIENT, peer_cookie=99), SERVER])) == 2


def test_unpaired_ends_with_zero_numbers_are_not_joined() -> None:
    ends = [changed(end, client_isn=0, server_isn=0) for end in (CLIENT, SERVER)]
    assert len(connections.join(ends)) == 2


def test_the_same_addresses_in_two_namespaces_stay_two_connections() -> None:
    same = {"local_addr": "127.0.0.1", "remote_addr": "127.0.0.1"}
    first = [changed(end, **same) for end in (CLIENT, SERVER)]
    other = {"client_isn": 3, "server_isn": 4, "netns": 9}
    second = [
        changed(first[0], cookie=5, peer_cookie=6, **other),
        changed(first[1], cookie=6, peer_cookie=5, **other),
    ]
    joined = connections.join([first[0], second[1], first[1], second[0]])
    assert [(one["client"]["cookie"], one["server"]["cookie"]) for one in joined] == [
        (1, 2),
        (5, 6),
    ]


def test_connections_come_in_the_order_of_opening_without_listeners() -> None:
    later = changed(CLIENT, cookie=9, client_isn=5, opened_ns=5000, peer_cookie=0)
    listener = changed(SERVER, cookie=8, client_isn=6, tcp_state=10)
    joined = connections.join([later, listener, SERVER, CLIENT])
    assert [one["client"]["cookie"] for one in joined] == [1, 9]


def test_a_socket_that_was_met_twice_counts_once() -> None:
    later = changed(CLIENT, tx=Flow(501, 6, 501, 1))
    (one,) = connections.join([CLIENT, SERVER, later, SERVER])
    assert one["bytes"] == 7501


def test_ten_thousand_connections_are_joined_by_their_pair() -> None:
    ends = []
    for index in range(10_000):
        change = {"client_isn": index + 1, "server_isn": index + 7}
        ends.append(changed(CLIENT, cookie=index * 2 + 10, peer_cookie=0, **change))
        ends.append(changed(SERVER, cookie=index * 2 + 11, peer_cookie=0, **change))
    joined = connections.join(ends)
    assert len(joined) == 10_000
    assert all(one["server"]["cookie"] == one["client"]["cookie"] + 1 for one in joined)


def on_tcp(reason: abi.Reason, **fields: Any) -> Record:
    return changed(CLIENT, channel=abi.Channel.TCP, reason=reason, **fields)


RING = changed(CLIENT, channel=abi.Channel.RING)


@pytest.mark.parametrize(
    ("sockmap", "ring", "expected"),
    [
        # Accelerated by either.
        (CLIENT, on_tcp(abi.Reason.SAME_GUEST), "sockmap"),
        (on_tcp(abi.Reason.NO_LOCAL_PEER), RING, "ring"),
        (on_tcp(abi.Reason.MODE_PASS), RING, "ring"),
        # By none: the one whose business it is says why.
        (on_tcp(abi.Reason.NO_LOCAL_PEER), on_tcp(abi.Reason.NO_OFFER), "no_offer"),
        (on_tcp(abi.Reason.MODE_PASS), on_tcp(abi.Reason.OTHER_REGION), "other_region"),
        (on_tcp(abi.Reason.BLOCKING), on_tcp(abi.Reason.SAME_GUEST), "blocking"),
        (on_tcp(abi.Reason.LEARNING), on_tcp(abi.Reason.NO_REGION), "learning"),
        (on_tcp(abi.Reason.NO_LOCAL_PEER), on_tcp(abi.Reason.SAME_GUEST), "no_local_peer"),
    ],
)
def test_a_socket_that_both_channels_watch_counts_once(
    sockmap: Record, ring: Record, expected: str
) -> None:
    (record,) = connections.one_each([sockmap], [ring])
    (one,) = connections.join([record])
    assert (one["reason"] or one["channel"]) == expected


def test_sockets_that_one_channel_watches_are_all_there() -> None:
    found = connections.one_each([CLIENT, SERVER], [changed(RING, cookie=3)])
    assert sorted(record.cookie for record in found) == [1, 2, 3]
    assert connections.one_each([], []) == []


def test_a_rings_bytes_are_those_of_its_channel() -> None:
    (one,) = connections.join([RING])
    assert (one["channel"], one["reason"]) == ("ring", None)
    assert (one["bytes"], one["messages"], one["tcp_bytes"]) == (7500, 12, 30)


def test_two_machines_tell_of_one_connection_with_both_ends() -> None:
    client = {"addr": "10.0.0.2", "port": 40000, "cookie": None}
    server = {"addr": "10.0.0.1", "port": 80, "cookie": None}
    counts = {"bytes": 5, "messages": 1, "redirected_bytes": 5, "tcp_bytes": 0}
    ring = {"channel": "ring", "reason": None, **counts}
    one = {**ring, "client": {**client, "cookie": 7}, "server": server}
    other = {**ring, "bytes": 9, "client": client, "server": {**server, "cookie": 7}}
    (both,) = connections.across([[one], [other]])
    assert both["channel"] == "ring"
    assert both["bytes"] == 9
    assert both["client"]["cookie"] == both["server"]["cookie"] == 7
    on_tcp = {**other, "channel": "tcp", "reason": "mode_pass"}
    for lists in ([[one], [on_tcp]], [[on_tcp], [one]]):
        (both,) = connections.across(lists)
        assert (both["channel"], both["reason"]) == ("tcp", "mode_pass")
    assert len(connections.across([[one], [one]])) == 2, "two clients are two connections"
    inside = {"addr": "127.0.0.1", "port": 80, "cookie": None}
    here = {**ring, "client": {**inside, "cookie": 1}, "server": inside}
    there = {**ring, "client": inside, "server": {**inside, "cookie": 2}}
    assert len(connections.across([[here], [there]])) == 2, "loopback of two machines"
