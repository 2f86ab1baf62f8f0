# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an accelerated connection does otherwise than TCP, said plainly.

The kernel's tcp_bpf code behaves so, and no BPF program can change it. Each test
asserts both sides, so that a kernel that differs from the documentation is noticed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct

from harness.scene import Scene, Stage, receive, send, wait
from test_close import HUP, disconnect, reset
from test_receive import splice


def close_with_unread(scene: Scene) -> None:
    client, server = scene.pair()
    send(client, b"never read")
    wait(server, select.POLLIN)
    scene.look()
    server.close()
    wait(client, HUP)
    scene.attempt("read", client.recv, 1)
    scene.attempt("write", client.send, b"into the void")


def test_close_with_unread_bytes_sends_fin_instead_of_rst(stage: Stage) -> None:
    stage.differs(
        close_with_unread,
        tcp=[("read", "ECONNRESET"), ("write", "EPIPE")],
        ours=[("read", b""), ("write", 13)],
    )


def writes_after_reset(scene: Scene) -> None:
    client, server = scene.pair()
    scene.look()
    reset(server)
    wait(client, HUP)
    scene.attempt("write", client.send, b"abcd")
    scene.attempt("write again", client.send, b"abcd")
    scene.attempt("read", client.recv, 1)
    scene.attempt("read again", client.recv, 1)


def test_writing_does_not_use_up_the_error_of_a_reset(stage: Stage) -> None:
    stage.differs(
        writes_after_reset,
        tcp=[("write", "ECONNRESET"), ("write again", "EPIPE"), ("read", b""), ("read again", b"")],
        ours=[
            ("write", "ECONNRESET"),
            ("write again", "ECONNRESET"),
            ("read", "ECONNRESET"),
            ("read again", b""),
        ],
    )


def urgent(scene: Scene) -> None:
    client, server = scene.pair()
    scene.attempt("sent", client.send, b"urgent", socket.MSG_OOB)
    scene.note("POLLPRI", bool(wait(server, select.POLLPRI, 0.3)))
    scene.attempt("urgent byte", server.recv, 1, socket.MSG_OOB)
    scene.attempt("in line", server.recv, 10)


def test_urgent_messages_of_four_bytes_and_more_arrive_in_line(stage: Stage) -> None:
    stage.differs(
        urgent,
        tcp=[("sent", 6), ("POLLPRI", True), ("urgent byte", b"t"), ("in line", b"urgen")],
        ours=[("sent", 6), ("POLLPRI", False), ("urgent byte", b"u"), ("in line", b"rgent")],
    )


def bad_pointer(scene: Scene) -> None:
    client, server = scene.pair()
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    scene.note("send", libc.send(client.fileno(), ctypes.c_void_p(8), 100, 0))
    scene.note("errno", errno.errorcode.get(ctypes.get_errno()))
    send(client, b"good")
    scene.note("next", receive(server, 4))


def test_sending_from_a_bad_pointer_returns_zero(stage: Stage) -> None:
    """Since 6.13 tcp_bpf_sendmsg() drops the error of copying; before, it is TCP's."""
    tcp = [("send", -1), ("errno", "EFAULT"), ("next", b"good")]
    older = tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 13)
    ours = tcp if older else [("send", 0), ("errno", None), ("next", b"good")]
    stage.differs(bad_pointer, tcp=tcp, ours=ours)


def error_of_disconnect(scene: Scene) -> None:
    client, _server = scene.pair()
    scene.look()
    disconnect(client)
    scene.attempt("read", client.recv, 1)


def test_reading_after_a_disconnect(stage: Stage) -> None:
    stage.differs(error_of_disconnect, tcp=[("read", "ECONNRESET")], ours=[("read", "EAGAIN")])


def first_trunc(scene: Scene) -> None:
    client, server = scene.pair()
    send(client, b"x" * 10 + b"kept")
    wait(server, select.POLLIN)
    buffer = ctypes.create_string_buffer(b"untouched!")
    libc = ctypes.CDLL(None)
    scene.note("discarded", libc.recv(server.fileno(), buffer, 10, socket.MSG_TRUNC))
    scene.note("buffer", buffer.value)
    scene.note("kept", receive(server, 4))


def test_the_first_msg_trunc_fills_the_buffer(stage: Stage) -> None:
    stage.differs(
        first_trunc,
        tcp=[("discarded", 10), ("buffer", b"untouched!"), ("kept", b"kept")],
        ours=[("discarded", 10), ("buffer", b"x" * 10), ("kept", b"kept")],
    )


def counters(scene: Scene) -> None:
    """TCP_INFO counts what TCP carried, so redirected bytes are missing there."""
    client, server = scene.pair()
    before = bytes_received(server)
    send(client, b"c" * 5000)
    scene.note("read", len(receive(server, 5000)))
    scene.note("in TCP_INFO", bytes_received(server) - before)


def bytes_received(sock: socket.socket) -> int:
    """Return tcpi_bytes_received."""
    return struct.unpack_from("Q", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 128)[
        0
    ]


def test_tcp_info_does_not_count_redirected_bytes(stage: Stage) -> None:
    stage.differs(
        counters,
        tcp=[("read", 5000), ("in TCP_INFO", 5000)],
        ours=[("read", 5000), ("in TCP_INFO", 0)],
    )


def splice_after_recv(scene: Scene) -> None:
    """A reader that has always used recv turns to splice while redirected bytes wait."""
    client, server = scene.pair()
    reader, writer = os.pipe()
    send(client, b"redirected")
    wait(server, select.POLLIN)
    scene.attempt("splice", splice, server.fileno(), writer, 100)
    scene.attempt("recv", server.recv, 100)
    os.close(reader)
    os.close(writer)


def test_splice_does_not_see_redirected_bytes(stage: Stage) -> None:
    """It passes them over: such a program's port is kept on TCP once it was seen."""
    stage.differs(
        splice_after_recv,
        tcp=[("splice", 10), ("recv", "EAGAIN")],
        ours=[("splice", "EAGAIN"), ("recv", b"redirected")],
    )


def small_buffers(scene: Scene) -> None:
    """Nobody reads, and both ends asked for little memory."""
    client, server = scene.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    taken, most = 0, 1 << 20
    try:
        while taken < most:
            taken += client.send(b"s" * 65536)
    except BlockingIOError:
        pass
    scene.note("a megabyte is taken", taken >= most)


def test_sizes_of_buffers_do_not_bound_redirected_bytes(stage: Stage) -> None:
    """max_unread_bytes does, see test_pressure.py."""
    taken = "a megabyte is taken"
    stage.differs(small_buffers, tcp=[(taken, False)], ours=[(taken, True)])
