# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Process 1 of a guest: does what the tests say on the port `control`, and forks a worker
for each scenario, which listens on the port `work`."""

from __future__ import annotations

import contextlib
import glob
import itertools
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from guest import channel, lib, programs, scribble, wire

FOREVER = 1e9


def open_port(name: str) -> int:
    """The virtio port of that name."""
    while True:
        for entry in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(entry) as file:
                if file.read().strip() == name:
                    return os.open(f"/dev/{entry.split('/')[-2]}", os.O_RDWR | os.O_NONBLOCK)
        time.sleep(0.01)


class Executor:
    """Runs what comes through a port: ("define", source) or ("call", ...)."""

    def __init__(self, port: int, serial: int, names: dict[str, Any]) -> None:
        self.port, self.serial, self.names = port, serial, names
        self.kept: dict[int, Any] = {}
        self.count = itertools.count(1)
        self.writing = threading.Lock()

    def keep(self, value: Any) -> int | None:
        """The number of an object that cannot be copied."""
        if isinstance(value, (*wire.COPIED, type, BaseException)):
            return None
        if type(value).__module__ == "builtins" and not callable(value):
            return None
        for number, held in self.kept.items():
            if held is value:
                return number
        number = next(self.count)
        self.kept[number] = value
        return number

    def answer(self, ticket: int, kind: str, value: Any) -> None:
        try:
            data = wire.pack((self.serial, ticket, kind, value), self.keep)
        except Exception:
            data = wire.pack((self.serial, ticket, "failed", traceback.format_exc()), self.keep)
        with self.writing:
            wire.write_message(self.port, data)

    def perform(self, ticket: int, target: Any, args: tuple[Any, ...], named: Any) -> None:
        try:
            if isinstance(target, tuple):
                function = getattr(target[0], target[1])
            else:
                function = self.names[target]
            value = function(*args, **named)
        except OSError as error:
            self.answer(ticket, "raised", error)
        except BaseException as error:
            name, text = type(error).__name__, traceback.format_exc()
            self.answer(ticket, "failed", f"{name} in the guest:\n{text}")
        else:
            self.answer(ticket, "value", value)

    def define(self, name: str, source: str) -> None:
        file = f"<{name}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile("from __future__ import annotations\n" + source, file, "exec"), self.names)

    def step(self) -> None:
        """One message."""
        data = wire.read_message(self.port, FOREVER)
        serial, kind, rest = wire.unpack(data, self.kept.__getitem__)
        if serial != self.serial:
            return
        if kind == "define":
            self.define(*rest)
            return
        ticket, target, args, named, threaded = rest
        if threaded:
            todo = (ticket, target, args, named)
            threading.Thread(target=self.perform, args=todo, daemon=True).start()
        else:
            self.perform(ticket, target, args, named)

    def serve(self) -> None:
        """Until the tests hang up."""
        while True:
            try:
                self.step()
            except wire.Ended:
                time.sleep(0.05)
            except Exception:
                traceback.print_exc()


def names() -> dict[str, Any]:
    """What shipped functions see as globals."""
    found: dict[str, Any] = {"__name__": "guest.shipped"}
    for module in (lib, channel, programs, scribble):
        found.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    return found


class Process1:
    """Forks the workers, reaps whatever ends."""

    def __init__(self, control: int, work: int) -> None:
        self.control, self.work = control, work
        self.worker = 0

    def spawn(self, serial: int) -> int:
        """End the last worker with all it started, and fork another."""
        self.end()
        self.worker = os.fork()
        if self.worker:
            return self.worker
        os.setsid()
        # Links among them, which would stay attached.
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != self.work:
                with contextlib.suppress(OSError):
                    os.close(fd)
        wire.write_message(self.work, wire.hello(serial))
        with contextlib.suppress(BaseException):
            Executor(self.work, serial, names()).serve()
        os._exit(1)

    def end(self) -> None:
        """Kill every process but this one."""
        if not self.worker:
            return
        self.worker = 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):
                pass
        with contextlib.suppress(BlockingIOError):
            while os.read(self.work, 1 << 16):
                pass

    def restart(self, files: dict[str, bytes]) -> None:
        """Begin again with other files."""
        self.end()
        for name, data in files.items():
            with open(name, "wb") as file:
                file.write(data)
        os.execv(sys.executable, [sys.executable, "-m", "guest"])


def main() -> None:
    control = open_port("control")
    one = Process1(control, open_port("work"))
    served = names() | {"spawn": one.spawn, "end": one.end, "restart": one.restart}
    print("guest: serving", flush=True)
    wire.write_message(control, wire.hello(0))
    Executor(control, 0, served).serve()


if __name__ == "__main__":
    main()
