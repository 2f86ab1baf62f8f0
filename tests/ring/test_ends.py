# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a connection end as on TCP: half-close, reset, linger, kill, disconnect, and who is told?"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from typing import Any

import pytest
from ringlab.guest.lib import (
    disconnect,
    ended,
    errno_name,
    fill,
    fork,
    receive,
    reset,
    send,
    timed,
    wait,
)
from ringlab.scene import Scenario, Scene, Stage

HUP = select.POLLIN | select.POLLRDHUP
ENDS = select.POLLERR | select.POLLHUP | select.POLLRDHUP


def half_close(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"question")
    client.shutdown(socket.SHUT_WR)
    scene.note("events at the server", scene.wait(server, select.POLLRDHUP) & ENDS)
    scene.note("question", scene.receive(server, 100))
    scene.attempt("again at EOF", server.recv, 10)
    scene.middle()
    for part in (b"answer ", b"in ", b"parts"):
        scene.send(server, part)
    scene.attempt("write after shutdown", client.send, b"x")
    server.shutdown(socket.SHUT_WR)
    scene.note("answer", scene.receive(client, 100))
    scene.attempt("client at EOF", client.recv, 10)
    scene.note("both closed", scene.wait(client, HUP) & select.POLLHUP)


def shutdown_of_reading(scene: Scene) -> None:
    client, server = scene.pair()
    server.shutdown(socket.SHUT_RD)
    scene.attempt("read", server.recv, 10)
    scene.middle()
    scene.send(server, b"still writable")
    scene.note("peer", scene.receive(client, 14))
    scene.attempt("write to it", client.send, b"abc")
    scene.arrived(server, 3)
    scene.attempt("data after SHUT_RD", server.recv, 10)


def send_empty_after_shutdown(scene: Scene) -> None:
    client, _server = scene.pair()
    scene.attempt("nothing", client.send, b"")
    scene.middle()
    client.shutdown(socket.SHUT_WR)
    scene.attempt("nothing after shutdown", client.send, b"")


def data_then_close(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"a" * 20_000)
    scene.middle()
    scene.send(client, b"b" * 20_000)
    client.close()
    data = scene.receive(server, 100_000)
    scene.note("everything before EOF", (data.count(b"a"), data.count(b"b"), len(data)))
    scene.note("order", data == b"a" * 20_000 + b"b" * 20_000)
    scene.attempt("EOF again", server.recv, 1)


def server_closes_first(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(server, b"s" * 40_000)
    server.close()
    scene.note("bytes", len(scene.receive(client, 100_000)))
    scene.attempt("EOF", client.recv, 1)
    scene.attempt("write", client.send, b"x")
    scene.wait(client, select.POLLERR)
    scene.attempt("write after RST", client.send, b"x")
    scene.attempt("read after RST", client.recv, 1)


def idle_reset(scene: Scene) -> None:
    client, server = scene.pair()
    scene.middle()
    scene.at(client).run(reset, client)
    scene.note("events", scene.wait(server, HUP) & ENDS)
    scene.attempt("read", server.recv, 10)
    scene.attempt("read again", server.recv, 10)
    scene.attempt("write", server.send, b"x")


def reset_behind_data(scene: Scene) -> None:
    """What arrived before the reset can be read, then the reset is told, once."""
    client, server = scene.pair()
    scene.send(server, b"d" * 5000)
    scene.arrived(client, 5000)
    scene.middle()
    scene.at(server).run(reset, server)
    scene.wait(client, select.POLLERR)
    scene.attempt("some", lambda: len(client.recv(1000)))
    scene.attempt("rest", lambda: len(client.recv(9000)))
    scene.attempt("reset", client.recv, 1)
    scene.attempt("end", client.recv, 1)
    scene.attempt("write", client.send, b"x")


def waitall_and_reset(scene: Scene) -> None:
    """A short MSG_WAITALL does not swallow the error: the next call has it."""
    client, server = scene.pair(blocking=True)
    scene.send(client, b"ten bytes.")
    scene.arrived(server, 10)
    call = server.later("recv", 100, socket.MSG_WAITALL)
    scene.middle()
    scene.at(client).run(reset, client)
    scene.attempt("short", call.result)
    scene.attempt("the error", server.recv, 1)
    scene.attempt("end", server.recv, 1)


def waitall_and_end(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    scene.send(client, b"ten bytes.")
    call = server.later("recv", 100, socket.MSG_WAITALL)
    scene.note("waits", call.done(0.1))
    scene.middle()
    client.close()
    scene.attempt("short", call.result)
    scene.attempt("end", server.recv, 1)


def close_with_unread(scene: Scene) -> None:
    """Who closes with unread bytes resets."""
    client, server = scene.pair()
    scene.send(client, b"never read")
    scene.arrived(server, 10)
    scene.middle()
    server.close()
    scene.note("events", scene.wait(client, HUP) & ENDS)
    scene.attempt("read", client.recv, 10)
    scene.attempt("write", client.send, b"x")


def close_partly_read(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(server, b"answer")
    scene.send(client, b"x" * 1000)
    scene.arrived(server, 1000)
    scene.note("part", len(scene.receive(server, 999)))
    server.close()
    scene.wait(client, select.POLLERR)
    scene.attempt("the answer", client.recv, 10)
    scene.attempt("then", client.recv, 10)
    scene.attempt("then", client.recv, 10)


def write_after_close(scene: Scene) -> None:
    """The peer closed both directions: the first write is answered with a reset."""
    client, server = scene.pair()
    scene.send(client, b"read")
    scene.note("read", scene.receive(server, 4))
    scene.middle()
    server.close()
    scene.note("events", scene.wait(client, HUP) & ENDS)
    scene.attempt("EOF", client.recv, 1)
    scene.attempt("first write", client.send, b"x")
    scene.note("reset comes", scene.wait(client, select.POLLERR) & ENDS)
    scene.attempt("second write", client.send, b"x")
    scene.attempt("read", client.recv, 1)


def writer_blocked_by_close(scene: Scene) -> None:
    """A writer that waits for room is told when the reader closes with bytes unread."""
    client, server = scene.pair(blocking=True)
    scene.one.run(fill, client)
    call = client.later("sendall", b"z" * 100_000)
    scene.note("blocks", not call.done(0.2))
    server.close()
    scene.attempt("told", call.result, 5)


def write_to_silent_shutdown(scene: Scene) -> None:
    """The peer shut both directions down and keeps the socket: writers are reset."""
    client, server = scene.pair(blocking=True)
    server.shutdown(socket.SHUT_RDWR)
    scene.wait(client, HUP)
    scene.middle()

    def write_on() -> str:
        for _ in range(100):
            client.send(b"x" * 10_000)
            if scene.wait(client, select.POLLERR, 0.02) & select.POLLERR:
                break
        client.send(b"x")
        return "no error"

    scene.attempt("told in the end", write_on)


def reader_blocked_by_close(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    call = server.later("recv", 10)
    scene.note("blocks", not call.done(0.1))
    scene.middle()
    client.close()
    scene.attempt("end", call.result, 5)


def reader_blocked_by_reset(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    call = server.later("recv", 10)
    scene.note("blocks", not call.done(0.1))
    scene.middle()
    scene.at(client).run(reset, client)
    scene.attempt("reset", call.result, 5)


def reader_blocked_by_own_shutdown(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    call = server.later("recv", 10)
    scene.note("blocks", not call.done(0.1))
    server.shutdown(socket.SHUT_RD)
    scene.attempt("end", call.result, 5)
    scene.middle()
    scene.send(server, b"bye")
    scene.note("other way", scene.receive(client, 3))


def writer_blocked_by_own_shutdown(scene: Scene) -> None:
    client, _server = scene.pair(blocking=True)
    scene.one.run(fill, client)
    call = client.later("sendall", b"z" * 100_000)
    scene.note("blocks", not call.done(0.2))
    client.shutdown(socket.SHUT_WR)
    scene.attempt("told", call.result, 5)


def linger_quick(sock: socket.socket, seconds: int) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return timed(sock.close) < 1.0


def linger_unread(scene: Scene) -> None:
    """Closing with SO_LINGER waits until the peer's kernel has the bytes, not its program."""
    client, server = scene.pair(blocking=True)
    scene.send(client, b"unread for now")
    scene.arrived(server, 14)
    scene.note("closes at once", scene.one.run(linger_quick, client, 3))
    scene.note("bytes", scene.receive(server, 100))
    scene.attempt("end", server.recv, 1)


def linger_read(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    scene.send(client, b"x" * 1000)
    scene.note("bytes", len(scene.receive(server, 1000)))
    scene.middle()
    scene.note("closes at once", scene.one.run(linger_quick, client, 3))
    scene.attempt("end", server.recv, 1)


def write_and_hang(sock: socket.socket, size: int) -> int:
    """A child that writes, and is then killed."""
    told, tell = os.pipe()

    def child() -> None:
        send(sock, b"k" * size)
        os.write(tell, b"1")
        signal.pause()

    pid = fork(child)
    sock.close()
    os.read(told, 1)
    return pid


def kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


def killed_writer(scene: Scene) -> None:
    client, server = scene.pair()
    pid = scene.one.run(write_and_hang, client, 30_000)
    scene.middle()
    scene.note("status", scene.one.run(kill, pid))
    scene.note("bytes before EOF", scene.receive(server, 100_000).count(b"k"))
    scene.attempt("EOF", server.recv, 1)
    scene.attempt("first write", server.send, b"x")
    scene.wait(server, select.POLLERR)
    scene.attempt("second write", server.send, b"x")


def read_and_hang(sock: socket.socket, size: int) -> int:
    told, tell = os.pipe()

    def child() -> None:
        receive(sock, size)
        os.write(tell, b"1")
        signal.pause()

    pid = fork(child)
    sock.close()
    os.read(told, 1)
    return pid


def killed_reader(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"r" * 10_000)
    pid = scene.two.run(read_and_hang, server, 10_000)
    scene.middle()
    scene.two.run(kill, pid)
    scene.note("events", scene.wait(client, HUP) & ENDS)
    scene.attempt("read", client.recv, 1)
    scene.attempt("first write", client.send, b"x")
    scene.wait(client, select.POLLERR)
    scene.attempt("second write", client.send, b"x")


def child_writes_too(sock: socket.socket) -> int:
    pid = fork(lambda: send(sock, b"child "))
    code = ended(pid)
    send(sock, b"parent")
    return code


def forked(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("child", scene.one.run(child_writes_too, client))
    scene.note("both", scene.receive(server, 12))
    scene.middle()
    scene.note("child", scene.one.run(child_writes_too, client))
    scene.note("both", scene.receive(server, 12))
    client.close()
    scene.wait(server, HUP)
    scene.attempt("end", server.recv, 1)


def held_by_child(sock: socket.socket) -> int:
    """The child keeps a copy; closing ours ends nothing."""
    pid = fork(signal.pause)
    sock.close()
    return pid


def held_open_by_a_child(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"before")
    pid = scene.one.run(held_by_child, client)
    scene.note("before", scene.receive(server, 6))
    scene.note("no end", scene.wait(server, HUP, 0.1))
    scene.middle()
    scene.one.run(kill, pid)
    scene.note("the end", scene.wait(server, HUP) & select.POLLRDHUP)
    scene.attempt("EOF", server.recv, 1)


def duplicated(sock: socket.socket) -> bytes:
    twin = socket.socket(fileno=os.dup(sock.fileno()))
    sock.close()
    send(twin, b"by the twin")
    got = receive(twin, 4)
    twin.close()
    return got


def dup(scene: Scene) -> None:
    client, server = scene.pair()
    scene.middle()
    scene.send(server, b"pong")
    scene.note("got", scene.one.run(duplicated, client))
    scene.note("sent", scene.receive(server, 100))


def handed_over(sock: socket.socket) -> int:
    """Another process gets the socket by SCM_RIGHTS and answers."""
    ours, theirs = socket.socketpair()

    def child() -> None:
        ours.close()
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        taken = socket.socket(fileno=fds[0])
        send(taken, b"from its new owner: " + receive(taken, 5))

    pid = fork(child)
    socket.send_fds(ours, [b"x"], [sock.fileno()])
    sock.close()
    return ended(pid)


def scm_rights(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"hello")
    scene.middle()
    scene.note("exit code", scene.two.run(handed_over, server))
    scene.note("answer", scene.receive(client, 100))


def disconnected(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"last")
    scene.note("last", scene.receive(server, 4))
    scene.middle()
    scene.attempt("disconnect", scene.one.run, disconnect, client)
    scene.note("events", scene.wait(server, HUP) & ENDS)
    scene.attempt("server", server.recv, 1)
    scene.attempt("client", client.recv, 1)
    scene.attempt("client writes", client.send, b"x")


def connect_again(sock: socket.socket, address: str, port: int) -> str:
    disconnect(sock)
    sock.setblocking(True)
    sock.connect((address, port))
    sock.sendall(b"again")
    return "connected"


def reconnected(scene: Scene) -> None:
    """One socket, two connections one after the other."""
    client, server = scene.pair()
    scene.send(client, b"first")
    scene.note("first", scene.receive(server, 5))
    door, port = scene.door()
    scene.attempt("again", scene.one.run, connect_again, client, scene.there.address, port)
    accepted = door.accept()[0]
    scene.note("second", scene.receive(accepted, 5))
    scene.watch(client=(scene.one, client))


def signals(sock: socket.socket) -> list[str]:
    """SIGPIPE comes unless MSG_NOSIGNAL."""
    seen: list[str] = []
    signal.signal(signal.SIGPIPE, lambda *_: seen.append("SIGPIPE"))
    for flags in (0, socket.MSG_NOSIGNAL):
        try:
            sock.send(b"x", flags)
        except OSError as error:
            time.sleep(0.01)
            seen.append(errno_name(error))
    return seen


def sigpipe(scene: Scene) -> None:
    client, _server = scene.pair()
    client.shutdown(socket.SHUT_WR)
    scene.middle()
    # Only the main thread gets signals, and process 1's worker has one.
    scene.note("signals", scene.one.run(signals, client))


def never_accepted(scene: Scene) -> None:
    """The listener closes on a connection with data that nobody accepted."""
    door, port = scene.door()
    client = scene.one.run("connect", scene.there.address, port, False)
    scene.watch(client=(scene.one, client))
    scene.send(client, b"anybody?")
    scene.look()
    scene.middle()
    door.close()
    scene.note("events", scene.wait(client, HUP) & ENDS)
    scene.attempt("read", client.recv, 1)


def accepted_late(scene: Scene) -> None:
    """The client wrote and closed before anybody accepted."""
    door, port = scene.door()
    client = scene.one.run("connect", scene.there.address, port, False)
    scene.watch(client=(scene.one, client))
    scene.send(client, b"already gone")
    scene.look()
    client.close()
    server = door.accept()[0]
    scene.note("bytes", scene.receive(server, 100))
    scene.attempt("end", server.recv, 1)


def accepted_after_leaving(scene: Scene) -> None:
    door, port = scene.door()
    client = scene.one.run("connect", scene.there.address, port, False)
    scene.watch(client=(scene.one, client))
    scene.send(client, b"before ")
    scene.middle()
    scene.send(client, b"after")
    server = door.accept()[0]
    scene.note("bytes", scene.receive(server, 12))
    scene.send(server, b"answer")
    scene.note("answer", scene.receive(client, 6))


def accepted_after_reset(scene: Scene) -> None:
    door, port = scene.door()
    client = scene.one.run("connect", scene.there.address, port, False)
    scene.watch(client=(scene.one, client))
    scene.send(client, b"data")
    scene.look()
    scene.one.run(reset, client)
    scene.two.run(wait, door, select.POLLIN)
    server = door.accept()[0]
    scene.wait(server, select.POLLERR)
    scene.attempt("bytes", server.recv, 100)
    scene.attempt("then", server.recv, 100)


def closed_by_both(scene: Scene) -> None:
    """Both ends close at once, data on the way both ways that is never read."""
    for _ in range(3):
        client, server = scene.pair()
        scene.send(client, b"x" * 100)
        scene.send(server, b"y" * 100)
        client.close()
        server.close()
    scene.note("closed", True)


TABLE: list[Any] = [
    half_close,
    shutdown_of_reading,
    send_empty_after_shutdown,
    data_then_close,
    server_closes_first,
    idle_reset,
    reset_behind_data,
    waitall_and_reset,
    waitall_and_end,
    close_with_unread,
    close_partly_read,
    write_after_close,
    writer_blocked_by_close,
    write_to_silent_shutdown,
    reader_blocked_by_close,
    reader_blocked_by_reset,
    reader_blocked_by_own_shutdown,
    writer_blocked_by_own_shutdown,
    linger_unread,
    linger_read,
    killed_writer,
    killed_reader,
    forked,
    held_open_by_a_child,
    dup,
    scm_rights,
    disconnected,
    reconnected,
    sigpipe,
    never_accepted,
    accepted_late,
    accepted_after_leaving,
    accepted_after_reset,
    closed_by_both,
]


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.__name__)
def test_end(stage: Stage, scenario: Scenario) -> None:
    stage.compare(scenario)
