# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time: an flock that waits, and names the holder when it gives up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from .._model.errors import TcpSmError

LOCK_PATH = "/run/lock/colocated.tcp_sm.lock"
POLL_SECONDS = 0.05


@contextlib.contextmanager
def locked(timeout: float, path: str = LOCK_PATH) -> Iterator[None]:
    """Hold the lock, waiting up to `timeout` seconds for another run.

    The kernel lets go of it when a process dies. The file is removed at the end: that is safe
    because a waiter takes a lock for good only if the path still names the file that it locked.
    """
    deadline = time.monotonic() + timeout
    while (fd := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise TcpSmError(
                f"Another run holds {path} ({_holder(path)}), also after {timeout:g} seconds. "
                "Nothing was changed. Wait until it ends, or raise lock_timeout (of module "
                "ivshmem_guest, timeout)."
            )
        time.sleep(POLL_SECONDS)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


def _try_lock(path: str) -> int | None:
    """A locked descriptor of the file at `path`, or None. Raises TcpSmError."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise TcpSmError(
            f"Cannot open the lock {path}: {error.strerror}. Nothing was changed. Run as root; if "
            "it fails there too, somebody else put the file there, so delete it."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


def _holder(path: str) -> str:
    """Who holds it, for people."""
    try:
        pid = _holder_pid(path)
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            command = " ".join(file.read().split("\0")).strip()
    except (OSError, ValueError):
        return "holder unknown"
    return f"pid {pid}: {command[:120]}"


def _holder_pid(path: str) -> int:
    """From the kernel's list, which leaves out processes of other pid namespaces; those wrote
    their number into the file."""
    inode = os.stat(path).st_ino
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF; "->" marks waiters.
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
                return int(fields[4])
    with open(path, encoding="ascii") as file:
        return int(file.read())
