# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A region's file: made, opened, mapped, locked, changed; used by the modules and the agent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import mmap
import os
import pwd
import secrets
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

from .._model.errors import ForeignError, InputError, MissingError, TcpSmError
from .._model.region import (
    HEAD_SIZE,
    HEADER_SIZE,
    SLOTS_OFFSET,
    Chunk,
    ChunkState,
    Header,
    Region,
    RegionError,
    entry_offset,
    member_offset,
    next_epoch,
    pack_entry,
    pack_region,
    pack_superblock,
    parse_header,
    parse_region,
    size_text,
)
from .room import advice, check_room, explained, make_room, needs
from .temporary import remove_leftovers, temporary_name

LOCK_POLL = 0.02
ID_MAX = (1 << 32) - 1  # what Linux takes for no user or group
_STATE = member_offset("tcp_sm_chunk_entry", "state")
_EPOCH = member_offset("tcp_sm_chunk_entry", "epoch")
_ATTENTION = member_offset("tcp_sm_chunk_header", "attention")


def make_identity() -> bytes:
    """A region's identity, which nobody can guess."""
    return secrets.token_bytes(16)


def user_id(name: str) -> int:
    """The number of a user; -1 for no name. Raises InputError."""
    return _account_id("user", name, lambda: pwd.getpwnam(name).pw_uid)


def group_id(name: str) -> int:
    """The number of a group; -1 for no name. Raises InputError."""
    return _account_id("group", name, lambda: grp.getgrnam(name).gr_gid)


def _account_id(kind: str, name: str, find: Callable[[], int]) -> int:
    if not name:
        return -1
    if name.isdecimal() and int(name) < ID_MAX:
        return int(name)
    try:
        return find()
    except (KeyError, ValueError):
        raise InputError(
            f"There is no {kind} {name!r}. Create it first, or name another. Nothing was changed."
        ) from None


@dataclass(frozen=True)
class Making:
    """How to make a region's file; -1: whoever makes it.

    `allocate`: its memory at once. A machine that touches a page for which the file system has no
    room left is killed.
    """

    mode: int = 0o600
    uid: int = -1
    gid: int = -1
    allocate: bool = True


def create_region(path: str, region: Region, making: Making = Making()) -> None:
    """Make the file, whole, under a temporary name, then put it in place.

    Raises TcpSmError with nothing left behind.
    """
    remove_leftovers(path)
    temporary = temporary_name(path)
    with _creation(path, region, making.allocate):
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            make_room(fd, region, making.allocate)
            with mmap.mmap(fd, region.size) as memory:
                for offset, data in pack_region(region).items():
                    memory[offset : offset + len(data)] = data
            os.fchown(fd, making.uid, making.gid)
            os.fchmod(fd, making.mode)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)


def check_creation(path: str, region: Region, allocate: bool) -> None:
    """Raise what `create_region` would, as far as that can be told, and change nothing."""
    with _creation(path, region, allocate):
        check_room(path, region, allocate)


def _creation(path: str, region: Region, allocate: bool) -> contextlib.AbstractContextManager[None]:
    attempt = f"Cannot create region {region.name} at {path}"
    return explained(attempt, needs(region, 0, allocate), path)


class RegionFile:
    """An open region, mapped as a whole and shared with the machines.

    Words that others read meanwhile are stored in one piece. The lock is between those who change
    the table: the agent and the modules; machines do not know of it.
    """

    def __init__(
        self,
        path: str,
        read_only: bool = False,
        owners: Collection[int] | None = (),
        larger: bool = False,
    ) -> None:
        """`owners`: users whose file is trusted, besides root and ourselves; None: anybody's.
        `larger`: it may have more bytes than its superblock says, as while it grows.

        Raises MissingError, ForeignError or RegionError.
        """
        if sys.byteorder != "little":
            raise RegionError(f"Cannot open region {path}: regions need a little-endian machine.")
        self.path, self.larger = path, larger
        self._prot = mmap.PROT_READ | (0 if read_only else mmap.PROT_WRITE)
        self.fd = open_plain(path, os.O_RDONLY if read_only else os.O_RDWR)
        self._fence = threading.Lock()
        try:
            if owners is not None:
                self._refuse_others(owners)
            self._map()
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> RegionFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close."""
        self._unmap()
        os.close(self.fd)

    def _refuse_others(self, owners: Collection[int]) -> None:
        """Anybody may put a file into /dev/shm, and whoever did can read what goes through it."""
        user = os.fstat(self.fd).st_uid
        if user not in {0, os.geteuid(), *owners}:
            raise ForeignError(
                f"Cannot use region {self.path}: the file belongs to user {user}, and neither to "
                "root nor to the owner that is declared for it. Find out who made it; then delete "
                "it (module ivshmem_region, state absent), or give it to root (chown), or declare "
                "its owner."
            )

    def _map(self) -> None:
        self.mapped = os.fstat(self.fd).st_size
        if self.mapped < HEAD_SIZE:
            raise RegionError(
                f"Cannot open region {self.path}: the file has {self.mapped} bytes, so it is no "
                "region. Name another path, or delete the file if it is not needed."
            )
        self._memory = mmap.mmap(self.fd, self.mapped, mmap.MAP_SHARED, self._prot)
        self._bytes = memoryview(self._memory)
        self._words = self._bytes.cast("I")

    def _unmap(self) -> None:
        self._words.release()
        self._bytes.release()
        self._memory.close()

    def reopened(self) -> int:
        """Another descriptor of the same file to give away. A duplicate would do harm: locks belong
        to what was opened, and would be held on by whoever got it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def identity(self) -> tuple[int, int]:
        """(device, inode) of the open file."""
        found = os.fstat(self.fd)
        return found.st_dev, found.st_ino

    def stat(self) -> os.stat_result:
        """Of the open file, which may have been deleted or replaced under its name."""
        return os.fstat(self.fd)

    def is_current(self) -> bool:
        """Does the path still name the file that is open?"""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def read(self) -> Region:
        """The region now. Raises RegionError when it is damaged."""
        self._follow()
        region = parse_region(bytes(self._bytes[:HEAD_SIZE]), self.path)
        if region.size == self.mapped or (self.larger and region.size < self.mapped):
            return region
        fix = "Make it anew (state absent, then present)."
        if region.size < self.mapped:
            fix = "A run that was to resize it did not end; run module ivshmem_region again."
        raise RegionError(
            f"Cannot use region {self.path}: its superblock says {size_text(region.size)}, the "
            f"file has {size_text(self.mapped)}. {fix}"
        )

    def header(self, chunk: Chunk) -> Header:
        """What the owner of `chunk` wrote."""
        return parse_header(bytes(self._bytes[chunk.offset : chunk.offset + HEADER_SIZE]))

    @contextlib.contextmanager
    def locked(self, timeout: float = 30) -> Iterator[None]:
        """Change the table alone. Raises TcpSmError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self._try_lock():
            if time.monotonic() >= deadline:
                raise TcpSmError(
                    f"Cannot lock region {self.path}: somebody else has held it for {timeout:g} "
                    "seconds. Nothing was changed; run again when that has ended."
                )
            time.sleep(LOCK_POLL)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def claim(self) -> None:
        """Be the agent of this region until the file is closed. Raises ForeignError for a second.

        An open-file lock of the first byte; it has nothing to do with `locked`.
        """
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, lock)
        except BlockingIOError:
            raise ForeignError(
                f"Cannot serve region {self.path}: another agent does. Stop that one first."
            ) from None

    @contextlib.contextmanager
    def room_for(self, new: Region, allocate: bool) -> Iterator[None]:
        """The file has the memory that `write` needs; where what follows fails, its old size.

        Comes before anything is given up: where there is no room, everything is as it was.
        """
        before = self.mapped
        try:
            with self._explained(new, allocate):
                make_room(self.fd, new, allocate)
            yield
        except BaseException:
            os.ftruncate(self.fd, before)
            raise

    def check_room(self, new: Region, allocate: bool) -> None:
        """Raise what `room_for` would, and change nothing."""
        with self._explained(new, allocate):
            check_room(self.path, new, allocate)

    def _explained(self, new: Region, allocate: bool) -> contextlib.AbstractContextManager[None]:
        room = needs(new, self.mapped, allocate)
        return explained(f"Cannot change region {new.name} at {self.path}", room, self.path)

    def write(self, old: Region, new: Region) -> None:
        """Bring table and superblock from `old` to `new`, and a file that is larger to its size.

        Entries that stay the same are not touched. A chunk that is new begins empty, so that
        nobody takes what was there before for its owner.
        """
        self._follow()
        for before, after in zip(old.chunks, new.chunks, strict=True):
            if before != after:
                self._write_chunk(before, after)
        data = pack_superblock(new)
        if data != pack_superblock(old):
            self._bytes[: len(data)] = data
        if new.size < self.mapped:
            os.ftruncate(self.fd, new.size)
            self._follow()

    def _follow(self) -> None:
        """Map the whole file also where it has another size now."""
        if os.fstat(self.fd).st_size != self.mapped:
            self._unmap()
            self._map()

    def _write_chunk(self, before: Chunk, after: Chunk) -> None:
        if after.size and before.memory != after.memory:
            self._bytes[after.offset : after.offset + SLOTS_OFFSET] = bytes(SLOTS_OFFSET)
        offset = entry_offset(after.index)
        # Nobody may follow an entry that is half written.
        self._store(offset + _STATE, ChunkState.FREE)
        data = pack_entry(after)
        self._bytes[offset + 4 : offset + len(data)] = data[4:]
        self._store(offset + _STATE, after.state)

    def _store(self, offset: int, value: int) -> None:
        """One aligned 32-bit word, after everything that was written before it."""
        with self._fence:
            pass
        self._words[offset // 4] = value
        with self._fence:
            pass

    def epoch(self, index: int) -> int:
        """The epoch in the table, which the owner's module changes too."""
        return self._words[(entry_offset(index) + _EPOCH) // 4]

    def is_settled(self, region: Region, index: int, living: Collection[int]) -> bool:
        """Has every machine whose module runs seen the present epoch of chunk `index`, and so let
        go of what it had to do with the chunk's former life? `living`: chunks of machines that
        run; the others cannot touch anything."""
        epoch = self.epoch(index)
        for other in region.used:
            if other.index == index or other.index not in living:
                continue
            header = self.header(other)
            # A module that has not taken its chunk in this life has no connections.
            runs = header.started and header.epoch == other.epoch
            if runs and header.seen[index] != epoch:
                return False
        return True

    def begin_life(self, chunk: Chunk, owner: str) -> None:
        """Give the chunk to `owner`, under another epoch."""
        offset = entry_offset(chunk.index)
        if owner != chunk.owner:
            at = offset + member_offset("tcp_sm_chunk_entry", "owner")
            self._bytes[at : at + 64] = owner.encode().ljust(64, b"\0")
        self._store(offset + _EPOCH, next_epoch(self.epoch(chunk.index)))
        self._store(offset + _STATE, ChunkState.ASSIGNED)

    def end_life(self, index: int, others: Iterable[Chunk]) -> None:
        """The owner is gone: DEAD, another epoch, and the owners of `others` told to look.

        The state comes first: who sees the new epoch must not take the chunk for alive.
        """
        offset = entry_offset(index)
        self._store(offset + _STATE, ChunkState.DEAD)
        self._store(offset + _EPOCH, next_epoch(self.epoch(index)))
        for other in others:
            if other.index != index:
                self._store(other.offset + _ATTENTION, 1)


def open_plain(path: str, flags: int) -> int:
    """Open a plain file, without waiting. Raises MissingError or ForeignError."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MissingError(
            f"Cannot open region {path}: there is no such file. Declare it first (module "
            "ivshmem_region), or correct the path."
        ) from None
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        fix = advice(error) if error.errno == errno.EROFS else "Run as root, and name a plain file."
        raise ForeignError(
            f"Cannot open region {path}: {reason}. Nothing was changed. {fix}"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ForeignError(f"Cannot open region {path}: it is not a plain file. Name another path.")
    return fd
