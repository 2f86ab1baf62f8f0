# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What scenarios do with sockets, in a guest."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import select
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

# Not all are used here: functions that the tests ship see these names as globals.
__all__ = ["array", "ctypes", "fcntl", "mmap", "signal", "termios", "threading"]

PATIENCE = 15.0
SO_COOKIE = 57
LIBC = ctypes.CDLL(None, use_errno=True)


def cookie(sock: socket.socket) -> int:
    """The kernel's cookie of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def wait(sock: Any, events: int, seconds: float = PATIENCE) -> int:
    """Wait for poll events and return those that came (0: none in time)."""
    poller = select.poll()
    poller.register(sock, events)
    ready = poller.poll(int(seconds * 1000))
    return ready[0][1] if ready else 0


def receive(sock: socket.socket, size: int, seconds: float = PATIENCE) -> bytes:
    """Read up to `size` bytes, waiting by poll; short only at EOF."""
    parts: list[bytes] = []
    left = size
    deadline = time.monotonic() + seconds
    while left:
        try:
            part = sock.recv(left, socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not wait(sock, select.POLLIN, deadline - time.monotonic()):
                got = size - left
                raise TimeoutError(f"{got} of {size} bytes after {seconds} s") from None
            continue
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def send(sock: socket.socket, data: bytes, seconds: float = PATIENCE) -> None:
    """Write everything, waiting by poll where the socket is full."""
    view = memoryview(data)
    deadline = time.monotonic() + seconds
    while view:
        try:
            view = view[sock.send(view, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            if not wait(sock, select.POLLOUT, deadline - time.monotonic()):
                raise TimeoutError(f"{len(view)} bytes not taken in {seconds} s") from None


def fill(sock: socket.socket, chunk: int = 65536) -> int:
    """Write until the socket is full, and stays so for a moment; how many bytes it took."""
    total, idle, block = 0, 0, bytes(chunk)
    while True:
        try:
            total += sock.send(block, socket.MSG_DONTWAIT)
            idle = 0
        except BlockingIOError:
            idle += 1
            wait(sock, select.POLLOUT, 0.15)
            if idle > 2:
                return total


def listener(address: str, port: int, options: Any = (), backlog: int = 128) -> socket.socket:
    """A listener; options: (level, name, value), set before listen."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for option in options:
        sock.setsockopt(*option)
    sock.bind((address, port))
    sock.listen(backlog)
    return sock


def accept(door: socket.socket, blocking: bool = True, seconds: float = PATIENCE) -> socket.socket:
    """Accept one connection."""
    if not wait(door, select.POLLIN, seconds):
        raise TimeoutError("nobody connected")
    made = door.accept()[0]
    made.setblocking(blocking)
    return made


def connect(
    address: str, port: int, blocking: bool = True, options: Any = (), seconds: float = PATIENCE
) -> socket.socket:
    """A connected socket; options: (level, name, value), set before connect."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    for option in options:
        sock.setsockopt(*option)
    sock.settimeout(seconds)
    try:
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    sock.setblocking(blocking)
    return sock


def wait_for(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Poll `condition` until it is true and return that; TimeoutError names what was not."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.002)


def unread(sock: socket.socket) -> int:
    """What FIONREAD says."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]


def arrived(sock: socket.socket, size: int, seconds: float = PATIENCE) -> None:
    """Wait until so many bytes can be read."""
    wait_for(f"{size} bytes", lambda: unread(sock) >= size, seconds)


def unsent(sock: socket.socket) -> int:
    """What SIOCOUTQ says."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4))[0]


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC)."""
    address = struct.pack("H14x", socket.AF_UNSPEC)
    if LIBC.connect(sock.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


def timed(function: Callable[..., Any], *args: Any) -> float:
    """Call, and return the seconds it took."""
    begin = time.monotonic()
    function(*args)
    return time.monotonic() - begin


def fork(function: Callable[..., Any], *args: Any) -> int:
    """Run a function in a child that ends at once afterwards; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            function(*args)
            code = 0
        os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pump_out(sock: socket.socket, seed: int, total: int, largest: int) -> str:
    """Send `total` bytes made from `seed` in pieces of random size; their SHA-256."""
    chance, digest = random.Random(seed), hashlib.sha256()
    block = chance.randbytes(largest * 2)
    while total:
        size = min(total, chance.choice((1, chance.randint(1, 64), chance.randint(1, largest))))
        start = chance.randint(0, largest)
        piece = block[start : start + size]
        digest.update(piece)
        sock.sendall(piece)
        total -= size
    return digest.hexdigest()


def pump_in(sock: socket.socket, seed: int, total: int, largest: int) -> str:
    """Receive `total` bytes in pieces of random size; their SHA-256."""
    chance, digest = random.Random(seed), hashlib.sha256()
    while total:
        size = min(total, chance.randint(1, chance.choice((16, largest))))
        piece = sock.recv(size)
        if not piece:
            raise EOFError(f"{total} bytes too few")
        digest.update(piece)
        total -= len(piece)
    return digest.hexdigest()


def both_ways(sock: socket.socket, seed: int, total: int, largest: int) -> tuple[str, str]:
    """Send and receive at once; SHA-256 of what was (sent, received)."""
    got: list[str] = []

    def read() -> None:
        got.append(pump_in(sock, seed + 1, total, largest))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    sent = pump_out(sock, seed, total, largest)
    reader.join(60)
    return sent, got[0]


class Edges:
    """An epoll of edges: what each wait brings."""

    def __init__(self, sock: socket.socket, events: int) -> None:
        self.sock, self.poll = sock, select.epoll()
        self.poll.register(sock, events)

    def next(self, seconds: float) -> list[int]:
        return [events for _, events in self.poll.poll(seconds)]


class Stream:
    """Sends pieces of random size without end, and receives, until `finish` at either end.

    Both in threads, so that it goes on while the tests do something to the machine.
    """

    def __init__(self, sock: socket.socket, seed: int, largest: int = 20_000) -> None:
        self.sock, self.largest = sock, largest
        self.chance, self.ending = random.Random(seed), False
        self.sent, self.got = hashlib.sha256(), hashlib.sha256()
        self.received = 0
        self.errors: list[str] = []
        self.threads = [
            threading.Thread(target=self._watched, args=(half,), daemon=True)
            for half in (self._send, self._receive)
        ]
        for thread in self.threads:
            thread.start()

    def _watched(self, half: Callable[[], None]) -> None:
        try:
            half()
        except OSError as error:
            self.errors.append(errno_name(error))

    def _send(self) -> None:
        block = self.chance.randbytes(self.largest * 2)
        while not self.ending:
            start = self.chance.randint(0, self.largest)
            size = self.chance.choice((1, 64, self.chance.randint(1, self.largest)))
            self.sock.sendall(block[start : start + size])
            self.sent.update(block[start : start + size])
        self.sock.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        while part := self.sock.recv(self.chance.randint(1, self.largest)):
            self.got.update(part)
            self.received += len(part)

    def progress(self, size: int, seconds: float = PATIENCE) -> None:
        """Wait until so many bytes more were received."""
        goal = self.received + size
        wait_for(f"{size} bytes more", lambda: self.received >= goal or self.errors, seconds)

    def finish(self) -> None:
        self.ending = True

    def result(self, seconds: float = 20.0) -> tuple[str, str, list[str]]:
        """SHA-256 of what was sent and received, and errors, when both directions ended."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                raise TimeoutError(f"the stream hangs after {self.received} bytes")
        return self.sent.hexdigest(), self.got.hexdigest(), self.errors


def errno_name(error: OSError) -> str:
    """ECONNRESET, or the text of an error without a number."""
    return errno.errorcode.get(error.errno or 0, str(error))
