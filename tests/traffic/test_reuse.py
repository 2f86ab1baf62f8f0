# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does nothing of a connection survive it: not in a reused socket, not in the maps?"""

from __future__ import annotations

import os
import select
import socket

from harness import kernel
from harness.channel import DRAIN, Config, Reason, wait_for
from harness.scene import Scene, Stage, accept, listener, receive, same_notes, send, wait
from test_close import HUP, disconnect

TCP_REPAIR = 19


def connect_again(client: socket.socket) -> socket.socket:
    """Connect a used socket to a new listener; return the new server's end."""
    with listener() as door:
        client.connect_ex(door.getsockname())
        server = accept(door)
    wait(client, select.POLLOUT)
    return server


def secret_left_behind(scene: Scene) -> None:
    """Bytes of the old connection are unread when the client goes to another server."""
    client, server = scene.pair()
    send(server, b"SECRET-of-connection-A" * 2)
    scene.look()
    disconnect(client)
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    wait(server, HUP)
    scene.attempt("old server", server.recv, 1)
    other = connect_again(client)
    scene.attempt("nothing of the old one", client.recv, 100)
    for turn in range(10):
        send(other, b"hello from B %d" % turn)
        scene.note("the new server's bytes", receive(client, 14))
        send(client, b"hello to B %d" % turn)
        scene.note("the client's bytes", receive(other, 12))
    other.close()
    scene.note("EOF", receive(client, 1))


def test_no_byte_of_the_old_connection_comes(stage: Stage) -> None:
    stage.compare(secret_left_behind)


def silent_disconnect(scene: Scene) -> None:
    """With TCP_REPAIR no RST is sent: the old peer goes on writing to what is gone."""
    client, server = scene.pair()
    scene.look()
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    disconnect(client)
    client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    server.send(b"for the old peer" * 3)
    other = connect_again(client)
    server.send(b"and again for the old peer")
    for turn in range(10):
        send(other, b"from B %d" % turn)
        scene.note("the new server's bytes", receive(client, 8))
        send(client, b"to B %d" % turn)
        scene.note("the client's bytes", receive(other, 6))
    scene.attempt("nothing else", client.recv, 100)


def test_a_peer_that_does_not_know_is_no_danger(stage: Stage) -> None:
    stage.compare(silent_disconnect)


def test_attached_to_a_parent_and_a_child_cgroup(own: Stage) -> None:
    """The program runs twice for each socket; its books balance all the same."""
    channel = own.channel

    def scenario(scene: Scene) -> None:
        for _ in range(10):
            client, server = scene.pair()
            for turn in range(10):
                send(client, b"question %d" % turn)
                scene.note("question", receive(server, 10))
                send(server, b"answer %d" % turn)
                scene.note("answer", receive(client, 8))
            client.close()
            scene.note("EOF", receive(server, 1))
            server.close()

    plain = own.play(scenario, "off")
    kid = channel.cgroup / "kid"
    kid.mkdir()
    directory = os.open(kid, os.O_RDONLY | os.O_DIRECTORY)
    program = kernel.open_pin(channel.pins / "progs" / "tcp_sm_sockops")
    second = kernel.link(program, kernel.CGROUP_SOCK_OPS, directory)
    try:
        inner = Stage(channel, kid, own.outside)
        same_notes(plain, inner.play(scenario, "on"))
    finally:
        for fd in (second, program, directory):
            os.close(fd)
        kid.rmdir()
    wait_for("the connections are forgotten", lambda: channel.entries("tcp_sm_conns") == 0)
    assert channel.entries("tcp_sm_sockhash") == 0
    same_notes(plain, own.play(scenario, "on"))
    wait_for("the connections are forgotten", lambda: channel.entries("tcp_sm_conns") == 0)


def test_two_links_of_the_receive_probe(own: Stage) -> None:
    """Reads seen twice must not make unread bytes look read: leaving would lose them."""
    channel = own.channel

    def scenario(scene: Scene) -> None:
        client, server = scene.pair()
        second = -1
        if scene.channel:
            program = kernel.open_pin(channel.pins / "progs" / "tcp_sm_recv")
            second = kernel.link(program, kernel.TRACE_RAW_TP)
            os.close(program)
        send(client, b"a" * 64)
        scene.note("while there are two", receive(server, 64))
        if second >= 0:
            os.close(second)
        send(client, b"must not be lost" * 16)
        if scene.channel:
            channel.configure(Config(mode=DRAIN))
            channel.evict()
        scene.note("after the drain", receive(server, 256) == b"must not be lost" * 16)
        send(client, b"goes on")
        scene.note("more", receive(server, 7))

    same_notes(own.play(scenario, "off"), own.play(scenario, "on"))


def tls_hello(scene: Scene) -> None:
    """A stream that starts like TLS may use kernel TLS later, which refuses a sockmap."""
    client, server = scene.pair(warm=False)
    send(client, b"\x16\x03\x01\x00\x05hello")
    scene.note("hello", receive(server, 10))
    for turn in range(20):
        send(server, b"record %02d" % turn)
        scene.note("down", receive(client, 9))
        send(client, b"record %02d" % turn)
        scene.note("up", receive(server, 9))


def test_connections_that_start_with_tls_stay_on_tcp(stage: Stage) -> None:
    outcomes = stage.compare(tls_hello, Reason.ULP)
    assert all(record.tx.msgs == 0 for record in outcomes["on"].records.values())
