# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do ten thousand concurrent connections all work, and are they all accounted for?"""

from __future__ import annotations

import resource
import select
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from harness.channel import PASS, Config, Reason
from harness.process import Said
from harness.scene import Stage, connect, listener, receive, send

EACH = 5000


def echo(said: Said, count: int) -> int:
    """Echo on `count` connections until all of them are closed; return how many there were."""
    door = listener(backlog=4096)
    said.say(door.getsockname()[1])
    sockets: dict[int, socket.socket] = {}
    accepted = 0
    with select.epoll() as poll:
        poll.register(door, select.EPOLLIN)
        while accepted < count or sockets:
            for fd, _ in poll.poll(30):
                if fd == door.fileno():
                    accepted += _accept_all(door, poll, sockets)
                elif data := sockets[fd].recv(4096):
                    send(sockets[fd], data)
                else:
                    sockets.pop(fd).close()
    return accepted


def _accept_all(door: socket.socket, poll: select.epoll, sockets: dict[int, socket.socket]) -> int:
    count = 0
    while True:
        try:
            made = door.accept()[0]
        except BlockingIOError:
            return count
        made.setblocking(False)
        sockets[made.fileno()] = made
        poll.register(made, select.EPOLLIN)
        count += 1


def use(said: Said, port: int, count: int) -> int:
    """Open `count` connections, talk on all of them, twice; return the wrong answers."""
    sockets = [connect("127.0.0.1", port, seconds=20) for _ in range(count)]
    wrong = 0
    for phase in range(2):
        for turn in range(4):
            text = [b"%d %d %06d" % (phase, turn, number) for number in range(count)]
            for number, sock in enumerate(sockets):
                send(sock, text[number])
            for number, sock in enumerate(sockets):
                wrong += receive(sock, len(text[number]), 20) != text[number]
        said.say("talked")
        said.heard()
    for sock in sockets:
        sock.close()
    return wrong


@pytest.mark.limit(120)
def test_ten_thousand_connections(stage: Stage, start: Callable[..., Any]) -> None:
    """Several processes, because a process may have 20,000 descriptors at most here."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft > EACH + 100, f"only {soft} descriptors a process: raise the hard limit"
    with stage.configured(Config()), stage.place() as place:
        servers = [start(echo, EACH, place=place, seconds=100) for _ in range(2)]
        clients = [start(use, server.take(), EACH, place=place, seconds=100) for server in servers]
        for client in clients:
            client.take()
        records = list(stage.channel.records().values())
        assert len(records) >= 4 * EACH
        unexplained = [r for r in records if r.channel == 0 and r.reason is Reason.NONE]
        assert not unexplained, unexplained[:3]
        moved = [record for record in records if record.tx.msgs]
        reasons = {record.reason for record in records}
        assert len(moved) >= 0.99 * 4 * EACH, (len(moved), reasons)
        # Half of the talk goes on after the switch to TCP.
        stage.channel.configure(replace(Config(), mode=PASS))
        for client in clients:
            client.tell("go on")
            client.take()
            client.tell("end")
        assert [client.result() for client in clients] == [0, 0]
        assert [server.result() for server in servers] == [EACH, EACH]
