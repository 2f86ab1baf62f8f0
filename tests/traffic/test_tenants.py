# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do two tenants with the very same addresses and ports stay apart?"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root
from harness import net
from harness.channel import Channel, Config
from harness.process import Place, Said
from harness.scene import Scene, Stage, accept, connect, cookie, listener, receive, send

CLIENT, SERVER = ("127.0.0.1", 5555), ("127.0.0.1", 6666)


def tenant(said: Said, channel: Channel, name: bytes) -> list[bytes]:
    """Keep one connection; exchange what the parent asks for; report what came."""
    scene = Scene("on", channel, Config())
    seen: list[bytes] = []
    sockets: list[socket.socket] = []
    while True:
        order = said.heard()
        if order == "open":
            with listener(*SERVER) as door:
                client = connect(*SERVER, bind=CLIENT)
                server = accept(door)
            sockets = [client, server]
            scene.warm(client, server)
            said.say((cookie(client), cookie(server)))
        elif order == "send":
            send(sockets[0], name * 500)
            send(sockets[1], name.lower() * 500)
            said.say("sent")
        elif order == "read":
            seen += [receive(sockets[1], 500), receive(sockets[0], 500)]
            said.say("read")
        elif order == "close":
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            for sock in sockets:
                sock.close()
            said.say("closed")
        else:
            return seen


def ask(child: Any, order: str) -> Any:
    child.tell(order)
    return child.take()


def test_the_same_four_tuple_in_two_namespaces(stage: Stage, start: Callable[..., Any]) -> None:
    with net.namespaces(2) as spaces, stage.place() as place:
        a, b = (
            start(tenant, stage.channel, name, place=Place(place.cgroup, space.path))
            for name, space in zip((b"A", b"B"), spaces, strict=True)
        )
        cookies = ask(a, "open") + ask(b, "open")
        records = stage.channel.records()
        # Paired inside each tenant, and never across.
        for client, server in (cookies[:2], cookies[2:]):
            assert records[server].peer_cookie == client
            assert records[client].peer_cookie == server
            assert records[client].netns == records[server].netns
        assert records[cookies[0]].netns != records[cookies[2]].netns
        assert {records[one].local_port for one in cookies} == {5555, 6666}

        for one in (a, b):
            ask(one, "send")
        for one in (b, a):
            ask(one, "read")
        # One tenant leaves while the other has bytes under way.
        ask(b, "send")
        ask(a, "close")
        ask(b, "read")
        # It comes back with the same tuple, while the other goes on.
        ask(b, "send")
        ask(a, "open")
        ask(a, "send")
        ask(b, "read")
        ask(a, "read")
        for one in (a, b):
            one.tell("end")
        seen_a, seen_b = a.result(), b.result()
    assert seen_a == [b"A" * 500, b"a" * 500] * 2
    assert seen_b == [b"B" * 500, b"b" * 500] * 3


def test_two_cgroups_of_one_namespace(stage: Stage, start: Callable[..., Any]) -> None:
    """A server in one container's cgroup and a client in another's are accelerated."""

    def serve(said: Said) -> bytes:
        with listener() as door:
            said.say(door.getsockname()[1])
            server = accept(door)
        got = b""
        while part := receive(server, 100):
            send(server, part)
            got += part
        return got

    def use(said: Said, channel: Channel, port: int) -> int:
        client = connect("127.0.0.1", port)
        for turn in range(20):
            send(client, b"%0100d" % turn)
            assert receive(client, 100) == b"%0100d" % turn
        record = channel.records()[cookie(client)]
        peer = channel.records()[record.peer_cookie]
        assert record.cgroup != peer.cgroup
        assert {record.cgroup, peer.cgroup} >= {os.stat(own_cgroup()).st_ino}
        client.close()
        return record.tx.msgs

    with stage.place() as left, stage.place() as right:
        server = start(serve, place=left)
        port = server.take()
        client = start(use, stage.channel, port, place=right)
        assert client.result() > 10
        assert len(server.result()) == 2000


def own_cgroup() -> str:
    """Return the directory of the calling process's cgroup."""
    with open("/proc/self/cgroup") as lines:
        path = next(line[3:].strip() for line in lines if line.startswith("0::"))
    return cgroup2_root() + path
