# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the ways of reading and writing, their flags and options behave as on TCP?"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import tempfile
import termios
from collections.abc import Iterator

import pytest
from harness.channel import Reason, wait_for
from harness.scene import LEARNING, Scene, Stage, accept, connect, listener, receive, send, wait

SO_PEEK_OFF, SO_ZEROCOPY, SO_TIMESTAMP = 42, 60, 29
TCP_INQ, MSG_ZEROCOPY = 36, 0x4000000
IP_RECVERR = 11
SPLICE_NONBLOCK = 2


def prepared(
    scene: Scene, level: int, option: int, value: int
) -> tuple[socket.socket, socket.socket]:
    """Return a pair whose server had an option set before any byte moved."""
    with listener(port=scene.port) as door:
        client = connect(*door.getsockname())
        server = accept(door)
    server.setsockopt(level, option, value)
    scene.watch(client=client, server=server)
    for _ in range(3):
        send(client, b"warm")
        receive(server, 4)
        send(server, b"warm")
        receive(client, 4)
    return client, server


def peek(scene: Scene) -> None:
    client, server = scene.pair()
    scene.attempt("nothing", server.recv, 10, socket.MSG_PEEK)
    send(client, b"abcdef")
    wait(server, select.POLLIN)
    scene.attempt("peek", server.recv, 3, socket.MSG_PEEK)
    scene.attempt("peek again", server.recv, 100, socket.MSG_PEEK)
    scene.attempt("read", server.recv, 2)
    scene.middle()
    scene.attempt("peek the rest", server.recv, 100, socket.MSG_PEEK)
    send(client, b"ghi")
    scene.note("rest", receive(server, 7))
    client.shutdown(socket.SHUT_WR)
    wait(server, select.POLLIN)
    scene.attempt("peek at EOF", server.recv, 1, socket.MSG_PEEK)


def test_msg_peek(stage: Stage) -> None:
    stage.compare(peek)


def peek_over_messages(scene: Scene) -> None:
    """A peek spans what several writes brought."""
    client, server = scene.pair()
    for part in (b"ab", b"cd", b"ef"):
        send(client, part)
    wait_for("six bytes", lambda: len(server.recv(10, socket.MSG_PEEK)) == 6)
    scene.attempt("peek all", server.recv, 6, socket.MSG_PEEK)
    scene.middle()
    scene.note("read", receive(server, 6))


def test_msg_peek_over_several_messages(stage: Stage) -> None:
    stage.compare(peek_over_messages)


def peek_to_the_end(scene: Scene) -> None:
    """A peek and FIONREAD see a tail of any size."""
    client, server = scene.pair()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for turn, tail in enumerate((b"a", b"abc", b"abcd" * 100)):
        if turn == 2:
            scene.middle()
        send(client, b"the beginning")
        send(client, tail)
        size = 13 + len(tail)
        wait_for("all bytes", lambda size=size: len(server.recv(9999, socket.MSG_PEEK)) == size)
        scene.note("FIONREAD", unread(server))
        scene.note("read", receive(server, size))


def test_peek_to_the_end(stage: Stage) -> None:
    stage.compare(peek_to_the_end)


def peek_offset(scene: Scene) -> None:
    client, server = prepared(scene, socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    send(client, b"abcdef")
    wait(server, select.POLLIN)
    scene.attempt("first", server.recv, 2, socket.MSG_PEEK)
    scene.attempt("second", server.recv, 2, socket.MSG_PEEK)
    scene.middle()
    scene.note("read", receive(server, 6))


def test_so_peek_off(stage: Stage) -> None:
    stage.compare(peek_offset, Reason.PEEK_OFF)


def waitall(scene: Scene) -> None:
    """On a non-blocking socket MSG_WAITALL does not wait."""
    client, server = scene.pair()
    scene.attempt("nothing", server.recv, 8, socket.MSG_WAITALL)
    send(client, b"half")
    wait(server, select.POLLIN)
    scene.attempt("half", server.recv, 8, socket.MSG_WAITALL)
    scene.middle()
    send(client, b"complete")
    wait(server, select.POLLIN)
    scene.attempt("all", server.recv, 8, socket.MSG_WAITALL)


def test_msg_waitall_without_blocking(stage: Stage) -> None:
    stage.compare(waitall)


def waitall_blocking(scene: Scene) -> None:
    """A blocking reader gets everything it asked for from one MSG_WAITALL."""
    client, server = scene.pair(warm=False)
    server.setblocking(True)
    for _ in range(3):
        send(client, b"warm")
        server.recv(4, socket.MSG_WAITALL)
    for turn in range(20):
        if turn == 10:
            scene.middle()
        pid = os.fork()
        if pid == 0:
            for _ in range(8):
                send(client, b"12345")
            os._exit(0)
        scene.note("one call", len(server.recv(40, socket.MSG_WAITALL)))
        os.waitpid(pid, 0)


def test_msg_waitall_blocking(stage: Stage) -> None:
    stage.compare(waitall_blocking, Reason.BLOCKING, LEARNING)


def dontwait(scene: Scene) -> None:
    """A blocking socket used with MSG_DONTWAIT only."""
    client, server = scene.pair(warm=False)
    server.setblocking(True)
    for turn in range(6):
        scene.attempt("empty", server.recv, 10, socket.MSG_DONTWAIT)
        send(client, b"data%d" % turn)
        wait(server, select.POLLIN)
        scene.attempt("data", server.recv, 10, socket.MSG_DONTWAIT)
        if turn == 3:
            scene.middle()


def test_msg_dontwait(stage: Stage) -> None:
    stage.compare(dontwait, Reason.BLOCKING, LEARNING)


def gathered(scene: Scene) -> None:
    """sendmsg and recvmsg with many pieces, more than one sk_msg can hold."""
    client, server = scene.pair()
    pieces = [bytes([i % 256]) * (i % 97 + 1) for i in range(1000)]
    whole = b"".join(pieces)
    sent = 0
    for start in range(0, 1000, 250):
        if start == 500:
            scene.middle()
        sent += client.sendmsg(pieces[start : start + 250])
    scene.note("sent", sent)
    buffers = [bytearray(1 + i * 13) for i in range(200)]
    got = b""
    while len(got) < len(whole):
        wait(server, select.POLLIN)
        count = server.recvmsg_into(buffers)[0]
        got += b"".join(buffers)[:count]
    scene.note("same", got == whole)


def test_scatter_and_gather(stage: Stage) -> None:
    stage.compare(gathered)


def empty_and_large(scene: Scene) -> None:
    client, server = scene.pair()
    scene.attempt("empty send", client.send, b"")
    scene.attempt("still nothing", server.recv, 1)
    scene.attempt("empty read", server.recv, 0)
    big = random.Random(7).randbytes(3 << 20)
    view, got = memoryview(big), hashlib.sha256()
    total = 0
    while total < len(big):
        if view:
            with contextlib.suppress(BlockingIOError):
                view = view[client.send(view) :]
        with contextlib.suppress(BlockingIOError):
            part = server.recv(200_000)
            got.update(part)
            total += len(part)
        if total > len(big) // 2:
            scene.middle()
    scene.note("sha256", got.hexdigest())


def test_empty_and_large_messages(stage: Stage) -> None:
    stage.compare(empty_and_large)


def corked(scene: Scene) -> None:
    """MSG_MORE and TCP_CORK: everything arrives, in order, at the latest when uncorked."""
    client, server = scene.pair()
    for part in (b"a", b"b", b"c"):
        client.send(part, socket.MSG_MORE)
    client.send(b"d")
    scene.note("more", receive(server, 4))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    send(client, b"efg")
    scene.middle()
    send(client, b"hij")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    scene.note("cork", receive(server, 6))


def test_msg_more_and_cork(stage: Stage) -> None:
    stage.compare(corked)


def out_of_band(scene: Scene) -> None:
    """One urgent byte, its signal, its mark, and the bytes around it."""
    client, server = scene.pair()
    client.send(b"abc")
    client.send(b"!", socket.MSG_OOB)
    client.send(b"def")
    scene.note("events", wait(server, select.POLLPRI) & select.POLLPRI)
    scene.attempt("urgent", server.recv, 1, socket.MSG_OOB)
    scene.attempt("before the mark", server.recv, 10)
    scene.middle()
    wait(server, select.POLLIN)
    scene.attempt("after the mark", server.recv, 10)
    client.send(b"more")
    scene.note("goes on", receive(server, 4))


def test_msg_oob(stage: Stage) -> None:
    stage.compare(out_of_band)


def unread(sock: socket.socket) -> int:
    """Return what FIONREAD says."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]


def fionread(scene: Scene) -> None:
    client, server = scene.pair()
    for turn in range(2):
        scene.note("none", unread(server))
        send(client, b"x" * 10)
        wait(server, select.POLLIN)
        scene.note("ten", unread(server))
        server.recv(4)
        scene.note("six", unread(server))
        send(client, b"y" * 1000)
        wait_for("all bytes", lambda: unread(server) == 1006)
        scene.note("read", len(receive(server, 1006)))
        scene.note("none again", unread(server))
        if not turn:
            scene.middle()


def test_fionread(stage: Stage) -> None:
    stage.compare(fionread)


def outq(scene: Scene) -> None:
    """SIOCOUTQ falls to zero when the peer's kernel has everything."""
    client, server = scene.pair()
    send(client, b"x" * 1000)
    scene.middle()

    def unsent() -> int:
        return struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, b"\0" * 4))[0]

    wait_for("an empty output queue", lambda: unsent() == 0)
    scene.note("left", unsent())
    scene.note("read", len(receive(server, 1000)))


def test_siocoutq(stage: Stage) -> None:
    stage.compare(outq)


def inq(scene: Scene) -> None:
    client, server = prepared(scene, socket.IPPROTO_TCP, TCP_INQ, 1)
    for turn in range(3):
        send(client, b"x" * 10)
        wait(server, select.POLLIN)
        _, control, _, _ = server.recvmsg(4, 128)
        scene.note("left", [(kind, int.from_bytes(data, "little")) for _, kind, data in control])
        receive(server, 6)
        if turn == 1:
            scene.middle()


def test_tcp_inq(stage: Stage) -> None:
    stage.compare(inq, Reason.INQ)


def stamped_once(client: socket.socket, server: socket.socket) -> bool:
    send(client, b"first")
    wait(server, select.POLLIN)
    return bool(server.recvmsg(100, 128)[1])


def timestamps(scene: Scene) -> None:
    client, server = prepared(scene, socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    # The kernel turns stamping on a moment after the option was set.
    wait_for("stamps", lambda: stamped_once(client, server))
    for turn in range(3):
        send(client, b"x" * 10)
        wait(server, select.POLLIN)
        data, control, _, _ = server.recvmsg(100, 128)
        scene.note("stamped", (data, [(level, kind) for level, kind, _ in control]))
        if turn == 1:
            scene.middle()


def test_so_timestamp(stage: Stage) -> None:
    stage.compare(timestamps, Reason.TIMESTAMP, LEARNING)


def low_water(scene: Scene) -> None:
    client, server = prepared(scene, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    for turn in range(3):
        send(client, b"1234")
        scene.note("below", wait(server, select.POLLIN, 0.05))
        send(client, b"5678")
        scene.note("reached", wait(server, select.POLLIN))
        scene.note("read", receive(server, 8))
        if turn == 1:
            scene.middle()


def test_so_rcvlowat(stage: Stage) -> None:
    stage.compare(low_water, Reason.RCVLOWAT)


def zerocopy(scene: Scene) -> None:
    """Every MSG_ZEROCOPY send is completed on the error queue."""
    client, server = scene.pair(warm=False)
    client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    for _ in range(3):
        send(client, b"warm")
        receive(server, 4)
    data = bytearray(b"z" * 65536)
    for turn in range(4):
        if turn == 2:
            scene.middle()
        scene.note("sent", client.send(data, MSG_ZEROCOPY))
        scene.note("read", len(receive(server, len(data))))
        scene.note("completion", wait(client, 0) & select.POLLERR)
        _, control, _, _ = client.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        scene.note("range", [struct.unpack_from("IBBBBII", d)[5:7] for _, _, d in control])


def test_msg_zerocopy(stage: Stage) -> None:
    stage.compare(zerocopy, Reason.ZEROCOPY, LEARNING)


def truncated(scene: Scene) -> None:
    """MSG_TRUNC discards bytes without storing them."""
    client, server = scene.pair(warm=False)
    libc = ctypes.CDLL(None, use_errno=True)
    for turn in range(3):
        send(client, b"x" * 10 + b"kept")
        wait(server, select.POLLIN)
        buffer = ctypes.create_string_buffer(b"untouched!")
        scene.note("discarded", libc.recv(server.fileno(), buffer, 10, socket.MSG_TRUNC))
        scene.note("buffer", buffer.value)
        scene.note("kept", receive(server, 4))
        if turn == 1:
            scene.middle()


def test_msg_trunc(stage: Stage) -> None:
    stage.compare(truncated, Reason.RECV_FLAGS, LEARNING)


def splice(source: int, target: int, size: int, flags: int = SPLICE_NONBLOCK) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    count = libc.splice(source, None, target, None, size, flags)
    if count < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return count


def splice_out(scene: Scene) -> None:
    """A non-blocking proxy that moves bytes by splice from the first one on."""
    client, server = scene.pair(warm=False)
    reader, writer = os.pipe()
    got = hashlib.sha256()
    data = random.Random(3).randbytes(200_000)
    for start in range(0, len(data), 10_000):
        piece = data[start : start + 10_000]
        send(client, piece)
        left = len(piece)
        while left:
            if not wait(server, select.POLLIN):
                raise TimeoutError(f"{left} bytes are missing")
            try:
                count = splice(server.fileno(), writer, left)
            except BlockingIOError:
                scene.note("EAGAIN although readable", start)
                return
            left -= count
            while count:
                part = os.read(reader, count)
                got.update(part)
                count -= len(part)
        if start == 100_000:
            scene.middle()
    scene.note("sha256", got.hexdigest())
    scene.attempt("empty", splice, server.fileno(), writer, 10)


def test_splice_from_the_socket(stage: Stage) -> None:
    stage.compare(splice_out, Reason.SPLICE, LEARNING)


@contextlib.contextmanager
def a_file(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def sendfile(scene: Scene) -> None:
    """sendfile and splice into the socket, mixed with plain writes."""
    client, server = scene.pair()
    data = random.Random(5).randbytes(1 << 20)
    got = hashlib.sha256()
    expected = hashlib.sha256()
    reader, writer = os.pipe()
    with a_file(data) as file:
        offset = 0
        while offset < len(data):
            offset_before = offset
            with contextlib.suppress(BlockingIOError):
                offset += os.sendfile(client.fileno(), file, offset, 70_000)
            expected.update(data[offset_before:offset])
            send(client, b"between")
            expected.update(b"between")
            os.write(writer, b"piped bytes")
            moved = splice(reader, client.fileno(), 11, 0)
            expected.update(b"piped bytes"[:moved])
            got.update(receive(server, offset - offset_before + 7 + moved))
            if offset > len(data) // 2:
                scene.middle()
    scene.note("sha256", got.hexdigest() == expected.hexdigest())
    scene.attempt("nothing more", server.recv, 1)


def test_sendfile_and_splice_into_the_socket(stage: Stage) -> None:
    stage.compare(sendfile)


def file_changed_after_sendfile(scene: Scene) -> None:
    """A page of a file is sent by reference on TCP too: only its length is promised."""
    client, server = scene.pair()
    with a_file(b"a" * 50_000) as file:
        scene.note("sent", os.sendfile(client.fileno(), file, 0, 50_000))
        scene.middle()
        scene.note("read", len(receive(server, 50_000)))


def test_sendfile_of_pages(stage: Stage) -> None:
    stage.compare(file_changed_after_sendfile)


def options_live(scene: Scene) -> None:
    """TCP_NODELAY, buffers, TCP_QUICKACK and keepalive can be set on a live connection."""
    client, server = scene.pair()
    for option, value in ((socket.TCP_NODELAY, 1), (socket.TCP_QUICKACK, 1),
                          (socket.TCP_KEEPIDLE, 60), (socket.TCP_USER_TIMEOUT, 5000)):  # fmt: skip
        client.setsockopt(socket.IPPROTO_TCP, option, value)
        scene.note("option", client.getsockopt(socket.IPPROTO_TCP, option))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    scene.middle()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    send(client, b"after")
    scene.note("data", receive(server, 5))
    scene.note("names", (client.getpeername() == server.getsockname(), client.family))


def test_options_of_a_live_connection(stage: Stage) -> None:
    stage.compare(options_live)


def bad_addresses(scene: Scene) -> None:
    """EFAULT stays EFAULT and loses nothing."""
    client, server = scene.pair()
    libc = ctypes.CDLL(None, use_errno=True)
    send(client, b"good")
    wait(server, select.POLLIN)
    scene.note("recv", libc.recv(server.fileno(), ctypes.c_void_p(8), 4, 0))
    scene.note("errno", errno.errorcode.get(ctypes.get_errno()))
    scene.middle()
    scene.note("still there", receive(server, 4))


def test_bad_pointers(stage: Stage) -> None:
    stage.compare(bad_addresses)


def test_ktls(stage: Stage) -> None:
    """setsockopt(TCP_ULP, "tls") on an accelerated connection."""
    with listener() as door, connect(*door.getsockname()) as client:
        try:
            client.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
        except OSError as error:
            if error.errno == errno.ENOENT:
                pytest.skip("this kernel has no TLS (CONFIG_TLS is off): kTLS cannot be tested")
            raise

    def scenario(scene: Scene) -> None:
        client, server = scene.pair(warm=False)
        scene.attempt("ulp", client.setsockopt, socket.IPPROTO_TCP, 31, b"tls")
        send(client, b"plain until keys are set")
        scene.note("data", receive(server, 24))

    stage.compare(scenario, Reason.ULP)
