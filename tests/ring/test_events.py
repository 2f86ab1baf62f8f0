# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do poll, select and epoll, by level and by edge, say what they say of TCP, and when?"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import threading
import time
from typing import Any

import pytest
from ringlab.guest.lib import Edges, fill, receive, reset, wait, wait_for
from ringlab.scene import Scenario, Scene, Stage

ALL = (
    select.POLLIN
    | select.POLLOUT
    | select.POLLPRI
    | select.POLLERR
    | select.POLLHUP
    | select.POLLRDHUP
)
EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


def states(scene: Scene) -> None:
    """Masks of poll in each state."""
    client, server = scene.pair()
    scene.note("idle", scene.wait(server, ALL))
    scene.send(client, b"x")
    scene.arrived(server, 1)
    scene.note("with a byte", scene.wait(server, ALL))
    scene.note("others only", scene.wait(server, select.POLLPRI, 0))
    scene.middle()
    scene.note("with a byte", scene.wait(server, ALL))
    server.recv(1)
    scene.note("read", scene.wait(server, ALL))
    client.shutdown(socket.SHUT_WR)
    scene.wait(server, select.POLLRDHUP)
    scene.note("half closed", scene.wait(server, ALL))
    scene.note("its writer", scene.wait(client, ALL))
    server.shutdown(socket.SHUT_WR)
    scene.wait(client, select.POLLHUP)
    scene.note("closed", (scene.wait(server, ALL), scene.wait(client, ALL)))


def state_after_reset(scene: Scene) -> None:
    client, server = scene.pair()
    scene.middle()
    scene.one.run(reset, client)
    scene.wait(server, select.POLLERR)
    scene.note("reset", scene.wait(server, ALL))
    scene.attempt("error", server.recv, 1)
    scene.note("error taken", scene.wait(server, ALL))


def full(scene: Scene) -> None:
    """A full socket is not writable until the peer read some."""
    client, server = scene.pair()
    took = scene.one.run(fill, client)
    scene.note("some", took > 10_000)
    scene.note("full", scene.wait(client, ALL, 0.1))
    scene.middle()
    scene.note("all of it", len(scene.receive(server, took, 20)) == took)
    scene.note("writable", scene.wait(client, select.POLLOUT))


def select_three(sock: socket.socket, seconds: float) -> tuple[bool, bool, bool]:
    sets = select.select([sock], [sock], [sock], seconds)
    return bool(sets[0]), bool(sets[1]), bool(sets[2])


def selects(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("idle", scene.two.run(select_three, server, 0))
    scene.send(client, b"x")
    scene.arrived(server, 1)
    scene.note("a byte", scene.two.run(select_three, server, 0))
    scene.middle()
    client.close()
    scene.wait(server, select.POLLRDHUP)
    scene.note("end", scene.two.run(select_three, server, 0))


def sleeper(sock: socket.socket, events: int) -> int:
    """Poll for long; what came."""
    return wait(sock, events, 10)


def wakes(scene: Scene) -> None:
    """Sleeping polls wake for bytes, room, end and reset."""
    client, server = scene.pair()
    call = scene.two.later(sleeper, server, select.POLLIN)
    scene.note("sleeps", not call.done(0.05))
    scene.send(client, b"x")
    scene.note("bytes", call.result())
    server.recv(1)
    call = scene.two.later(sleeper, server, select.POLLIN)
    scene.note("sleeps", not call.done(0.05))
    scene.middle()
    scene.send(client, b"y")
    scene.note("bytes after", call.result())
    server.recv(1)
    call = scene.two.later(sleeper, server, select.POLLIN | select.POLLRDHUP)
    scene.note("sleeps", not call.done(0.05))
    client.close()
    scene.note("end", call.result())


def wakes_writer(scene: Scene) -> None:
    client, server = scene.pair()
    took = scene.one.run(fill, client)
    call = scene.one.later(sleeper, client, select.POLLOUT)
    scene.note("sleeps", not call.done(0.1))
    scene.receive(server, took, 20)
    scene.note("room", call.result())


def edges(scene: Scene) -> None:
    """One edge for what is there, another for what comes, none in between."""
    client, server = scene.pair()
    epoll = scene.two.run(Edges, server, EDGE)
    scene.note("at first", epoll.next(1))
    scene.note("nothing new", epoll.next(0.05))
    scene.send(client, b"first")
    scene.note("bytes", epoll.next(2))
    scene.note("told once", epoll.next(0.05))
    scene.send(client, b"second")
    scene.note("told of more, unread", epoll.next(2))
    scene.note("told once", epoll.next(0.05))
    scene.note("all", scene.receive(server, 11))
    scene.note("nothing new", epoll.next(0.05))
    scene.middle()
    # Going back to TCP may be told, with nothing to read.
    scene.note("no bytes", [e for e in epoll.next(0.1) if e & select.EPOLLIN])
    scene.send(client, b"third")
    scene.note("after reading", [e & select.EPOLLIN for e in epoll.next(2)])
    scene.note("third", scene.receive(server, 5))


def edges_partly_read(scene: Scene) -> None:
    """A reader that leaves bytes unread gets an edge for the next ones."""
    client, server = scene.pair()
    epoll = scene.two.run(Edges, server, select.EPOLLIN | select.EPOLLET)
    for turn in range(5):
        scene.send(client, b"12345678")
        scene.note("edge", epoll.next(2))
        scene.attempt("part", server.recv, 3)
        if turn == 2:
            scene.middle()
            # Going back to TCP may tell of what is unread once more.
            epoll.next(0.1)
    scene.note("rest", scene.receive(server, 25))


def edges_of_end(scene: Scene) -> None:
    client, server = scene.pair()
    epoll = scene.two.run(Edges, server, EDGE)
    epoll.next(1)
    scene.send(client, b"last")
    scene.note("bytes", epoll.next(2))
    client.shutdown(socket.SHUT_WR)
    scene.note("end", epoll.next(2))
    scene.note("bytes", scene.receive(server, 4))
    scene.attempt("EOF", server.recv, 1)
    scene.middle()
    server.shutdown(socket.SHUT_WR)
    scene.note("both", [e & select.EPOLLHUP for e in epoll.next(2)])


def edge_of_room(scene: Scene) -> None:
    """EPOLLOUT by edge after EAGAIN, as soon as there is room again."""
    client, server = scene.pair()
    epoll = scene.one.run(Edges, client, select.EPOLLOUT | select.EPOLLET)
    scene.note("at first", epoll.next(1))
    took = scene.one.run(fill, client)
    epoll.next(0)
    scene.note("no room", epoll.next(0.1))
    scene.receive(server, took, 20)
    scene.note("room", epoll.next(5))


def edge_without_poll(scene: Scene) -> None:
    """Data that comes while nobody waits, right after the read that emptied the socket."""
    client, server = scene.pair()
    epoll = scene.two.run(Edges, server, select.EPOLLIN | select.EPOLLET)
    for turn in range(10):
        scene.send(client, b"x" * 100)
        scene.note("edge", epoll.next(2))
        scene.note("bytes", scene.receive(server, 100))
        scene.attempt("empty", server.recv, 1)
        if turn == 5:
            scene.middle()


def oneshot(sock: socket.socket) -> list[Any]:
    """EPOLLONESHOT and its rearming, with the byte there all the time."""
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)
    found = [len(poll.poll(2)), len(poll.poll(0.05))]
    poll.modify(sock, select.EPOLLIN | select.EPOLLONESHOT)
    return [*found, len(poll.poll(2))]


def oneshots(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"x")
    scene.note("by turns", scene.two.run(oneshot, server))
    scene.middle()
    scene.note("by turns", scene.two.run(oneshot, server))


def echo_by_edges(sock: socket.socket) -> int:
    """Echo until EOF, driven by edges alone, as nginx does; how many bytes."""
    poll = select.epoll()
    poll.register(sock, EDGE)
    pending, echoed, ended = b"", 0, False
    deadline = time.monotonic() + 30
    while not (ended and not pending) and time.monotonic() < deadline:
        poll.poll(5)
        progress = True
        while progress:
            progress = False
            if len(pending) < 100_000 and not ended:
                try:
                    part = sock.recv(7000)
                    ended = not part
                    pending += part
                    progress = True
                except BlockingIOError:
                    pass
            if pending:
                try:
                    sent = sock.send(pending)
                    pending, echoed, progress = pending[sent:], echoed + sent, True
                except BlockingIOError:
                    pass
    sock.shutdown(socket.SHUT_WR)
    return echoed


def bounce(sock: socket.socket, total: int) -> bool:
    """Send and receive at once; is it the same?"""
    sock.setblocking(True)
    data = os.urandom(total)

    def write() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=write, daemon=True).start()
    return receive(sock, total + 1, 30) == data


def edge_driven_echo(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(echo_by_edges, server)
    begun = scene.one.later(bounce, client, 1_000_000)
    scene.middle()
    scene.note("same", begun.result(40))
    scene.note("bytes", call.result(10))


def sigio(sock: socket.socket) -> list[str]:
    """F_SETOWN and O_ASYNC: a signal when bytes come."""
    seen: list[str] = []
    signal.signal(signal.SIGIO, lambda *_: seen.append("SIGIO"))
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | os.O_ASYNC)
    sock.send(b"go")
    wait_for("a signal", lambda: seen)
    return seen[:1]


def echo_once(sock: socket.socket) -> None:
    sock.setblocking(True)
    sock.sendall(sock.recv(10))


def signal_driven(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(echo_once, server)
    scene.note("signal", scene.one.run(sigio, client))
    call.result()
    scene.note("echo", scene.receive(client, 2))


TABLE: list[Any] = [
    states,
    state_after_reset,
    full,
    selects,
    wakes,
    wakes_writer,
    edges,
    edges_partly_read,
    edges_of_end,
    edge_of_room,
    edge_without_poll,
    oneshots,
    edge_driven_echo,
    signal_driven,
]


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.__name__)
def test_event(stage: Stage, scenario: Scenario) -> None:
    stage.compare(scenario)
