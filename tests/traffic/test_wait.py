# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do poll, epoll, io_uring, timeouts and signals wake a program exactly as on TCP?"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import SLOWNESS
from harness.channel import Reason
from harness.scene import LEARNING, Scene, Stage, receive, send, wait

HELPER = Path(__file__).parent / "harness" / "uring.c"


def fill(sock: socket.socket, piece: bytes = b"f" * 65536) -> int:
    """Write until EAGAIN and return how many bytes were taken."""
    total = 0
    while True:
        try:
            total += sock.send(piece)
        except BlockingIOError:
            return total


def drain(sock: socket.socket) -> int:
    """Read until EAGAIN and return how many bytes there were."""
    total = 0
    while True:
        try:
            total += len(sock.recv(1 << 18))
        except BlockingIOError:
            return total


def level(scene: Scene) -> None:
    client, server = scene.pair()
    with select.epoll() as poll:
        poll.register(server, select.EPOLLIN)
        scene.note("quiet", poll.poll(0.02))
        for turn in range(6):
            if turn == 3:
                scene.middle()
            send(client, b"0123456789")
            seen: list[bytes] = []
            while poll.poll(5 if not seen else 0.02):
                seen.append(server.recv(4))
            scene.note("read in", b"".join(seen))
        client.shutdown(socket.SHUT_WR)
        scene.note("EOF", [event for _, event in poll.poll(5)])
        scene.attempt("read", server.recv, 1)
        scene.note("EOF stays", [event for _, event in poll.poll(5)])


def test_epoll_level(stage: Stage) -> None:
    stage.compare(level)


def edge(scene: Scene) -> None:
    """One event for each arrival, none for what was seen already, one for the EOF."""
    client, server = scene.pair()
    with select.epoll() as poll:
        poll.register(server, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        scene.note("quiet", poll.poll(0.02))
        for turn in range(6):
            if turn == 3:
                scene.middle()
            send(client, b"first")
            scene.note("first", [event for _, event in poll.poll(5)])
            scene.note("not again", poll.poll(0.02))
            send(client, b"second")
            scene.note("second", [event for _, event in poll.poll(5)])
            scene.note("both", receive(server, 11))
        client.shutdown(socket.SHUT_WR)
        scene.note("EOF", [event for _, event in poll.poll(5)])


def test_epoll_edge(stage: Stage) -> None:
    stage.compare(edge)


def edge_writer(scene: Scene) -> None:
    """A writer that waits for one EPOLLOUT edge after EAGAIN is woken when the reader drains."""
    client, server = scene.pair()
    with select.epoll() as poll:
        poll.register(client, select.EPOLLOUT | select.EPOLLET)
        poll.poll(0)
        for turn in range(6):
            if turn == 3:
                scene.middle()
            sent = fill(client)
            scene.note("full", sent > 0)
            got = 0
            woken = []
            deadline = time.monotonic() + 5
            while got < sent and time.monotonic() < deadline:
                got += drain(server)
                woken += poll.poll(0.01)
            scene.note("all came", sent - got)
            scene.note("woken", bool(woken or poll.poll(2)))


def test_epoll_edge_for_a_full_writer(stage: Stage) -> None:
    stage.compare(edge_writer)


def oneshot(scene: Scene) -> None:
    client, server = scene.pair()
    with select.epoll() as poll:
        poll.register(server, select.EPOLLIN | select.EPOLLONESHOT)
        send(client, b"a")
        scene.note("once", [event for _, event in poll.poll(5)])
        send(client, b"b")
        scene.note("no more", poll.poll(0.02))
        scene.middle()
        poll.modify(server, select.EPOLLIN | select.EPOLLONESHOT)
        scene.note("rearmed", [event for _, event in poll.poll(5)])
        scene.note("data", receive(server, 2))


def test_epoll_oneshot(stage: Stage) -> None:
    stage.compare(oneshot)


def late_registration(scene: Scene) -> None:
    """Readiness that was there before the descriptor was added is reported."""
    client, server = scene.pair()
    send(client, b"early")
    wait(server, select.POLLIN)
    scene.middle()
    for flags in (select.EPOLLIN, select.EPOLLIN | select.EPOLLET):
        with select.epoll() as poll:
            poll.register(server, flags)
            scene.note("ready", [event for _, event in poll.poll(5)])
    scene.note("select", len(select.select([server], [], [], 5)[0]))
    scene.note("data", receive(server, 5))


def test_readiness_before_registration(stage: Stage) -> None:
    stage.compare(late_registration)


def timeouts(scene: Scene) -> None:
    """A Python timeout is poll and O_NONBLOCK: it expires, and data ends it early."""
    client, server = scene.pair()
    server.settimeout(0.1)
    before = time.monotonic()
    try:
        server.recv(1)
    except TimeoutError:
        scene.note("expired", 0.09 < time.monotonic() - before < 2)
    scene.middle()
    server.settimeout(5)
    timer = threading.Timer(0.05, send, (client, b"late"))
    timer.start()
    scene.note("late", server.recv(10))
    timer.join()
    client.settimeout(0.1)
    taken = 0
    try:
        while True:
            taken += client.send(b"t" * 65536)
    except TimeoutError:
        scene.note("send expired", taken > 0)
    server.setblocking(False)
    scene.note("all arrives", len(receive(server, taken)) == taken)


def test_timeouts(stage: Stage) -> None:
    stage.compare(timeouts)


def kernel_timeouts(scene: Scene) -> None:
    """SO_RCVTIMEO on a blocking socket."""
    client, server = scene.pair(warm=False)
    server.setblocking(True)
    server.setsockopt(
        socket.SOL_SOCKET,
        socket.SO_RCVTIMEO,
        struct.pack("qq", 0, 50_000),
    )
    for turn in range(4):
        if turn == 2:
            scene.middle()
        before = time.monotonic()
        scene.attempt("expires", server.recv, 1)
        scene.note("in time", 0.04 < time.monotonic() - before < 2)
        send(client, b"x")
        scene.attempt("data", server.recv, 1)


def test_so_rcvtimeo(stage: Stage) -> None:
    stage.compare(kernel_timeouts, Reason.BLOCKING, LEARNING)


def signals_while_polling(scene: Scene) -> None:
    """A signal interrupts the wait, loses nothing, and the read goes on."""
    client, server = scene.pair()
    caught: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    pid = os.getpid()
    for turn in range(4):
        if turn == 2:
            scene.middle()

        def disturb() -> None:
            for _ in range(5):
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.005)
            send(client, b"calm")

        thread = threading.Thread(target=disturb)
        thread.start()
        scene.note("data", receive(server, 4))
        thread.join()
    scene.note("caught", len(caught) >= 4)


def test_signals_during_poll(stage: Stage) -> None:
    stage.compare(signals_while_polling)


def sigio(scene: Scene) -> None:
    """O_ASYNC: data raises SIGIO."""
    client, server = scene.pair()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    fcntl.fcntl(server, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(server, fcntl.F_GETFL)
    fcntl.fcntl(server, fcntl.F_SETFL, flags | os.O_ASYNC)
    for turn in range(4):
        if turn == 2:
            scene.middle()
        while signal.sigtimedwait({signal.SIGIO}, 0):
            pass
        send(client, b"x")
        scene.note("signal", signal.sigtimedwait({signal.SIGIO}, 5) is not None)
        scene.note("data", receive(server, 1))


def test_sigio(stage: Stage) -> None:
    stage.compare(sigio)


def two_waiters(scene: Scene) -> None:
    """Two threads poll one socket; both wake."""
    client, server = scene.pair()
    for turn in range(4):
        if turn == 2:
            scene.middle()
        woken: list[int] = []
        threads = [
            threading.Thread(target=lambda w=woken: w.append(wait(server, select.POLLIN)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        send(client, b"x")
        for thread in threads:
            thread.join()
        scene.note("woken", woken)
        scene.note("data", receive(server, 1))


def test_two_pollers_of_one_socket(stage: Stage) -> None:
    stage.compare(two_waiters)


@pytest.fixture(scope="session")
def uring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled io_uring helper; skips aloud where the kernel refuses io_uring."""
    program = tmp_path_factory.mktemp("uring") / "uring"
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-o", str(program), str(HELPER)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    probe = subprocess.run([str(program), "probe"], capture_output=True, text=True, timeout=10)
    if probe.returncode == 77:
        pytest.skip(f"this kernel has no usable io_uring: {probe.stdout}{probe.stderr}")
    return program


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("echo", "nonblocking"),
        ("echo", "blocking"),
        ("multishot", "nonblocking"),
        ("poll", "nonblocking"),
    ],
)
def test_io_uring(stage: Stage, uring: Path, mode: str, flags: str) -> None:
    """Reads of a ring, submitted before the data comes, and its writes."""

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(warm=flags == "nonblocking")
        server.setblocking(flags == "blocking")
        server.set_inheritable(True)
        child = subprocess.Popen(
            [str(uring), mode, str(server.fileno()), "40"],
            pass_fds=[server.fileno()], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for turn in range(40):
            if turn == 20:
                scene.middle()
            text = b"message %02d " % turn + b"u" * (turn * 300)
            send(client, text)
            scene.note("echo", receive(client, len(text)) == text)
        scene.look()
        server.close()
        client.shutdown(socket.SHUT_WR)
        scene.note("EOF", receive(client, 1))
        out, _ = child.communicate(timeout=5 * SLOWNESS)
        scene.note("helper", (child.returncode, out.strip()))

    if flags == "nonblocking":
        stage.compare(scenario)
    else:
        stage.compare(scenario, Reason.BLOCKING, LEARNING)
