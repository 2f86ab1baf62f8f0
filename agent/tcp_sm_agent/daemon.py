# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Being a service: systemd's notifications; and for hosts without it, a daemon with a pidfile."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from ._io.process import read_process
from ._io.region_state import is_agent
from ._model.errors import TcpSmError

STOP_SECONDS = 10.0


def notify(message: str) -> None:
    """Tell systemd, if it wants to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        # A leading @ stands for an abstract address.
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(message.encode())


def daemonize(log_path: str) -> Callable[[], None]:
    """Go on in the background; returns what to call once everything is ready.

    The process that was started waits for that and exits with 0, or with 1 when the daemon ended
    first; its last words are in the log. Raises TcpSmError when there can be no log.
    """
    out = _open_log(log_path or os.devnull)
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        ready = os.read(read, 1)
        os._exit(0 if ready else 1)
    os.close(read)
    os.setsid()
    # No terminal can become ours any more.
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    sys.stdout.flush()
    sys.stderr.flush()
    for fd, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, target)

    def ready_now() -> None:
        os.write(write, b"1")
        os.close(write)

    return ready_now


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise TcpSmError(
            f"Cannot start: the log {path} cannot be written: {error.strerror}. Make its folder, "
            "or name another file (role hypervisor: hypervisor_log)."
        ) from error


def write_pidfile(path: str) -> None:
    """Raises TcpSmError when another agent runs, or the file cannot be written."""
    pid = running(path)
    if pid:
        raise TcpSmError(f"Cannot start: another agent runs (pid {pid} in {path}). Stop it first.")
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        os.replace(temporary, path)
    except OSError as error:
        raise TcpSmError(
            f"Cannot start: the pidfile {path} cannot be written: {error.strerror}. Run as root, "
            "and name a file in a folder that can be made (role hypervisor: hypervisor_run_dir)."
        ) from error


def remove_pidfile(path: str) -> None:
    """If it is ours."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        if int(file.read()) == os.getpid():
            os.unlink(path)


def running(path: str) -> int:
    """The process number of the agent of that pidfile; 0 when it does not run."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
    except (OSError, ValueError):
        return 0
    process = read_process(pid)
    return pid if process and pid != os.getpid() and is_agent(process) else 0


def send(path: str, number: signal.Signals) -> bool:
    """Send a signal to the agent of that pidfile; False when none runs.

    After SIGTERM, returns when it has ended. Raises TcpSmError when that takes too long.
    """
    pid = running(path)
    try:
        pidfd = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        pidfd = -1
    if pidfd < 0:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
        if number == signal.SIGTERM:
            _wait(pidfd, pid)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def _wait(pidfd: int, pid: int) -> None:
    begin = time.monotonic()
    if not select.select([pidfd], [], [], STOP_SECONDS)[0]:
        waited = time.monotonic() - begin
        raise TcpSmError(
            f"Cannot stop the agent: pid {pid} has not ended {waited:.0f} seconds after SIGTERM. "
            "Look at its log."
        )
