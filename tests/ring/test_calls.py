# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the ways of reading and writing, their flags, options and ioctls behave as on TCP?"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import select
import socket
import struct
import tempfile
import time
from typing import Any

import pytest
from ringlab.guest.lib import (
    LIBC,
    PATIENCE,
    ended,
    errno_name,
    fork,
    receive,
    unread,
    unsent,
    wait,
    wait_for,
)
from ringlab.lab import Lab
from ringlab.scene import LEAVE, Scenario, Scene, Stage

SO_PEEK_OFF, SO_ZEROCOPY = 42, 60
TCP_INQ, MSG_ZEROCOPY, MSG_TRUNC = 36, 0x4000000, 0x20
IP_RECVERR = 11
SIOCATMARK = 0x8905


def peek(scene: Scene) -> None:
    client, server = scene.pair()
    scene.attempt("nothing", server.recv, 10, socket.MSG_PEEK)
    scene.send(client, b"abcdef")
    scene.arrived(server, 6)
    scene.attempt("peek", server.recv, 3, socket.MSG_PEEK)
    scene.attempt("peek again", server.recv, 100, socket.MSG_PEEK)
    scene.attempt("read", server.recv, 2)
    scene.middle()
    scene.attempt("peek the rest", server.recv, 100, socket.MSG_PEEK)
    scene.send(client, b"ghi")
    scene.arrived(server, 7)
    scene.note("rest", scene.receive(server, 7))
    client.shutdown(socket.SHUT_WR)
    scene.wait(server, select.POLLIN)
    scene.attempt("peek at EOF", server.recv, 1, socket.MSG_PEEK)


def peek_offset(scene: Scene) -> None:
    client, server = scene.pair()
    server.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    scene.send(client, b"abcdef")
    scene.arrived(server, 6)
    scene.attempt("first", server.recv, 2, socket.MSG_PEEK)
    scene.attempt("second", server.recv, 2, socket.MSG_PEEK)
    scene.attempt("read", server.recv, 3)
    scene.attempt("offset", server.getsockopt, socket.SOL_SOCKET, SO_PEEK_OFF)
    scene.attempt("third", server.recv, 2, socket.MSG_PEEK)
    scene.attempt("beyond", server.recv, 2, socket.MSG_PEEK)


def peek_offset_beyond(scene: Scene) -> None:
    """Everything of the ring was peeked at before more came by TCP."""
    client, server = scene.pair()
    server.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
    scene.send(client, b"abcde")
    scene.arrived(server, 5)
    scene.attempt("all", server.recv, 9, socket.MSG_PEEK)
    scene.middle()
    scene.attempt("nothing more", server.recv, 9, socket.MSG_PEEK)
    scene.send(client, b"fghij")
    scene.arrived(server, 10)
    scene.attempt("what came", server.recv, 3, socket.MSG_PEEK)
    scene.attempt("offset", server.getsockopt, socket.SOL_SOCKET, SO_PEEK_OFF)
    scene.attempt("the rest", server.recv, 9, socket.MSG_PEEK)
    scene.note("read", scene.receive(server, 10))


def peek_waitall(scene: Scene) -> None:
    """A blocking MSG_PEEK|MSG_WAITALL waits for all, and takes nothing."""
    client, server = scene.pair(blocking=True)
    scene.send(client, b"abc")
    call = server.later("recv", 6, socket.MSG_PEEK | socket.MSG_WAITALL)
    scene.note("waits", not call.done(0.1))
    scene.send(client, b"defghi")
    scene.attempt("all", call.result)
    scene.middle()
    scene.note("still there", scene.receive(server, 9))


def waitall(scene: Scene) -> None:
    client, server = scene.pair()
    scene.attempt("nothing", server.recv, 8, socket.MSG_WAITALL)
    scene.send(client, b"half")
    scene.arrived(server, 4)
    scene.attempt("half", server.recv, 8, socket.MSG_WAITALL)
    scene.middle()
    scene.send(client, b"complete")
    scene.arrived(server, 8)
    scene.attempt("all", server.recv, 8, socket.MSG_WAITALL)


def waitall_blocking(scene: Scene) -> None:
    """One call that is larger than any ring."""
    client, server = scene.pair(blocking=True)
    call = scene.two.later(read_all, server, 300_000)
    for part in range(10):
        scene.send(client, bytes([part]) * 30_000)
        if part == 5:
            scene.middle()
    scene.attempt("one call", call.result)


def read_all(sock: socket.socket, size: int) -> tuple[int, list[int]]:
    got = sock.recv(size, socket.MSG_WAITALL)
    return len(got), [got.count(part) for part in range(10)]


def dontwait(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    scene.attempt("empty", server.recv, 10, socket.MSG_DONTWAIT)
    scene.send(client, b"data")
    scene.arrived(server, 4)
    scene.attempt("data", server.recv, 10, socket.MSG_DONTWAIT)
    scene.middle()
    scene.attempt("empty again", server.recv, 10, socket.MSG_DONTWAIT)


def of_zero(sock: socket.socket) -> list[Any]:
    """recv(2) and send(2) of nothing, which Python would not ask the kernel for."""
    found: list[Any] = []
    for call, flags in ((LIBC.recv, 0), (LIBC.recv, socket.MSG_PEEK), (LIBC.send, 0)):
        got = call(sock.fileno(), b"", 0, flags)
        found.append(got if got >= 0 else errno.errorcode[ctypes.get_errno()])
    return found


def zero_length(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("without bytes", scene.two.run(of_zero, server))
    scene.send(client, b"x")
    scene.arrived(server, 1)
    scene.note("with one", scene.two.run(of_zero, server))
    scene.middle()
    scene.attempt("the byte", server.recv, 1)
    scene.note("none any more", scene.two.run(of_zero, server))
    scene.note("nothing came", scene.wait(client, select.POLLIN, 0))
    client.close()
    scene.wait(server, select.POLLIN)
    scene.note("at the end", scene.two.run(of_zero, server))


def truncated(sock: socket.socket) -> list[Any]:
    """MSG_TRUNC throws away without copying, so NULL is a good buffer."""

    def recv(size: int, flags: int) -> Any:
        got = LIBC.recv(sock.fileno(), None, size, flags)
        return got if got >= 0 else errno.errorcode[ctypes.get_errno()]

    found = [recv(4, MSG_TRUNC | socket.MSG_PEEK), recv(4, MSG_TRUNC)]
    found += [unread(sock), recv(100, MSG_TRUNC | socket.MSG_DONTWAIT)]
    return [*found, recv(1, MSG_TRUNC | socket.MSG_DONTWAIT)]


def trunc(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"0123456789")
    scene.arrived(server, 10)
    scene.note("thrown away", scene.two.run(truncated, server))
    scene.middle()
    scene.send(client, b"0123456789")
    scene.arrived(server, 10)
    scene.note("thrown away", scene.two.run(truncated, server))


def bad_buffer(sock: socket.socket) -> list[Any]:
    """A buffer that is not there: EFAULT, and the bytes stay."""
    found: list[Any] = []
    for call in (LIBC.recv, LIBC.send):
        got = call(sock.fileno(), ctypes.c_void_p(8), 10, socket.MSG_DONTWAIT)
        found.append(got if got >= 0 else errno.errorcode[ctypes.get_errno()])
    return [*found, unread(sock)]


def faults(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"0123456789")
    scene.arrived(server, 10)
    scene.note("bad buffers", scene.two.run(bad_buffer, server))
    scene.note("bytes", scene.receive(server, 10))
    scene.note("nothing came", scene.wait(client, select.POLLIN, 0.05))


def gathered(sock: socket.socket) -> int:
    pieces = [bytes([i % 256]) * (i % 97 + 1) for i in range(1000)]
    sent = 0
    while pieces:
        assert wait(sock, select.POLLOUT, 30), "no room"
        count = sock.sendmsg(pieces[:250])
        sent += count
        # A full buffer takes a part of them.
        while pieces and count >= len(pieces[0]):
            count -= len(pieces.pop(0))
        if count:
            pieces[0] = pieces[0][count:]
    return sent


def scattered(sock: socket.socket) -> bool:
    whole = b"".join(bytes([i % 256]) * (i % 97 + 1) for i in range(1000))
    buffers = [bytearray(1 + i * 13) for i in range(200)]
    got = b""
    while len(got) < len(whole):
        assert wait(sock, select.POLLIN, 30), "nothing came"
        count = sock.recvmsg_into(buffers)[0]
        got += b"".join(buffers)[:count]
    return got == whole


def scatter_and_gather(scene: Scene) -> None:
    """sendmsg and recvmsg with many pieces."""
    client, server = scene.pair()
    call = scene.two.later(scattered, server)
    scene.note("sent", scene.one.run(gathered, client))
    scene.note("same", call.result())


def message_parts(sock: socket.socket) -> list[Any]:
    """What recvmsg says besides bytes."""
    buffer, whence = sock.recvfrom(2, socket.MSG_PEEK)
    return [*sock.recvmsg(100, 200), buffer, whence]


def recvmsg(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"one")
    scene.arrived(server, 3)
    scene.send(client, b"two")
    scene.arrived(server, 6)
    scene.attempt("all parts", scene.two.run, message_parts, server)


def corked(scene: Scene) -> None:
    """MSG_MORE and TCP_CORK: everything arrives, in order, at the latest when uncorked."""
    client, server = scene.pair()
    for part in (b"a", b"b", b"c"):
        client.send(part, socket.MSG_MORE)
    client.send(b"d")
    scene.note("more", scene.receive(server, 4))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    scene.send(client, b"efg")
    scene.middle()
    scene.send(client, b"hij")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    scene.note("cork", scene.receive(server, 6))


def out_of_band(scene: Scene) -> None:
    """One urgent byte, its event, its mark, and the bytes around it."""
    client, server = scene.pair()
    client.send(b"abc")
    client.send(b"!", socket.MSG_OOB)
    client.send(b"def")
    scene.note("events", scene.wait(server, select.POLLPRI) & select.POLLPRI)
    scene.attempt("urgent", server.recv, 1, socket.MSG_OOB)
    scene.attempt("before the mark", server.recv, 10)
    scene.middle()
    scene.wait(server, select.POLLIN)
    scene.attempt("after the mark", server.recv, 10)
    client.send(b"more")
    scene.note("goes on", scene.receive(server, 4))
    scene.send(server, b"back")
    scene.note("other way", scene.receive(client, 4))


def out_of_band_inline(scene: Scene) -> None:
    client, server = scene.pair(server=[(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)])
    client.send(b"abc")
    client.send(b"!", socket.MSG_OOB)
    client.send(b"def")
    scene.note("bytes", scene.receive(server, 3))
    scene.note("rest", scene.receive(server, 4))


def no_urgent_data(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"abc")
    scene.arrived(server, 3)
    scene.attempt("none", server.recv, 1, socket.MSG_OOB)
    scene.note("bytes", scene.receive(server, 3))


def fionread(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("none", scene.two.run(unread, server))
    scene.send(client, b"x" * 10)
    scene.arrived(server, 10)
    scene.note("ten", scene.two.run(unread, server))
    server.recv(4)
    scene.note("six", scene.two.run(unread, server))
    scene.middle()
    scene.send(client, b"y" * 1000)
    scene.arrived(server, 1006)
    scene.note("read", len(scene.receive(server, 1006)))
    scene.note("none again", scene.two.run(unread, server))
    client.shutdown(socket.SHUT_WR)
    scene.wait(server, select.POLLRDHUP)
    scene.note("at the end", scene.two.run(unread, server))


def until_sent(sock: socket.socket) -> int:
    wait_for("an empty output queue", lambda: unsent(sock) == 0)
    return unsent(sock)


def outq(scene: Scene) -> None:
    """SIOCOUTQ falls to zero when the peer read everything; on TCP, when its kernel has it."""
    client, server = scene.pair()
    scene.note("nothing sent", scene.one.run(unsent, client))
    scene.send(client, b"x" * 1000)
    scene.middle()
    scene.note("read", len(scene.receive(server, 1000)))
    scene.note("left", scene.one.run(until_sent, client))


def inq(sock: socket.socket, size: int) -> list[Any]:
    """TCP_INQ: what is left, in a control message."""
    data, control, _, _ = sock.recvmsg(size, 64)
    return [len(data), [(c[1], struct.unpack("i", c[2])[0]) for c in control]]


def tcp_inq(scene: Scene) -> None:
    client, server = scene.pair()
    server.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
    scene.send(client, b"x" * 100)
    scene.arrived(server, 100)
    scene.note("with 90 left", scene.two.run(inq, server, 10))
    scene.middle()
    scene.note("with 60 left", scene.two.run(inq, server, 30))
    scene.note("with 0 left", scene.two.run(inq, server, 60))


def zerocopy_ranges(sock: socket.socket) -> list[Any]:
    """Two sends, both notified."""
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    sizes = [sock.send(b"z" * 3000, MSG_ZEROCOPY), sock.send(b"z" * 5000, MSG_ZEROCOPY)]
    done: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while done != {0, 1} and time.monotonic() < deadline:
        try:
            _, control, _, _ = sock.recvmsg(0, 256, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            wait(sock, 0, 0.2)
            continue
        for _, kind, data in control:
            if kind == IP_RECVERR:
                number, origin, _, _, low, high = struct.unpack("IBBBxII", data[:16])
                assert (number, origin) == (0, 5)
                done |= set(range(low, high + 1))
    return [sizes, sorted(done)]


def zerocopy(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(receive, server, 8000)
    scene.note("sent and notified", scene.one.run(zerocopy_ranges, client))
    scene.note("arrived", len(call.result()))


def rcvlowat(scene: Scene) -> None:
    client, server = scene.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    scene.send(client, b"12345")
    scene.arrived(server, 5)
    scene.note("too few", scene.wait(server, select.POLLIN, 0.05))
    scene.attempt("can be read", server.recv, 3)
    scene.middle()
    scene.send(client, b"6789012345")
    scene.note("enough", scene.wait(server, select.POLLIN))
    scene.note("all", scene.receive(server, 12))
    scene.send(client, b"end")
    client.shutdown(socket.SHUT_WR)
    scene.note("EOF counts", scene.wait(server, select.POLLIN | select.POLLRDHUP))


def rcvlowat_of_both(scene: Scene) -> None:
    """What is left of the ring and what came by TCP are enough together."""
    client, server = scene.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    scene.send(client, b"12345")
    scene.arrived(server, 5)
    scene.middle()
    scene.note("too few", scene.wait(server, select.POLLIN, 0.1))
    scene.send(client, b"67890")
    scene.note("enough", scene.wait(server, select.POLLIN))
    scene.note("all", scene.receive(server, 10))


def epoll_wait(sock: socket.socket, seconds: float) -> list[int]:
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN)
        return [events for _, events in poller.poll(seconds)]


def rcvlowat_lowered(scene: Scene) -> None:
    """Who waits for more is woken when what is there becomes enough."""
    client, server = scene.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    scene.send(client, b"12345")
    scene.arrived(server, 5)
    call = scene.two.later(epoll_wait, server, 3.0)
    scene.note("too few", not call.done(0.2))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5)
    scene.note("enough", call.result())


def rcvlowat_blocking(scene: Scene) -> None:
    client, server = scene.pair(blocking=True)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    call = server.later("recv", 100)
    scene.note("waits", not call.done(0.2))
    scene.send(client, b"12345")
    scene.note("waits on", not call.done(0.1))
    scene.send(client, b"67890")
    scene.attempt("ten", call.result)


def timeouts(sock: socket.socket) -> list[Any]:
    """SO_RCVTIMEO and SO_SNDTIMEO, and about how long they take."""
    value = struct.pack("ll", 0, 200_000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    found: list[Any] = []
    for call in (lambda: sock.recv(1), lambda: sock.sendall(b"x" * 20_000_000)):
        begin = time.monotonic()
        try:
            call()
        except OSError as error:
            found.append(errno_name(error))
        found.append(time.monotonic() - begin > 0.15)
    return found


def socket_timeouts(scene: Scene) -> None:
    client, _server = scene.pair(blocking=True)
    scene.note("timed out", scene.one.run(timeouts, client))


def through_pipe(sock: socket.socket, size: int) -> str:
    """splice(2) from the socket to a pipe to a file."""
    sock.setblocking(True)
    digest, left = hashlib.sha256(), size
    source, sink = os.pipe()
    with tempfile.TemporaryFile(dir="/tmp") as file:
        while left:
            count = os.splice(sock.fileno(), sink, left)
            assert count, "EOF"
            left -= count
            while count:
                count -= os.splice(source, file.fileno(), count)
        file.seek(0)
        digest.update(file.read())
    return digest.hexdigest()


def from_file(sock: socket.socket, size: int) -> str:
    """Half by sendfile(2), half by splice(2) through a pipe."""
    data = random.Random(5).randbytes(size)
    sock.setblocking(True)
    with tempfile.TemporaryFile(dir="/tmp") as file:
        file.write(data)
        file.flush()
        at = 0
        while at < size // 2:
            at += os.sendfile(sock.fileno(), file.fileno(), at, size // 2 - at)
        source, sink = os.pipe()
        while at < size:
            count = os.splice(file.fileno(), sink, size - at, offset_src=at)
            at += count
            while count:
                count -= os.splice(source, sock.fileno(), count)
    return hashlib.sha256(data).hexdigest()


def splice(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(through_pipe, server, 300_000)
    sent = scene.one.run(from_file, client, 300_000)
    scene.note("same", call.result() == sent)


def splice_ends(sock: socket.socket) -> list[Any]:
    found: list[Any] = []
    source, sink = os.pipe()
    for _ in range(3):
        try:
            found.append(os.splice(sock.fileno(), sink, 100, flags=os.SPLICE_F_NONBLOCK))
        except OSError as error:
            found.append(errno_name(error))
        if found[-1] == 3:
            found.append(os.read(source, 10))
    return found


def splice_without_data(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("empty", scene.two.run(splice_ends, server))
    scene.middle()
    scene.send(client, b"abc")
    scene.arrived(server, 3)
    client.close()
    scene.wait(server, select.POLLRDHUP)
    scene.note("data and EOF", scene.two.run(splice_ends, server))


def splice_blocking(scene: Scene) -> None:
    """recv(2), then splice(2) that waits."""
    client, server = scene.pair(blocking=True)
    scene.send(client, b"by recv")
    scene.note("by recv", scene.receive(server, 7))
    call = scene.two.later(through_pipe, server, 9)
    scene.note("waits", not call.done(0.1))
    scene.middle()
    scene.send(client, b"by splice")
    scene.note("digest", call.result() == hashlib.sha256(b"by splice").hexdigest())


def many_messages(sock: socket.socket) -> list[Any]:
    """preadv2/pwritev2-like calls: os.readv, os.writev, makefile."""
    sock.setblocking(True)
    stream = sock.makefile("rwb")
    lines = [stream.readline() for _ in range(3)]
    stream.write(b"answer\n")
    stream.flush()
    buffers = [bytearray(3), bytearray(5)]
    count = os.readv(sock.fileno(), buffers)
    return [lines, count, buffers, os.writev(sock.fileno(), [b"a", b"bc"])]


def files_and_vectors(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(many_messages, server)
    for line in (b"one\n", b"two\n", b"three\n"):
        scene.send(client, line)
    scene.note("answer", scene.receive(client, 7))
    scene.middle()
    scene.send(client, b"12345678")
    scene.note("at the server", call.result())
    scene.note("vector", scene.receive(client, 3))


def options(sock: socket.socket) -> list[Any]:
    """What getsockopt says of an established connection."""
    sol, tcp = socket.SOL_SOCKET, socket.IPPROTO_TCP
    names = [
        (sol, socket.SO_ERROR),
        (sol, socket.SO_TYPE),
        (sol, socket.SO_ACCEPTCONN),
        (sol, socket.SO_DOMAIN),
        (sol, socket.SO_PROTOCOL),
        (tcp, socket.TCP_NODELAY),
        (tcp, socket.TCP_KEEPIDLE),
        (tcp, socket.TCP_MAXSEG),
    ]
    state = sock.getsockopt(tcp, socket.TCP_INFO, 8)[0]
    return [sock.getsockopt(*name) for name in names] + [state, sock.family, sock.proto]


def getsockopt(scene: Scene) -> None:
    client, server = scene.pair()
    scene.note("client", scene.one.run(options, client))
    scene.note("server", scene.two.run(options, server))
    scene.note("address", server.getpeername()[0])
    scene.note("port", server.getpeername()[1] == client.getsockname()[1])


def keepalive(scene: Scene) -> None:
    client, server = scene.pair()
    for sock in (client, server):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    scene.note("nothing happens", scene.wait(client, select.POLLIN, 2.5))
    scene.send(client, b"alive")
    scene.note("alive", scene.receive(server, 5))


def two_readers(sock: socket.socket, total: int) -> int:
    """Two processes read one stream: each byte goes to one of them."""
    source, sink = os.pipe()

    def child() -> None:
        count = 0
        while True:
            part = sock.recv(1000)
            if not part:
                break
            count += len(part)
        os.write(sink, struct.pack("i", count))

    sock.setblocking(True)
    pids = [fork(child), fork(child)]
    counts = [struct.unpack("i", os.read(source, 4))[0] for _ in pids]
    for pid in pids:
        ended(pid)
    return sum(counts)


def shared_by_readers(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.two.later(two_readers, server, 0)
    scene.send(client, b"x" * 100_000)
    scene.middle()
    scene.send(client, b"y" * 50_000)
    client.close()
    scene.note("bytes", call.result())


def two_writers(sock: socket.socket) -> None:
    def write(byte: bytes) -> None:
        for _ in range(60):
            sock.sendall(byte * 1000)

    sock.setblocking(True)
    for pid in [fork(write, b"a"), fork(write, b"b")]:
        ended(pid)


def shared_by_writers(scene: Scene) -> None:
    client, server = scene.pair()
    call = scene.one.later(two_writers, client)
    data = scene.receive(server, 120_000)
    scene.note("bytes", (data.count(b"a"), data.count(b"b")))
    call.result()


TABLE: list[Any] = [
    peek,
    peek_offset,
    peek_offset_beyond,
    peek_waitall,
    waitall,
    waitall_blocking,
    dontwait,
    zero_length,
    trunc,
    faults,
    scatter_and_gather,
    recvmsg,
    corked,
    out_of_band,
    out_of_band_inline,
    no_urgent_data,
    fionread,
    outq,
    tcp_inq,
    zerocopy,
    rcvlowat,
    rcvlowat_of_both,
    rcvlowat_lowered,
    rcvlowat_blocking,
    socket_timeouts,
    splice,
    splice_without_data,
    splice_blocking,
    files_and_vectors,
    getsockopt,
    keepalive,
    shared_by_readers,
    shared_by_writers,
]


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.__name__)
def test_call(stage: Stage, scenario: Scenario) -> None:
    stage.compare(scenario)


# What the ring does otherwise, on purpose.


def outq_unread(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"x" * 1000)
    scene.arrived(server, 1000)
    scene.note("not read yet", scene.one.run(unsent, client))


def test_outq_counts_what_the_peer_did_not_read(stage: Stage) -> None:
    stage.differs(outq_unread, [("not read yet", 0)], [("not read yet", 1000)])


def outq_left(scene: Scene) -> None:
    client, server = scene.pair()
    scene.send(client, b"x" * 1000)
    scene.send(server, b"y" * 1000)
    scene.arrived(client, 1000)
    scene.middle()
    scene.note("left", scene.one.run(until_sent, client))
    scene.note("unread", (scene.one.run(unread, client), len(scene.receive(server, 1000))))


def test_outq_falls_when_both_ends_left(lab: Lab) -> None:
    """What was in the ring is in the peer's memory then, even if nobody reads anything."""
    notes = Stage(lab).play(outq_left, LEAVE).notes
    assert notes == [("left", 0), ("unread", (1000, 1000))]
