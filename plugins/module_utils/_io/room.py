# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory for a region's file: whether there is room for it, having it, and what to say if not."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from .._model.errors import MissingError, TcpSmError
from .._model.region import HEAD_SIZE, SLOTS_OFFSET, Region, size_text


def _written(region: Region) -> Iterator[tuple[int, int]]:
    """Offset and length of what modules and agent read and write, which is all but the slots."""
    yield 0, HEAD_SIZE
    for chunk in region.used:
        yield chunk.offset, SLOTS_OFFSET


def needs(region: Region, size: int, allocate: bool) -> int:
    """Bytes that a file of `size` bytes must have allocated to become `region`."""
    if allocate and region.size > size:
        return region.size
    return sum(length for _offset, length in _written(region))


def make_room(fd: int, region: Region, allocate: bool) -> None:
    """Let the file grow to the region's size; it never shrinks. Raises OSError.

    Without `allocate`, only what is written here gets its memory. That has to be: a page without
    memory that is touched through a mapping where none is left ends the process (SIGBUS).
    """
    size = os.fstat(fd).st_size
    if allocate and region.size > size:
        os.posix_fallocate(fd, 0, region.size)
    elif region.size > size:
        os.ftruncate(fd, region.size)
    for offset, length in _written(region):
        os.posix_fallocate(fd, offset, length)


def check_room(path: str, region: Region, allocate: bool) -> None:
    """Try nothing, and raise the OSError that make_room would, as far as that can be told."""
    there = os.stat(path) if os.path.exists(path) else None
    system = os.statvfs(path if there else os.path.dirname(path))
    if system.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    size, allocated = (there.st_size, there.st_blocks * 512) if there else (0, 0)
    # One without a limit of its own, as hugetlbfs may be, has 0 blocks.
    free = system.f_bfree * system.f_frsize
    if system.f_blocks and needs(region, size, allocate) - allocated > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def explained(attempt: str, size: int, path: str) -> Iterator[None]:
    """Turn the system's refusal into a message."""
    try:
        yield
    except FileNotFoundError:
        raise MissingError(
            f"{attempt}: the folder {os.path.dirname(path)} does not exist. Create it, or mount "
            "the file system (for huge pages: mount -t hugetlbfs none FOLDER)."
        ) from None
    except OSError as error:
        raise TcpSmError(f"{attempt}: {error.strerror}. {advice(error, size)}".strip()) from error


def advice(error: OSError, size: int = 0) -> str:
    """What to do about the system's refusal of a region's file."""
    privileges = "Run as root, or as a user who may write there."
    return {
        errno.ENOSPC: f"There is no room for {size_text(size)}: make the region smaller, or "
        "give the file system more (mount -o remount,size=…; for huge pages "
        "/proc/sys/vm/nr_hugepages).",
        errno.EROFS: "Mount the file system for writing, or name a path on another one.",
        errno.EACCES: privileges,
        errno.EPERM: privileges,
        errno.EINVAL: "The size must be a multiple of the file system's page size "
        "(/proc/meminfo, Hugepagesize).",
    }.get(error.errno or 0, "")
