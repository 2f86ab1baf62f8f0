# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a connection end as it does on TCP: half-close, reset, crash, fork, handed-over sockets?"""

from __future__ import annotations

import array
import ctypes
import os
import select
import signal
import socket
import struct

from harness.scene import PATIENCE, Scene, Stage, accept, listener, receive, send, wait

HUP = select.POLLIN | select.POLLRDHUP


def disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC)."""
    address = struct.pack("H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fork(function: object, *args: object) -> int:
    """Run a function in a child that ends at once afterwards; return its pid."""
    assert callable(function)
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def half_close(scene: Scene) -> None:
    client, server = scene.pair()
    send(client, b"question")
    client.shutdown(socket.SHUT_WR)
    scene.note("events at the server", wait(server, HUP) & select.POLLRDHUP)
    scene.note("question", receive(server, 100))
    scene.attempt("again at EOF", server.recv, 10)
    scene.middle()
    for part in (b"answer ", b"in ", b"parts"):
        send(server, part)
    scene.attempt("write after shutdown", client.send, b"x")
    server.shutdown(socket.SHUT_WR)
    scene.note("answer", receive(client, 100))
    scene.attempt("client at EOF", client.recv, 10)
    scene.note("both closed", wait(client, HUP) & select.POLLHUP)


def test_half_close(stage: Stage) -> None:
    stage.compare(half_close)


def shutdown_of_reading(scene: Scene) -> None:
    client, server = scene.pair()
    server.shutdown(socket.SHUT_RD)
    scene.attempt("read", server.recv, 10)
    scene.middle()
    send(server, b"still writable")
    scene.note("peer", receive(client, 14))
    scene.attempt("write to it", client.send, b"abc")
    wait(server, select.POLLIN)
    scene.attempt("data after SHUT_RD", server.recv, 10)


def test_shutdown_of_the_reading_side(stage: Stage) -> None:
    stage.compare(shutdown_of_reading)


def data_then_close(scene: Scene) -> None:
    client, server = scene.pair()
    send(client, b"a" * 100_000)
    scene.middle()
    send(client, b"b" * 100_000)
    scene.look()
    client.close()
    data = receive(server, 300_000)
    scene.note("everything before EOF", (data.count(b"a"), data.count(b"b"), len(data)))
    scene.note("order", data == b"a" * 100_000 + b"b" * 100_000)


def test_close_right_after_writing(stage: Stage) -> None:
    stage.compare(data_then_close)


def rst_when_idle(scene: Scene) -> None:
    client, server = scene.pair()
    scene.middle()
    scene.look()
    reset(client)
    events = wait(server, HUP)
    scene.note("events", events & (select.POLLERR | select.POLLHUP | select.POLLRDHUP))
    scene.attempt("read", server.recv, 10)
    scene.attempt("read again", server.recv, 10)
    scene.attempt("write", server.send, b"x")


def test_reset_of_an_idle_connection(stage: Stage) -> None:
    stage.compare(rst_when_idle)


def reset_by_server(scene: Scene) -> None:
    """The connection has bytes that were redirected and read before the reset."""
    client, server = scene.pair()
    send(client, b"x" * 5000)
    scene.note("read", len(receive(server, 5000)))
    scene.middle()
    scene.look()
    reset(server)
    wait(client, HUP)
    scene.attempt("read", client.recv, 1)
    scene.attempt("write", client.send, b"x")
    scene.attempt("read again", client.recv, 1)


def test_reset_by_the_server(stage: Stage) -> None:
    stage.compare(reset_by_server)


def killed_writer(scene: Scene) -> None:
    client, server = scene.pair()
    scene.watch(server=server)
    told, tell = os.pipe()

    def write_and_hang() -> None:
        server.close()
        send(client, b"k" * 70_000)
        os.write(tell, b"1")
        signal.pause()

    pid = fork(write_and_hang)
    client.close()
    os.read(told, 1)
    scene.middle()
    scene.look()
    os.kill(pid, signal.SIGKILL)
    scene.note("status", ended(pid))
    scene.note("bytes before EOF", receive(server, 100_000).count(b"k"))
    scene.attempt("EOF", server.recv, 1)
    scene.attempt("first write", server.send, b"x")


def test_kill_of_the_writer(stage: Stage) -> None:
    stage.compare(killed_writer)


def killed_reader(scene: Scene) -> None:
    client, server = scene.pair()
    told, tell = os.pipe()

    def read_and_hang() -> None:
        client.close()
        receive(server, 10_000)
        os.write(tell, b"1")
        signal.pause()

    pid = fork(read_and_hang)
    server.close()
    send(client, b"r" * 10_000)
    os.read(told, 1)
    scene.middle()
    scene.look()
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    scene.note("events", wait(client, HUP))
    scene.attempt("read", client.recv, 1)
    scene.attempt("first write", client.send, b"x")
    wait(client, select.POLLERR, PATIENCE)
    scene.attempt("second write", client.send, b"x")


def test_kill_of_the_reader(stage: Stage) -> None:
    stage.compare(killed_reader)


def forked(scene: Scene) -> None:
    """Parent and child write to one socket; the peer sees EOF when both closed it."""
    client, server = scene.pair()

    def child() -> None:
        server.close()
        send(client, b"child ")
        client.close()

    scene.note("child", ended(fork(child)))
    scene.note("from the child", receive(server, 6))
    scene.note("not closed yet", wait(server, HUP, 0.05))
    scene.middle()
    send(client, b"parent")
    scene.note("from the parent", receive(server, 6))
    scene.look()
    client.close()
    scene.note("EOF", receive(server, 1))


def test_fork(stage: Stage) -> None:
    stage.compare(forked)


def forked_readers(scene: Scene) -> None:
    """Two processes read in turn from one socket."""
    client, server = scene.pair()
    got = []
    for turn in range(6):
        send(client, b"%03d" % turn)
        if turn % 2:
            got.append(receive(server, 3))
        else:
            reader, writer = os.pipe()
            pid = fork(lambda w=writer: os.write(w, receive(server, 3)))
            got.append(os.read(reader, 3))
            ended(pid)
            os.close(reader)
            os.close(writer)
        if turn == 3:
            scene.middle()
    scene.note("in order", got)


def test_readers_in_two_processes(stage: Stage) -> None:
    stage.compare(forked_readers)


def duplicated(scene: Scene) -> None:
    client, server = scene.pair()
    copy = client.dup()
    send(client, b"one")
    scene.look()
    client.close()
    scene.middle()
    send(copy, b"two")
    scene.note("both", receive(server, 6))
    send(server, b"back")
    scene.note("back", receive(copy, 4))
    copy.shutdown(socket.SHUT_RDWR)
    scene.note("EOF", receive(server, 1))


def test_dup(stage: Stage) -> None:
    stage.compare(duplicated)


def handed_over(scene: Scene) -> None:
    """A socket with unread bytes goes to another process by SCM_RIGHTS."""
    client, server = scene.pair()
    left, right = socket.socketpair(socket.AF_UNIX)
    send(client, b"before")

    def worker() -> None:
        client.close()
        server.close()
        left.close()
        _, control, _, _ = right.recvmsg(1, socket.CMSG_SPACE(4))
        mine = socket.socket(fileno=array.array("i", control[0][2])[0])
        send(mine, b"got " + receive(mine, 11))

    pid = fork(worker)
    left.sendmsg(
        [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [server.fileno()]))]
    )
    scene.look()
    server.close()
    scene.middle()
    send(client, b"after")
    scene.note("answer", receive(client, 100))
    scene.note("worker", ended(pid))


def test_socket_passed_to_another_process(stage: Stage) -> None:
    stage.compare(handed_over)


def many_short(scene: Scene) -> None:
    """One request and one answer a connection, closed by either side."""
    wrong = 0
    for turn in range(200):
        client, server = scene.pair(warm=False)
        send(client, b"ping%d" % turn)
        wrong += receive(server, len(b"ping%d" % turn)) != b"ping%d" % turn
        send(server, b"pong")
        first, second = (client, server) if turn % 2 else (server, client)
        wrong += receive(client, 4) != b"pong"
        first.close()
        wrong += receive(second, 1) != b""
        second.close()
        if turn == 100:
            scene.middle()
    scene.note("wrong", wrong)
    last, other = scene.pair(warm=scene.way == "on")
    scene.look()
    last.close()
    other.close()


def test_short_connections_one_after_the_other(stage: Stage) -> None:
    stage.compare(many_short)


def writes_after_close(scene: Scene) -> None:
    """EPIPE and SIGPIPE come when TCP has them."""
    client, server = scene.pair()
    scene.look()
    server.close()
    wait(client, HUP)
    scene.middle()
    seen: list[int] = []
    signal.signal(signal.SIGPIPE, lambda *_: seen.append(1))
    scene.attempt("into the closed", client.send, b"x")
    wait(client, select.POLLERR)
    scene.attempt("after the reset", client.send, b"x")
    scene.attempt("silent", client.send, b"x", socket.MSG_NOSIGNAL)
    scene.note("SIGPIPE", len(seen))
    scene.attempt("SO_ERROR", client.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)


def test_write_to_a_closed_peer(stage: Stage) -> None:
    stage.compare(writes_after_close)


def lingering(scene: Scene) -> None:
    """SO_LINGER with time left: close returns, the peer gets everything."""
    client, server = scene.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
    send(client, b"l" * 50_000)
    scene.middle()
    scene.look()
    client.close()
    scene.note("bytes", len(receive(server, 60_000)))


def test_linger(stage: Stage) -> None:
    stage.compare(lingering)


def reconnecting(scene: Scene) -> None:
    """connect(AF_UNSPEC) ends the association; the same socket then reaches another server."""
    client, server = scene.pair()
    scene.middle()
    scene.look()
    disconnect(client)
    wait(server, HUP)
    scene.attempt("peer", server.recv, 1)
    scene.attempt("own name", lambda: client.getsockname()[0])
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with listener() as door:
        client.connect_ex(door.getsockname())
        other = accept(door)
    wait(client, select.POLLOUT)
    for turn in range(20):
        send(client, b"to the new peer %02d" % turn)
        scene.note("new peer", receive(other, 18))
        send(other, b"and back %02d" % turn)
        scene.note("back", receive(client, 11))
    other.shutdown(socket.SHUT_WR)
    scene.note("EOF", receive(client, 1))


def test_socket_that_connects_a_second_time(stage: Stage) -> None:
    stage.compare(reconnecting)
