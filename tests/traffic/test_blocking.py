# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do programs that block in recv stay on TCP, on either side, and behave as ever?"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable

from harness.channel import Reason, wait_for
from harness.scene import (
    LEARNING,
    Scene,
    Stage,
    accept,
    connect,
    listener,
    receive,
    send,
    wait,
)


def sleeping_in_recv(thread: int | None) -> bool:
    """True once the thread of this id waits in the kernel for data."""
    try:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            return file.read().split()[0] in {"0", "45", "47"}  # read, recvfrom, recvmsg
    except (FileNotFoundError, IndexError):
        return False


def blocked(function: object) -> tuple[threading.Thread, list[object]]:
    """Run a receiving function in a thread and return once it blocks."""
    assert callable(function)
    results: list[object] = []

    def body() -> None:
        try:
            results.append(function())
        except OSError as error:
            results.append(error.errno)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    wait_for("the reader blocks", lambda: sleeping_in_recv(thread.native_id))
    return thread, results


def pair(scene: Scene, side: str) -> tuple[socket.socket, socket.socket]:
    """Return (blocking end, non-blocking end), `side` being the blocking one."""
    with listener(port=scene.port) as door:
        client = socket.socket()
        client.setblocking(side == "client")
        client.connect_ex(door.getsockname())
        server = accept(door, blocking=side == "server")
    scene.watch(client=client, server=server)
    return (client, server) if side == "client" else (server, client)


def half_close(scene: Scene, side: str) -> None:
    reader, writer = pair(scene, side)
    for turn in range(6):
        if turn == 3:
            scene.middle()
        thread, got = blocked(lambda: reader.recv(100))
        send(writer, b"wake %d" % turn)
        thread.join(5)
        scene.note("woken by data", got)
    thread, got = blocked(lambda: reader.recv(100))
    writer.shutdown(socket.SHUT_WR)
    thread.join(5)
    scene.note("woken by the half-close", got)
    reader.sendall(b"still open this way")
    scene.note("answer", receive(writer, 19))


def test_blocking_server_at_a_half_close(stage: Stage) -> None:
    stage.compare(lambda scene: half_close(scene, "server"), Reason.BLOCKING, LEARNING)


def test_blocking_client_at_a_half_close(stage: Stage) -> None:
    stage.compare(lambda scene: half_close(scene, "client"), Reason.BLOCKING)


def reset_while_blocked(scene: Scene, side: str) -> None:
    reader, writer = pair(scene, side)
    send(writer, b"first")
    scene.note("first", reader.recv(5))
    thread, got = blocked(lambda: reader.recv(100))
    scene.middle()
    scene.look()
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()
    thread.join(5)
    scene.note("errno", got)


def test_blocking_server_at_a_reset(stage: Stage) -> None:
    stage.compare(lambda scene: reset_while_blocked(scene, "server"), Reason.BLOCKING, LEARNING)


def test_blocking_client_at_a_reset(stage: Stage) -> None:
    stage.compare(lambda scene: reset_while_blocked(scene, "client"), Reason.BLOCKING)


class _InterruptedError(Exception):
    pass


def signal_when_blocked(then: Callable[[], object] = lambda: None) -> threading.Thread:
    """Signal this process once its main thread waits for data; afterwards do `then`."""

    def body() -> None:
        wait_for("the reader blocks", lambda: sleeping_in_recv(os.getpid()))
        os.kill(os.getpid(), signal.SIGUSR1)
        then()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def signals(scene: Scene, side: str) -> None:
    """A handler that raises ends recv (EINTR); one that returns lets it go on."""
    reader, writer = pair(scene, side)
    send(writer, b"start")
    scene.note("start", reader.recv(5))

    def raising(*_: object) -> None:
        raise _InterruptedError

    signal.signal(signal.SIGUSR1, raising)
    for turn in range(4):
        if turn == 2:
            scene.middle()
        thread = signal_when_blocked()
        try:
            scene.note("no data", reader.recv(5))
        except _InterruptedError:
            scene.note("interrupted", True)
        thread.join()
        send(writer, b"after")
        scene.note("data", reader.recv(5))
    caught: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    thread = signal_when_blocked(lambda: send(writer, b"late"))
    scene.note("restarted", reader.recv(5))
    thread.join()
    scene.note("caught", caught)


def test_blocking_server_and_signals(stage: Stage) -> None:
    stage.compare(lambda scene: signals(scene, "server"), Reason.BLOCKING, LEARNING)


def test_blocking_client_and_signals(stage: Stage) -> None:
    stage.compare(lambda scene: signals(scene, "client"), Reason.BLOCKING)


def both_blocking(scene: Scene) -> None:
    """Two plain sockets and two threads: the textbook program."""
    with socket.create_server(("127.0.0.1", scene.port)) as door:
        client = socket.create_connection(door.getsockname())
        server, _ = door.accept()
    scene.watch(client=client, server=server)
    answers: list[bytes] = []

    def serve() -> None:
        while data := server.recv(65536):
            server.sendall(data.upper())
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    for turn in range(50):
        if turn == 25:
            scene.middle()
        client.sendall(b"abc%02d" % turn)
        answers.append(client.recv(5, socket.MSG_WAITALL))
    scene.look()
    client.shutdown(socket.SHUT_WR)
    scene.note("EOF", client.recv(1))
    thread.join(5)
    scene.note("answers", answers)


def test_both_ends_blocking(stage: Stage) -> None:
    # Nothing says of a blocking listener that its children will not block.
    stage.compare(both_blocking, Reason.LEARNING)
    stage.compare(both_blocking, Reason.BLOCKING, LEARNING)


def toggled(scene: Scene) -> None:
    """The reader changes O_NONBLOCK again and again while bytes arrive."""
    client, server = scene.pair()
    got = b""
    sent = b""
    for turn in range(40):
        if turn == 20:
            scene.middle()
        text = b"turn %02d;" % turn * (turn + 1)
        sent += text
        if turn % 4 < 2:
            send(client, text)
            server.setblocking(turn % 2 == 0)
        else:
            server.setblocking(turn % 2 == 0)
            send(client, text)
        if server.getblocking():
            part = b""
            while len(part) < len(text):
                part += server.recv(len(text) - len(part))
            got += part
        else:
            got += receive(server, len(text))
    scene.note("in order", got == sent)
    server.setblocking(False)
    scene.attempt("empty", server.recv, 1)


def test_toggling_o_nonblock(stage: Stage) -> None:
    stage.compare(toggled)


def toggled_to_blocking_for_good(scene: Scene) -> None:
    """A reader that becomes blocking in mid-stream gets data, then EOF, never EAGAIN."""
    client, server = scene.pair()
    server.setblocking(True)
    for turn in range(40):
        send(client, b"piece%02d" % turn)
        scene.note("piece", server.recv(7, socket.MSG_WAITALL))
    scene.middle()
    thread, got = blocked(lambda: server.recv(10))
    client.shutdown(socket.SHUT_WR)
    thread.join(5)
    scene.note("EOF", got)


def test_becoming_a_blocking_reader(stage: Stage) -> None:
    stage.compare(toggled_to_blocking_for_good)


def blocking_sender(scene: Scene) -> None:
    """A blocking client that only writes a lot, to a server that reads late."""
    with listener(port=scene.port) as door:
        client = socket.create_connection(door.getsockname())
        server = accept(door)
    scene.watch(client=client, server=server)
    total = 24 << 20
    thread = threading.Thread(target=lambda: client.sendall(b"b" * total))
    thread.start()
    got = 0
    while got < total:
        wait(server, select.POLLIN)
        got += len(server.recv(1 << 20))
        if got > total // 2:
            scene.middle()
    thread.join(5)
    scene.note("got", got)


def test_blocking_writer(stage: Stage) -> None:
    stage.compare(blocking_sender, Reason.BLOCKING)


def connect_refused(scene: Scene) -> None:
    """Errors of connect are TCP's own, blocking or not."""
    with listener() as door:
        port = door.getsockname()[1]
    scene.attempt("blocking", socket.create_connection, ("127.0.0.1", port), 2)
    scene.attempt("non-blocking", connect, "127.0.0.1", port)
    before = time.monotonic()
    client, server = scene.pair()
    scene.note("quick", time.monotonic() - before < 2)
    scene.attempt("again", client.connect, server.getsockname())


def test_errors_of_connect(stage: Stage) -> None:
    stage.compare(connect_refused)
