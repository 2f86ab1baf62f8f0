# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the two ends found through address translation and every address family?"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from harness import net
from harness.channel import Channel, Config, Record
from harness.process import Place, Said
from harness.scene import Scene, Stage, accept, connect, cookie, listener, receive, send


def echo(said: Said, address: str, port: int, count: int) -> list[int]:
    """Echo `count` connections, one after the other; return their cookies."""
    cookies = []
    with listener(address, port) as door:
        said.say(door.getsockname()[1])
        for _ in range(count):
            server = accept(door)
            while data := receive(server, 100):
                send(server, data)
            cookies.append(cookie(server))
            server.close()
    return cookies


def use(
    _said: Said, channel: Channel, address: str, port: int, count: int, family: int | None = None
) -> list[Record]:
    """Make connections that each exchange ten messages; return the records of this side."""
    records = []
    for number in range(count):
        client = connect(address, port, family)
        for turn in range(10):
            text = b"%050d%050d" % (number, turn)
            send(client, text)
            assert receive(client, 100) == text
        records.append(channel.records()[cookie(client)])
        client.close()
    return records


@dataclass(frozen=True)
class Route:
    """listen: the server's address; address: what clients connect to; ports likewise."""

    listen: str
    address: str
    port: int = 0
    seen_port: int = 0
    family: int | None = None


def check(
    stage: Stage,
    start: Callable[..., Any],
    route: Route,
    client: Place,
    server: Place | None = None,
    *,
    count: int = 10,
) -> None:
    """Every connection is accelerated both ways, with the right peer."""
    there = start(echo, route.listen, route.port, count, place=server or client)
    real = there.take()
    port = route.seen_port or real
    here = start(use, stage.channel, route.address, port, count, route.family, place=client)
    records = here.result()
    cookies = there.result()
    assert [record.peer_cookie for record in records] == cookies
    for record in records:
        assert record.tx.msgs >= 8, record
        assert record.rx.msgs >= 8, record
        assert record.remote_port == port


def test_dnat_and_masquerade(stage: Stage, start: Callable[..., Any]) -> None:
    """client -> router (DNAT to the server, MASQUERADE) -> server; neither knows the other."""
    with net.namespaces(3) as (client, router, server), stage.place() as place:
        net.join(client, router, "10.77.1.2/24", "10.77.1.1/24")
        net.join(server, router, "10.77.2.2/24", "10.77.2.1/24")
        router.sysctl("net.ipv4.ip_forward", 1)
        router.rules(
            """
            table ip nat {
              chain pre {
                type nat hook prerouting priority -100;
                ip daddr 10.77.1.1 tcp dport 80 dnat to 10.77.2.2:6000
              }
              chain post {
                type nat hook postrouting priority 100;
                masquerade
              }
            }
            """
        )
        route = Route("10.77.2.2", "10.77.1.1", port=6000, seen_port=80)
        ends = Place(place.cgroup, client.path), Place(place.cgroup, server.path)
        check(stage, start, route, *ends)


def test_redirect_in_one_namespace(stage: Stage, start: Callable[..., Any]) -> None:
    with net.namespaces(1) as (space,), stage.place(netns=space.path) as place:
        space.rules(
            """
            table ip nat {
              chain out {
                type nat hook output priority -100;
                tcp dport 80 redirect to :6001
              }
            }
            """
        )
        check(stage, start, Route("127.0.0.1", "127.0.0.1", port=6001, seen_port=80), place)


@pytest.mark.parametrize(
    ("listen", "address", "family"),
    [
        ("::1", "::1", None),
        ("::", "127.0.0.1", None),
        ("::", "::ffff:127.0.0.1", socket.AF_INET6),
        ("127.0.0.1", "::ffff:127.0.0.1", socket.AF_INET6),
    ],
    ids=["ipv6", "v4-to-dual-stack", "mapped-to-dual-stack", "mapped-to-v4"],
)
def test_families(
    stage: Stage, start: Callable[..., Any], listen: str, address: str, family: int | None
) -> None:
    with stage.place() as place:
        check(stage, start, Route(listen, address, family=family), place)


def test_ipv6_over_veth(stage: Stage, start: Callable[..., Any]) -> None:
    with net.namespaces(2) as (left, right), stage.place() as place:
        net.join(left, right, "fd77::1/64", "fd77::2/64")
        ends = Place(place.cgroup, left.path), Place(place.cgroup, right.path)
        check(stage, start, Route("::", "fd77::2"), *ends)


def test_bridge_between_containers(stage: Stage, start: Callable[..., Any]) -> None:
    """Two namespaces on a bridge in a third, as containers are."""
    with net.namespaces(3) as (left, middle, right), stage.place() as place:
        middle.run("ip", "link", "add", "br0", "type", "bridge")
        middle.run("ip", "link", "set", "br0", "up")
        for space, address in ((left, "10.77.3.2"), (right, "10.77.3.3")):
            _, port = net.join(space, middle, f"{address}/24", "0.0.0.0/32")
            middle.run("ip", "link", "set", port, "master", "br0")
        ends = Place(place.cgroup, left.path), Place(place.cgroup, right.path)
        check(stage, start, Route("0.0.0.0", "10.77.3.3"), *ends)


def test_simultaneous_open_stays_right(stage: Stage) -> None:
    """Two sockets that connect to each other: no listener, no passive side."""

    def scenario(scene: Scene) -> None:
        ends = [socket.socket() for _ in range(2)]
        for end in ends:
            end.setblocking(False)
            end.bind(("127.0.0.1", 0))
        # One socket that connects to itself is the same handshake in one process.
        alone = ends[0]
        alone.setblocking(False)
        alone.connect_ex(alone.getsockname())
        send(alone, b"to myself")
        scene.note("echo", receive(alone, 9))
        scene.middle()
        for turn in range(10):
            send(alone, b"again %d" % turn)
            scene.note("echo", receive(alone, 7))
        scene.watch(alone=alone)

    outcomes = {way: stage.play(scenario, way) for way in ("off", "on", "switch")}
    assert outcomes["on"].notes == outcomes["off"].notes
    assert outcomes["switch"].notes == outcomes["off"].notes
    assert all(record.tx.msgs == 0 for record in outcomes["on"].records.values())


def test_pairs_do_not_outlive_their_connections(stage: Stage, start: Callable[..., Any]) -> None:
    """Afterwards neither the sockhash nor the connection map holds anything of them."""
    from harness import kernel

    with stage.place() as place, stage.configured(Config()):
        check(stage, start, Route("127.0.0.1", "127.0.0.1"), place, count=50)
    assert not kernel.keys(stage.channel.map("tcp_sm_sockhash"), 12)
    assert not kernel.keys(stage.channel.map("tcp_sm_conns"), 8)
