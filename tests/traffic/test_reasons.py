# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which connections stay on TCP, and do they say why?"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import kernel, net, process
from harness.channel import EXCLUDE, INCLUDE, PASS, TCP, Channel, Config, Reason, Record
from harness.process import Place, Said
from harness.scene import (
    LEARNING,
    Outcome,
    Scene,
    Stage,
    accept,
    connect,
    cookie,
    listener,
    receive,
    same_notes,
    send,
)

MSG_FASTOPEN = socket.MSG_FASTOPEN
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_FASTOPEN = 19, 20, 21, 23
Start = Callable[..., Any]


def talk(scene: Scene) -> None:
    """An exchange that would be accelerated."""
    client, server = scene.pair(warm=False)
    for turn in range(20):
        if turn == 10:
            scene.middle()
        send(client, b"question %02d" % turn)
        scene.note("question", receive(server, 11))
        send(server, b"answer %02d" % turn)
        scene.note("answer", receive(client, 9))


def stays(outcome: Outcome, *reasons: Reason) -> None:
    """Assert that both ends have one of these reasons and redirected nothing."""
    assert set(outcome.records) == {"client", "server"}, outcome.records
    for name, record in outcome.records.items():
        assert record.reason in reasons, (name, record)
        assert record.channel == TCP, (name, record)
        assert record.tx.msgs == 0, (name, record)


def serve(said: Said, channel: Channel | None, address: str = "127.0.0.1") -> Record | None:
    """Echo twenty messages; return this side's record."""
    with listener(address) as door:
        said.say(door.getsockname()[1])
        server = accept(door)
    for _ in range(20):
        send(server, receive(server, 10))
    record = channel.records().get(cookie(server)) if channel else None
    receive(server, 1)
    return record


def use(
    _said: Said, channel: Channel | None, port: int, address: str = "127.0.0.1"
) -> Record | None:
    """Send twenty messages and read their echo; return this side's record."""
    client = connect(address, port)
    for turn in range(20):
        send(client, b"%010d" % turn)
        assert receive(client, 10) == b"%010d" % turn
    return channel.records().get(cookie(client)) if channel else None


@pytest.mark.parametrize("remote", ["client", "server"])
def test_a_peer_outside_the_scope(stage: Stage, start: Start, remote: str) -> None:
    """One end is in a cgroup that the channel does not see, as a remote host is."""
    with stage.place("on") as inside, stage.place("off") as outside:
        there = start(serve, stage.channel, place=outside if remote == "server" else inside)
        port = there.take()
        here = start(use, stage.channel, port, place=outside if remote == "client" else inside)
        records = {"client": here.result(), "server": there.result()}
    assert records.pop(remote) is None
    (record,) = records.values()
    assert record.reason is Reason.NO_LOCAL_PEER
    assert (record.tx.msgs, record.rx.msgs, record.peer_cookie) == (0, 0, 0)


def test_mode_pass(stage: Stage) -> None:
    outcome = stage.play(talk, "on", Config(mode=PASS))
    stays(outcome, Reason.MODE_PASS)


@contextlib.contextmanager
def rule(add: Callable[[int | None], None], value: int) -> Iterator[None]:
    add(value)
    try:
        yield
    finally:
        add(None)


def fixed_port() -> int:
    with listener() as door:
        return int(door.getsockname()[1])


def talk_on(port: int) -> Callable[[Scene], None]:
    def scenario(scene: Scene) -> None:
        scene.port = port
        talk(scene)

    return scenario


def test_excluded_port(stage: Stage) -> None:
    port = fixed_port()
    with rule(lambda value: stage.channel.rule_port(port, value), EXCLUDE):
        stays(stage.play(talk_on(port), "on"), Reason.PORT)
    # The rule is gone: the same port is accelerated again, without reattaching.
    stage.compare(talk_on(port))


def test_included_ports(stage: Stage) -> None:
    port, other = fixed_port(), fixed_port()
    only = Config(ports_included=1)
    with rule(lambda value: stage.channel.rule_port(port, value), INCLUDE):
        stage.compare(talk_on(port), config=only)
        stays(stage.play(talk_on(other), "on", only), Reason.PORT)


@pytest.mark.parametrize("cidr", ["127.0.0.0/8", "127.0.0.1/32", "0.0.0.0/0"])
def test_excluded_addresses(stage: Stage, cidr: str) -> None:
    with rule(lambda value: stage.channel.rule_cidr(cidr, value), EXCLUDE):
        stays(stage.play(talk, "on"), Reason.CIDR)
    stage.compare(talk)


def test_excluded_ipv6_addresses(stage: Stage) -> None:
    def scenario(scene: Scene) -> None:
        client, server = scene.pair("::1", warm=False)
        for _ in range(4):
            send(client, b"ping")
            scene.note("got", receive(server, 4))

    with rule(lambda value: stage.channel.rule_cidr("::1/128", value), EXCLUDE):
        stays(stage.play(scenario, "on"), Reason.CIDR)
    stage.compare(scenario)


def test_included_addresses(stage: Stage) -> None:
    only = Config(cidrs_included=1)
    with rule(lambda value: stage.channel.rule_cidr("10.0.0.0/8", value), INCLUDE):
        stays(stage.play(talk, "on", only), Reason.CIDR)
    with rule(lambda value: stage.channel.rule_cidr("127.0.0.0/8", value), INCLUDE):
        stage.compare(talk, config=only)
        # The longest match decides.
        with rule(lambda value: stage.channel.rule_cidr("127.0.0.1/32", value), EXCLUDE):
            stays(stage.play(talk, "on", only), Reason.CIDR)


def in_namespace(stage: Stage, scenario: Callable[[Scene], None], *sysctls: tuple[str, Any]) -> Any:
    """Run a scenario off and on, each in a fresh namespace; return (TCP's outcome, ours)."""

    def one(way: str) -> Outcome:
        with net.namespaces(1) as (space,):
            for key, value in sysctls:
                space.sysctl(key, value)

            def inside(scene: Scene) -> None:
                kernel.enter_netns(space.path)
                scenario(scene)

            return stage.play(inside, way)

    outcomes = one("off"), one("on")
    same_notes(*outcomes)
    return outcomes


def test_syn_cookies(stage: Stage) -> None:
    """A handshake by cookies has no request socket that could be paired."""
    _, ours = in_namespace(stage, talk, ("net.ipv4.tcp_syncookies", 2))
    stays(ours, Reason.NO_LOCAL_PEER)


def test_tcp_fast_open(stage: Stage) -> None:
    """The first connection fetches a cookie, the later ones carry data in the SYN."""

    def scenario(scene: Scene) -> None:
        def fast(sock: socket.socket) -> None:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)

        with listener(before=fast) as door:
            for number in range(4):
                client = socket.socket()
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.sendto(
                        b"in the SYN %d" % number, socket.MSG_FASTOPEN, door.getsockname()
                    )
                server = accept(door)
                if number:
                    scene.note("first", receive(server, 12))
                for turn in range(10):
                    send(client, b"then %d" % turn)
                    if number:
                        scene.note("then", receive(server, 6))
                    send(server, b"back %d" % turn)
                    scene.note("back", receive(client, 6))
                info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
                scene.note("data in the SYN", bool(info[5] & 32))
                if number == 3:
                    scene.watch(client=client, server=server)
                    scene.look()

    plain, ours = in_namespace(stage, scenario, ("net.ipv4.tcp_fastopen", 3))
    assert ("data in the SYN", True) in plain.notes
    stays(ours, Reason.TFO)


def test_mptcp(stage: Stage) -> None:
    """Neither MPTCP's subflows nor a socket that fell back to TCP are touched."""

    def scenario(scene: Scene) -> None:
        before = scene.channel.redirected() if scene.channel else 0
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as door:
            door.bind(("127.0.0.1", 0))
            door.listen()
            door.setblocking(False)
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            client.connect(door.getsockname())
            client.setblocking(False)
            server = accept(door)
            fallback = connect(*door.getsockname())
            other = accept(door)
        for a, b in ((client, server), (fallback, other)):
            for turn in range(20):
                send(a, b"to %02d" % turn)
                scene.note("to", receive(b, 5))
                send(b, b"back %02d" % turn)
                scene.note("back", receive(a, 7))
        if scene.channel:
            records = scene.channel.records().values()
            ours = [record for record in records if record.cgroup == own_cgroup()]
            assert len(ours) == 4, ours
            assert {record.reason for record in ours} == {Reason.MPTCP}, ours
            assert scene.channel.redirected() == before
        client.close()
        scene.note("EOF", receive(server, 1))

    outcomes = [stage.play(scenario, way) for way in ("off", "on")]
    same_notes(*outcomes)


def own_cgroup() -> int:
    """Return the cgroup2 id of the calling process."""
    from test_tenants import own_cgroup as path

    return os.stat(path()).st_ino


def repair(scene: Scene) -> None:
    """What a checkpoint tool does: look at the sequence numbers, then go on."""
    client, server = scene.pair()
    for turn in range(4):
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        for queue in (1, 2):
            client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
            sequence = client.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 4)
            scene.note("sequence number", len(sequence))
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
        if turn == 2:
            scene.middle()
        for end, other in ((client, server), (server, client)):
            send(end, b"after repair")
            scene.note("data", receive(other, 12))


def test_tcp_repair(stage: Stage) -> None:
    stage.compare(repair)


def test_write_while_in_repair_mode(stage: Stage) -> None:
    """A write in repair mode only fills the send queue: the peer must not get it."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair()
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, 2)
        scene.note("restored", client.send(b"restored bytes"))
        scene.attempt("peer", server.recv, 20)
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, 0)

    outcomes = [stage.play(scenario, way) for way in ("off", "on")]
    same_notes(*outcomes)


# Learning


def learned(scene: Scene) -> None:
    """Two connections to one port; which channel has each?"""
    with listener() as door:
        for number in ("first", "second", "third"):
            client = connect(*door.getsockname())
            server = accept(door)
            for turn in range(20):
                send(client, b"%04d" % turn)
                scene.note("got", receive(server, 4))
                send(server, b"%04d" % turn)
                scene.note("back", receive(client, 4))
            scene.watch(**{f"{number} client": client, f"{number} server": server})


def test_the_first_connection_is_watched_the_second_accelerated(stage: Stage) -> None:
    with stage.configured(LEARNING), stage.place() as place:
        outcome: Outcome = process.run(_learn, stage.channel, learned, place=place)
    for side in ("client", "server"):
        assert outcome.records[f"first {side}"].reason is Reason.LEARNING
        assert outcome.records[f"first {side}"].tx.msgs == 0
        for later in ("second", "third"):
            record = outcome.records[f"{later} {side}"]
            assert record.reason is Reason.NONE
            assert record.tx.msgs > 10


def _learn(_said: Said, channel: Channel, scenario: Callable[[Scene], None]) -> Outcome:
    scene = Scene("on", channel, LEARNING)
    scenario(scene)
    scene.look()
    return scene.outcome


def test_a_profile_belongs_to_one_cgroup(stage: Stage) -> None:
    """What is learned about a port in one container says nothing about another's."""
    port = fixed_port()

    def one(said: Said, blocking: bool) -> Reason:
        reason = Reason.NONE
        with listener(port=port) as door:
            for _ in range(2):
                client = connect(*door.getsockname())
                server = accept(door, blocking=blocking)
                for _ in range(12):
                    send(client, b"data")
                    server.recv(4) if blocking else receive(server, 4)
                    server.send(b"back")
                    receive(client, 4)
                reason = stage.channel.records()[cookie(server)].reason
                client.close()
                server.close()
        return reason

    with stage.configured(LEARNING):
        with stage.place() as place:
            assert process.run(one, True, place=place) is Reason.BLOCKING
        with stage.place() as place:
            assert process.run(one, False, place=place) is Reason.NONE


def test_connection_to_a_listener_of_another_program(stage: Stage, start: Start) -> None:
    """Both records name each other, and both cgroups."""
    with stage.place() as left, stage.place() as right:
        there = start(serve, stage.channel, place=left)
        here = start(use, stage.channel, there.take(), place=right)
        client, server = here.result(), there.result()
    assert (client.peer_cookie, server.peer_cookie) == (server.cookie, client.cookie)
    assert client.cgroup != server.cgroup


def test_shutdown_before_the_first_byte(stage: Stage) -> None:
    def scenario(scene: Scene) -> None:
        for close_first in ("client", "server"):
            client, server = scene.pair(warm=False)
            first, second = (client, server) if close_first == "client" else (server, client)
            first.shutdown(socket.SHUT_WR)
            scene.note("EOF", receive(second, 1))
            for _ in range(20):
                send(second, b"one way")
                scene.note("one way", receive(first, 7))

    stage.compare(scenario)


def test_rules_of_another_place(stage: Stage, start: Start) -> None:
    """A rule for an address of one namespace applies there only."""
    with net.namespaces(2) as (left, right), stage.place() as place:
        net.join(left, right, "10.77.9.1/24", "10.77.9.2/24")
        ends = Place(place.cgroup, left.path), Place(place.cgroup, right.path)
        for excluded, reason in ((None, Reason.NONE), ("10.77.9.2/32", Reason.CIDR)):
            if excluded:
                stage.channel.rule_cidr(excluded, EXCLUDE)
            try:
                there = start(serve, stage.channel, "10.77.9.2", place=ends[1])
                here = start(use, stage.channel, there.take(), "10.77.9.2", place=ends[0])
                assert {here.result().reason, there.result().reason} == {reason}
            finally:
                if excluded:
                    stage.channel.rule_cidr(excluded, None)
