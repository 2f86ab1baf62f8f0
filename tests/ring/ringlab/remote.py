# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests' end of a guest's port: functions and objects of the guest, called from here.

worker.run(lib.connect, "10.9.0.2", 5000)   a function of the guest's package, or one that
                                            a test defines, whose source is shipped
sock = ...                                  a `Remote`: sock.send(b"x") happens in the guest
call = worker.later(lib.receive, sock, 5)   in a thread of the guest; call.result()
"""

from __future__ import annotations

import enum
import inspect
import itertools
import socket
import textwrap
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .guest import wire

PATIENCE = 30.0
QEMU_SECONDS = 20.0


class GuestFailed(AssertionError):
    """Something raised in the guest; the message has its traceback."""


class Remote:
    """An object that stays in the guest."""

    def __init__(self, port: Port, number: int) -> None:
        self._port, self._number = port, number

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **named: self._port.call((self, name), args, named)

    def later(self, name: str, *args: Any) -> Pending:
        """Call a method in a thread of the guest."""
        return self._port.begin((self, name), args, {}, threaded=True)

    def __repr__(self) -> str:
        return f"<object {self._number} of {self._port.name}>"


class Pending:
    """A call whose answer is awaited."""

    def __init__(self, port: Port, ticket: int) -> None:
        self._port, self._ticket = port, ticket

    def done(self, seconds: float = 0.0) -> bool:
        """Is the answer here, or comes in `seconds`?"""
        return self._port.collect(self._ticket, time.monotonic() + seconds)

    def result(self, seconds: float = PATIENCE) -> Any:
        """The value, or the error raised again."""
        if not self.done(seconds):
            raise TimeoutError(f"{self._port.name}: no answer in {seconds} s")
        return self._port.answer(self._ticket)


def _names(code: types.CodeType) -> set[str]:
    """The globals that a function uses, and those inside it."""
    inner = (_names(value) for value in code.co_consts if isinstance(value, types.CodeType))
    return set(code.co_names).union(*inner)


class Port:
    """One end of a virtio port, over QEMU's socket."""

    def __init__(self, name: str, path: Path, serial: int = 0) -> None:
        self.name, self.serial = name, serial
        self.sock = connect(path, QEMU_SECONDS)
        self.sock.setblocking(False)
        self.tickets = itertools.count(1)
        self.answers: dict[int, tuple[str, Any]] = {}
        self.defined: set[str] = set()

    def close(self) -> None:
        self.sock.close()

    def _name(self, value: Any) -> int | None:
        if isinstance(value, Remote):
            assert value._port is self, f"{value!r} is in another guest than {self.name}"
            return value._number
        return None

    def _find(self, number: int) -> Remote:
        return Remote(self, number)

    def _write(self, *message: Any) -> None:
        wire.write_message(self.sock.fileno(), wire.pack((self.serial, *message), self._name))

    def _known(self, function: Callable[..., Any]) -> str:
        """The name of a function in the guest; a test's own is shipped with what it needs."""
        name = function.__name__
        if ".ringlab.guest" in f".{function.__module__}" or name in self.defined:
            return name
        self.defined.add(name)
        for needed in _names(function.__code__):
            value = function.__globals__.get(needed)
            if inspect.isfunction(value):
                self._known(value)
            elif inspect.isclass(value) and value.__module__ == function.__module__:
                self._write("define", (needed, textwrap.dedent(inspect.getsource(value))))
            elif inspect.ismodule(value) and not needed.startswith("@"):
                self._write("define", (needed, f"import {value.__name__}"))
            elif isinstance(value, (int, float, str, bytes, tuple)):
                self._write("define", (needed, f"{needed} = {value!r}"))
        self._write("define", (name, textwrap.dedent(inspect.getsource(function))))
        return name

    def begin(self, target: Any, args: Any, named: Any, threaded: bool = False) -> Pending:
        if callable(target) and not isinstance(target, (str, tuple)):
            target = self._known(target)
        for value in args:
            if inspect.isfunction(value):
                raise TypeError(f"{value} cannot be an argument; define it inside")
        ticket = next(self.tickets)
        # Flags of the socket module are of types that other versions of Python lack.
        plain = tuple(
            int(value) if isinstance(value, enum.IntEnum | enum.IntFlag) else value
            for value in args
        )
        self._write("call", (ticket, target, plain, named, threaded))
        return Pending(self, ticket)

    def call(self, target: Any, args: Any, named: Any, seconds: float = PATIENCE) -> Any:
        return self.begin(target, args, named).result(seconds)

    def collect(self, ticket: int, deadline: float) -> bool:
        """Read messages until the answer to `ticket` is there."""
        while ticket not in self.answers:
            try:
                data = wire.read_message(self.sock.fileno(), max(deadline, time.monotonic() + 1e-3))
            except TimeoutError:
                return False
            except wire.Ended:
                raise GuestFailed(f"{self.name} is gone") from None
            serial, number, kind, value = wire.unpack(data, self._find)
            if serial == self.serial:
                self.answers[number] = (kind, value)
        return True

    def answer(self, ticket: int) -> Any:
        kind, value = self.answers.pop(ticket)
        if kind == "failed":
            raise GuestFailed(f"{self.name}: {value}")
        if kind == "raised":
            raise value
        return value

    def greet(self, serial: int, seconds: float = PATIENCE) -> None:
        """Another process is at the other end: skip what its predecessor left."""
        expected = wire.hello(serial)
        seen = b""
        deadline = time.monotonic() + seconds
        while not seen.endswith(expected):
            seen = seen[-len(expected) :] + wire.read_exactly(self.sock.fileno(), 1, deadline)
        self.serial = serial
        self.answers.clear()
        self.defined.clear()


class Worker:
    """A process in a guest that runs one scenario's half."""

    def __init__(self, port: Port, guest: Any = None) -> None:
        self.port, self.guest = port, guest

    def run(self, function: Callable[..., Any] | str, *args: Any, **named: Any) -> Any:
        """Call a function in the guest."""
        return self.port.call(function, args, named)

    def long(self, seconds: float, function: Callable[..., Any], *args: Any) -> Any:
        """Call one that takes longer."""
        return self.port.call(function, args, {}, seconds)

    def later(self, function: Callable[..., Any], *args: Any, **named: Any) -> Pending:
        """Call it in a thread of the guest."""
        return self.port.begin(function, args, named, threaded=True)


def connect(path: Path, seconds: float) -> socket.socket:
    """Connect to a socket of QEMU's, which appears some time before anybody listens there."""
    deadline = time.monotonic() + seconds
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: {error}") from None
            time.sleep(0.01)
