# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are regions made whole, changed only where nobody is harmed, and recognised by those who use
them?"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import (
    process,
    region_state,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region import RegionFile
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region_state import (
    Result,
    apply_chunk,
    apply_region,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import region as model
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    ForeignError,
    InputError,
    MissingError,
    TcpSmError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region import (
    ChunkState,
    RegionError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region_spec import (
    ChunkSpec,
    RegionSpec,
)

MIB = 1 << 20

# Maps the file the way QEMU does, says so, and goes on until its input ends.
USER = textwrap.dedent(
    """
    import mmap, os, sys
    fd = os.open(sys.argv[1], os.O_RDWR)
    memory = mmap.mmap(fd, 0)
    os.close(fd)
    print("mapped", flush=True)
    sys.stdin.read()
    """
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    path = Path(f"/dev/shm/tcp_sm_region_{os.getpid()}")
    path.mkdir()
    try:
        yield path
    finally:
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "lab")


@pytest.fixture
def use(path: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that has the region mapped and the given command line."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", USER, path, *arguments]
            user = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(user.kill)
            assert user.stdout is not None
            assert user.stdout.readline() == "mapped\n"
            return user

        yield start


class Declare:
    """The two modules' engines on one region."""

    def __init__(self, path: str, lock: str) -> None:
        self.path, self.lock = path, lock

    def region(self, check: Any = False, **options: Any) -> Result:
        raw = {"name": "lab", "path": self.path, "size": "16M", **options}
        return apply_region(RegionSpec.parse(raw), check, self.lock)

    def chunk(self, owner: Any = "a", check: Any = False, **options: Any) -> Result:
        raw = {"region": "lab", "path": self.path, "owner": owner, "size": "2M", **options}
        return apply_chunk(ChunkSpec.parse(raw), check, self.lock)

    def content(self) -> bytes:
        return Path(self.path).read_bytes()


@pytest.fixture
def declare(path: str, tmp_path: Path) -> Declare:
    return Declare(path, str(tmp_path / "lock"))


# The file.


def test_a_region_is_made_whole_and_with_its_memory(declare: Declare, path: str) -> None:
    result = declare.region()
    assert result.changed
    found = os.stat(path)
    assert (found.st_size, found.st_mode & 0o777) == (16 * MIB, 0o600)
    assert found.st_blocks * 512 >= 16 * MIB
    assert os.listdir(os.path.dirname(path)) == ["lab"]
    with RegionFile(path) as file:
        made = file.read()
    assert (made.name, made.size, made.host) == ("lab", 16 * MIB, os.uname().nodename)
    assert len(set(made.id)) > 1


def test_memory_may_be_left_until_it_is_used(declare: Declare, path: str) -> None:
    declare.region(allocate=False)
    assert os.stat(path).st_blocks * 512 < MIB
    assert not declare.region().changed
    assert declare.region(size="32M").changed
    assert os.stat(path).st_blocks * 512 >= 32 * MIB


def test_two_regions_have_two_identities(declare: Declare, folder: Path) -> None:
    one = declare.region().data["fingerprint"]
    assert declare.region(name="two", path=str(folder / "two")).data["fingerprint"] != one


def test_a_missing_folder_is_named(declare: Declare) -> None:
    for check in (True, False):
        with pytest.raises(MissingError, match="the folder /no/such does not exist"):
            declare.region(check, path="/no/such/lab")


# Room.


@pytest.fixture
def small(declare: Declare, tmp_path: Path) -> Iterator[Callable[[str], Declare]]:
    """Mounts memory of a size, and declares the region there."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: str) -> Declare:
        options = f"size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
        declare.path = str(folder / "lab")
        return declare

    try:
        yield mount
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def fill(path: str) -> None:
    """Leave no room beside the file."""
    with open(f"{path}.filler", "wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))


def state_of(path: str) -> tuple[bytes, int, int]:
    found = os.stat(path)
    return Path(path).read_bytes(), found.st_size, found.st_blocks


@pytest.mark.root
@pytest.mark.parametrize(
    ("allocate", "size", "lacks"), [(True, "1M", "16M"), (False, "16K", "36K")]
)
def test_where_there_is_no_room_nothing_is_left(
    small: Any, allocate: bool, size: str, lacks: str
) -> None:
    declare = small(size)
    for check in (True, False):
        with pytest.raises(TcpSmError, match=f"Cannot create region lab at .* no room for {lacks}"):
            declare.region(check, allocate=allocate)
        assert os.listdir(os.path.dirname(declare.path)) == []


@pytest.mark.root
def test_a_region_that_cannot_grow_is_as_it_was(small: Any) -> None:
    declare = small("24M")
    machines = owned("a", "b")
    declare.region(**machines)
    before = state_of(declare.path)
    for check in (True, False):
        # Its chunks would be divided anew.
        with pytest.raises(TcpSmError, match=r"Cannot change region lab at .* no room for 32M"):
            declare.region(check, size="32M", **machines)
    assert state_of(declare.path) == before
    # What it has already needs no room again.
    subprocess.run(["mount", "-o", "remount,size=34M", os.path.dirname(declare.path)], check=True)
    for check in (True, False):
        assert declare.region(check, size="32M", **machines).changed


def test_what_grew_shrinks_when_the_rest_fails(
    declare: Declare, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare.region(**owned("a"))
    before = state_of(path)

    def refuse(*_arguments: Any) -> None:
        assert os.stat(path).st_size == 32 * MIB
        raise RegionError("not now")

    monkeypatch.setattr(region_state, "_retire", refuse)
    with pytest.raises(RegionError, match="not now"):
        declare.region(size="32M", **owned("a"))
    assert state_of(path) == before


@pytest.mark.root
def test_what_is_written_has_its_memory_also_where_the_rest_has_none(small: Any) -> None:
    """What failed before: the process ended by SIGBUS."""
    declare = small("1M")
    declare.region(allocate=False)
    fill(declare.path)
    before = state_of(declare.path)
    with pytest.raises(TcpSmError, match=r"Cannot change region lab at .* no room for 168K"):
        declare.chunk()
    assert state_of(declare.path) == before
    os.unlink(f"{declare.path}.filler")
    index = declare.chunk().data["index"]
    fill(declare.path)
    with RegionFile(declare.path) as file, file.locked():
        file.begin_life(file.read().chunks[index], "a")
        file.end_life(index, file.read().used)
        assert not file.header(file.read().chunks[index]).started


@pytest.mark.root
def test_a_file_system_for_reading_only_is_told(small: Any) -> None:
    declare = small("64M")
    declare.region()
    subprocess.run(["mount", "-o", "remount,ro", os.path.dirname(declare.path)], check=True)
    attempts: list[Callable[[bool], Result]] = [
        lambda check: declare.region(check, size="32M"),
        lambda check: declare.region(check, path=f"{declare.path}2"),
        lambda check: declare.chunk(check=check),
    ]
    for attempt in attempts:
        for check in (True, False):
            with pytest.raises(TcpSmError, match=r"Read-only file system\. .*for writing, or name"):
                attempt(check)
    with pytest.raises(TcpSmError, match=r"Read-only file system\. .*for writing, or name"):
        declare.region(state="absent")


def test_what_killed_runs_left_goes_with_the_next_one(declare: Declare, folder: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [folder / f".lab.{pid}" for pid in (gone.pid, os.getpid())]
    others = [folder / name for name in (".lab.1", ".lab.0", ".lab.x", f".other.{gone.pid}")]
    link = folder / f".lab.{gone.pid}9999"
    for path in (*left, *others):
        path.write_bytes(b"x")
    link.symlink_to(others[0])
    declare.region(True)
    assert all(path.exists() for path in left)
    declare.region()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*others, link))
    declare.region(state="absent")
    left[0].write_bytes(b"x")
    assert declare.region(True, state="absent").changed
    assert declare.region(state="absent").changed
    assert not left[0].exists()
    assert not declare.region(state="absent").changed


def test_a_file_that_grew_in_vain_is_put_right(declare: Declare, path: str, use: Any) -> None:
    """As a run leaves it that is killed before it has written the superblock."""
    for wanted in (16, 32):
        declare.region(**owned("a", "b"))
        os.truncate(path, 32 * MIB)
        with RegionFile(path) as file, pytest.raises(RegionError, match="resize it did not end"):
            file.read()
        user = use("-name", "guest=a")
        with pytest.raises(RegionError, match=rf"Cannot resize region lab: a \(pid {user.pid}\)"):
            declare.region(size=f"{wanted}M")
        user.communicate()
        assert declare.region(True, size=f"{wanted}M").changed
        assert declare.region(size=f"{wanted}M").changed
        with RegionFile(path) as file:
            assert file.read().size == wanted * MIB
        declare.region(state="absent")


def test_what_is_no_region_is_not_opened(path: str, folder: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no such file. Declare it first"):
        RegionFile(path)
    with pytest.raises(TcpSmError, match=r"not a plain file|Is a directory"):
        RegionFile(str(folder))
    Path(path).write_bytes(b"x" * 100)
    with pytest.raises(TcpSmError, match="the file has 100 bytes, so it is no region"):
        RegionFile(path)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(TcpSmError, match=r"Cannot open region .*link"):
        RegionFile(str(folder / "link"))
    Path(path).write_bytes(bytes(MIB))
    with RegionFile(path) as file, pytest.raises(TcpSmError, match="magic number"):
        file.read()


def test_a_file_of_another_size_is_damaged(declare: Declare, path: str) -> None:
    declare.region()
    os.truncate(path, MIB)
    with RegionFile(path) as file, pytest.raises(TcpSmError, match=r"superblock says 16M, .* 1M"):
        file.read()


def test_who_has_it_open_sees_it_grow_and_shrink(declare: Declare, path: str) -> None:
    declare.region()
    with RegionFile(path) as file:
        for size in ("32M", "1M"):
            declare.region(size=size)
            assert file.read().size == file.mapped == model.parse_size(size)


def test_a_lock_that_is_held_is_waited_for_and_then_named(declare: Declare, path: str) -> None:
    declare.region()
    with RegionFile(path) as file, open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TcpSmError, match="somebody else has held it for 0"):
            declare.chunk(lock_timeout=0)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert file.read().used == ()
        with file.locked(0), pytest.raises(TcpSmError, match="Nothing was changed"):
            declare.chunk(lock_timeout=0)


def test_one_agent_claims_a_region_and_gives_away_none_of_its_locks(
    declare: Declare, path: str
) -> None:
    declare.region()
    first, second = RegionFile(path), RegionFile(path)
    first.claim()
    given = first.reopened()
    with pytest.raises(TcpSmError, match=r"Cannot serve region .*: another agent does"):
        second.claim()
    first.close()
    # A machine still has `given`; the lock does not live on in it.
    second.claim()
    os.close(given)
    second.close()


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_chunk_of_another_region_is_left_alone(declare: Declare, state: str) -> None:
    declare.region()
    declare.chunk()
    before = declare.content()
    with pytest.raises(RegionError, match="for region tenant9: it is region lab"):
        declare.chunk(region="tenant9", state=state)
    assert declare.content() == before


def test_a_new_chunk_begins_empty(declare: Declare, path: str) -> None:
    declare.region()
    with open(path, "r+b") as raw, mmap.mmap(raw.fileno(), 0) as memory:
        memory[model.CHUNKS_OFFSET :] = b"\xff" * (len(memory) - model.CHUNKS_OFFSET)
    declare.chunk()
    with RegionFile(path) as file:
        header = file.header(file.read().chunks[0])
    assert (header.started, header.epoch, set(header.seen)) == (False, 0, {0})


# Regions.


def test_declaring_again_changes_nothing(declare: Declare) -> None:
    options = {"automatic": {"count": 2, "size": "1M"}, "host": "here"}
    first = declare.region(**options)
    content = declare.content()
    again = declare.region(**options)
    assert not again.changed
    assert again.before == again.after == again.data == first.data
    assert declare.content() == content


def test_check_mode_says_what_would_be_and_writes_nothing(declare: Declare, path: str) -> None:
    predicted = declare.region(True, automatic={"count": 1})
    assert predicted.changed
    assert not os.path.exists(path)
    made = declare.region(automatic={"count": 1})
    assert {**predicted.data, "fingerprint": made.data["fingerprint"]} == made.data
    content = declare.content()
    for options in ({"size": "32M"}, {"host": "there"}, {"automatic": {"count": 0}}):
        assert declare.region(True, **options).changed
    assert declare.chunk("b", True, size="128K", ring_size="4K", state="absent").changed is False
    assert declare.content() == content


def test_growing_keeps_identity_and_chunks(declare: Declare, path: str) -> None:
    before = declare.region().data
    chunk = declare.chunk().data
    after = declare.region(size="32M", host="elsewhere")
    assert after.changed
    assert after.data["fingerprint"] == before["fingerprint"]
    assert after.data["chunks"] == [chunk]
    assert after.data["host"] == "elsewhere"
    assert os.stat(path).st_size == 32 * MIB
    assert (after.before["size"], after.after["size"]) == (16 * MIB, 32 * MIB)


def test_shrinking_stops_at_a_chunk(declare: Declare, path: str) -> None:
    declare.region()
    declare.chunk(size="6M")
    with pytest.raises(TcpSmError, match="Cannot shrink region lab from 16M to 4M: chunk 0 of a"):
        declare.region(size="4M")
    assert declare.region(size="8M").changed
    assert os.stat(path).st_size == 8 * MIB


def test_a_region_in_use_keeps_its_size(
    declare: Declare, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare.region()
    user = use("-name", "guest=a")
    content = declare.content()
    for size in ("8M", "32M"):
        with pytest.raises(TcpSmError, match=rf"resize region lab: a \(pid {user.pid}\) has it"):
            declare.region(size=size)
    assert declare.content() == content
    # The agent maps it too, and follows.
    monkeypatch.setattr(region_state, "is_agent", lambda _process: True)
    assert declare.region(size="32M").changed


def test_the_agent_is_known_by_its_command_line() -> None:
    def called(*arguments: str) -> bool:
        return region_state.is_agent(process.Process(1, arguments))

    assert called("/usr/bin/python3", "-m", "tcp_sm_agent", "run")
    assert not called("/usr/bin/qemu-system-x86_64", "-name", "guest=a")


def test_a_name_is_not_mistaken_for_another_regions(declare: Declare) -> None:
    declare.region()
    for state in ("present", "absent"):
        with pytest.raises(TcpSmError, match=r"it is region lab. Name another path"):
            declare.region(name="other", state=state)


def test_a_region_goes_when_nobody_uses_it(declare: Declare, path: str, use: Any) -> None:
    declare.region()
    user = use("-name", "guest=a")
    with pytest.raises(TcpSmError, match=rf"Cannot remove region lab: a \(pid {user.pid}\)"):
        declare.region(state="absent")
    assert declare.region(True, state="absent", force=True).changed
    assert os.path.exists(path)
    user.communicate()
    gone = declare.region(state="absent")
    assert gone.changed
    assert (gone.before["name"], gone.after, gone.data) == ("lab", {}, {})
    assert not declare.region(state="absent").changed


def test_force_takes_it_from_those_who_use_it(declare: Declare, path: str, use: Any) -> None:
    declare.region()
    user = use("-name", "guest=a")
    assert declare.region(state="absent", force=True).changed
    assert not os.path.exists(path)
    assert user.poll() is None


def test_what_is_no_region_is_not_deleted(declare: Declare, path: str) -> None:
    for content in (b"", b"precious", bytes(MIB)):
        Path(path).write_bytes(content)
        with pytest.raises(TcpSmError, match="belongs to something else"):
            declare.region(state="absent", force=True)
        assert Path(path).read_bytes() == content


def test_what_cannot_be_removed_is_a_message_and_stays(
    declare: Declare, path: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, pipe = folder / "link", folder / "pipe"
    declare.region()
    link.symlink_to(path)
    os.mkfifo(pipe)
    for odd, message in ((link, "it is a symbolic link"), (pipe, "it is not a plain file")):
        with pytest.raises(ForeignError, match=f"Cannot open region {odd}: {message}"):
            declare.region(path=str(odd), state="absent", force=True)

    def refuse(name: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        # The lock is deleted too.
        patch.setattr(region_state, "locked", lambda *_: contextlib.nullcontext())
        with pytest.raises(TcpSmError, match=r"cannot be deleted: Operation not permitted.*root"):
            declare.region(state="absent")
    assert sorted(os.listdir(folder)) == ["lab", "link", "pipe"]


STRANGER = 12345


def give_to_stranger(path: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(path, STRANGER, -1)


@pytest.mark.root
def test_a_file_that_a_stranger_put_there_is_not_used(declare: Declare, path: str) -> None:
    declare.region()
    give_to_stranger(path)
    content = declare.content()
    attempts: list[Callable[[bool], Result]] = [
        declare.region,
        lambda check: declare.region(check, size="32M", owner="root"),
        lambda check: declare.chunk(check=check),
        lambda check: declare.chunk(check=check, state="absent"),
    ]
    for attempt in attempts:
        for check in (True, False):
            with pytest.raises(ForeignError, match=f"the file belongs to user {STRANGER}, and"):
                attempt(check)
    assert declare.content() == content
    # Whoever reads the name trusts nothing in the file.
    assert declare.region(state="absent").before["name"] == "lab"


@pytest.mark.root
def test_the_declared_owner_is_no_stranger(declare: Declare, path: str) -> None:
    declare.region()
    give_to_stranger(path)
    assert not declare.region(owner=STRANGER).changed
    assert declare.chunk(file_owner=str(STRANGER)).changed


def test_an_owner_that_does_not_exist_is_named_before_anything_is_made(
    declare: Declare, path: str
) -> None:
    for check in (True, False):
        with pytest.raises(InputError, match=r"no user 'nosuch'\. Create it first"):
            declare.region(check, owner="nosuch")
    assert not os.path.exists(path)


def test_a_damaged_region_can_be_removed(declare: Declare, path: str) -> None:
    declare.region()
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 64)
    with pytest.raises(TcpSmError, match="has version"):
        declare.region()
    assert declare.region(state="absent").before == {"path": path}


def test_a_region_with_a_damaged_name_can_be_removed(declare: Declare, path: str) -> None:
    declare.region()
    with open(path, "r+b") as file:
        file.seek(model.member_offset("tcp_sm_superblock", "name"))
        file.write(b"\xff")
    with pytest.raises(RegionError, match=f"Cannot use region {path}: its superblock has the name"):
        declare.region()
    assert declare.region(state="absent").before == {"path": path}


# Chunks.


def owned(*owners: str, **options: Any) -> dict[str, Any]:
    return {"chunks": [{"owner": owner, **options} for owner in owners]}


def sizes(result: Result) -> dict[str, int]:
    return {chunk["owner"]: chunk["size"] for chunk in result.data["chunks"]}


def test_a_region_has_the_chunks_that_are_listed_and_no_others(declare: Declare) -> None:
    predicted = declare.region(True, **owned("a", "b", "c"))
    first = declare.region(**owned("a", "b", "c"))
    assert {**predicted.data, "fingerprint": first.data["fingerprint"]} == first.data
    third = model.equal_share(16 * MIB, 3)
    assert sizes(first) == {"a": third, "b": third, "c": third}
    assert not declare.region(**owned("c", "b", "a")).changed
    # Without the option they stay.
    assert not declare.region().changed
    # Another one in the place of c: check mode knows that c's part will be free.
    predicted = declare.region(True, **owned("a", "b", "d"))
    after = declare.region(**owned("a", "b", "d"))
    assert predicted.data == after.data
    assert sizes(after) == {"a": third, "b": third, "d": third}
    assert after.data["chunks"][:2] == first.data["chunks"][:2]
    assert declare.region(chunks=[]).data["chunks"] == []


def test_machines_that_go_or_come_leave_a_running_one_as_it_is(declare: Declare, use: Any) -> None:
    """What failed before: the equal share of two is larger than the part of three."""
    before = declare.region(**owned("a", "b", "c"), parts=3)
    use("-name", "guest=a")
    for owners, parts in ((("a", "b"), 2), (("a",), 2), (("a", "x", "y", "z"), 4)):
        predicted = declare.region(True, **owned(*owners), parts=parts)
        after = declare.region(**owned(*owners), parts=parts)
        assert predicted.data == after.data
        assert after.data["chunks"][0] == before.data["chunks"][0]
        assert not declare.region(**owned(*owners), parts=parts).changed
        assert not declare.region(True, **owned(*owners), parts=parts).changed
    assert len(sizes(after)) == 4


def test_the_chunk_of_a_machine_that_runs_is_not_removed(declare: Declare, use: Any) -> None:
    declare.region(**owned("a", "b"))
    user = use("-name", "guest=b")
    content = declare.content()
    # An earlier task of the same run may take its device out.
    for options in ({}, {"size": "32M"}):
        predicted = declare.region(True, **owned("a"), **options)
        assert predicted.changed
        assert f"takes the device out of b (pid {user.pid})" in predicted.warnings[0]
        with pytest.raises(TcpSmError, match=rf"b in region lab: b \(pid {user.pid}\) uses it"):
            declare.region(**owned("a"), **options)
    assert declare.content() == content
    assert declare.region(True).warnings == []
    user.communicate()
    assert sizes(declare.region(**owned("a"))).keys() == {"a"}


def test_a_number_is_given_on_when_its_peers_have_let_go(
    declare: Declare, path: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare.region(**owned("gone", "peer"))
    start_module(path, 0)
    start_module(path, 1)
    use("-name", "guest=peer")
    monkeypatch.setattr(region_state, "SETTLE_SECONDS", 0.1)
    with pytest.raises(TcpSmError, match=r"Cannot free chunk 0 of gone: .* have not let go"):
        declare.region(**owned("new", "peer"))
    see(path, 1, 0)
    new = declare.region(**owned("new", "peer")).data["chunks"][0]
    assert (new["index"], new["owner"]) == (0, "new")
    with RegionFile(path) as file:
        assert not file.header(file.read().chunks[0]).started


def test_a_region_that_grows_is_divided_anew(declare: Declare) -> None:
    declare.region(**owned("a", "b"))
    grown = declare.region(**owned("a", "b"), size="32M")
    half = model.equal_share(32 * MIB, 2)
    assert sizes(grown) == {"a": half, "b": half}
    assert not declare.region(**owned("a", "b"), size="32M").changed


def test_a_region_shrinks_when_the_machine_at_its_end_is_gone(declare: Declare) -> None:
    declare.region(**owned("a", "b", size="6M"))
    shrunk = declare.region(**owned("a", size="6M"), size="8M")
    assert sizes(shrunk) == {"a": 6 * MIB}


def test_a_chunk_is_declared_once(declare: Declare) -> None:
    declare.region()
    first = declare.chunk()
    assert first.changed
    assert (first.before, first.after) == ({}, first.data)
    assert (first.data["owner"], first.data["index"]) == ("a", 0)
    content = declare.content()
    assert not declare.chunk().changed
    assert declare.content() == content
    assert declare.chunk("b").data["index"] == 1


def test_a_chunk_without_a_region_is_a_warning_in_check_mode(declare: Declare) -> None:
    predicted = declare.chunk(check=True)
    assert predicted.changed
    assert "there is no such file" in predicted.warnings[0]
    with pytest.raises(MissingError, match="Declare it first"):
        declare.chunk()
    assert not declare.chunk(state="absent").changed


def test_a_chunk_that_goes_leaves_its_epoch(declare: Declare, path: str) -> None:
    declare.region()
    declare.chunk()
    gone = declare.chunk(state="absent")
    assert (gone.changed, gone.data) == (True, {})
    assert not declare.chunk(state="absent").changed
    with RegionFile(path) as file:
        assert file.epoch(0) > 1
        assert file.read().used == ()


@pytest.mark.parametrize("who", ["-name", "-uuid"])
def test_the_chunk_of_a_running_machine_is_left_alone(declare: Declare, use: Any, who: str) -> None:
    declare.region()
    declare.chunk()
    declare.chunk("idle")
    user = use(who, "a")
    content = declare.content()
    for options in ({"size": "4M"}, {"ring_size": "4K"}, {"state": "absent"}):
        with pytest.raises(TcpSmError, match=rf"of a in region lab: a \(pid {user.pid}\) uses it"):
            declare.chunk(**options)
    assert declare.content() == content
    assert not declare.chunk().changed
    assert declare.chunk("idle", state="absent").changed


def start_module(path: str, index: int) -> None:
    """What the owner's module writes when it takes its chunk."""
    with RegionFile(path) as file:
        chunk = file.read().chunks[index]
    with open(path, "r+b") as raw:
        raw.seek(chunk.offset)
        raw.write(struct.pack("<QII", model.CHUNK_MAGIC, index, chunk.epoch))


def see(path: str, index: int, peer: int) -> None:
    """The module of chunk `index` has let go of what `peer` was."""
    with RegionFile(path) as file:
        chunk, epoch = file.read().chunks[index], file.epoch(peer)
    with open(path, "r+b") as raw:
        raw.seek(chunk.offset + model.member_offset("tcp_sm_chunk_header", "seen") + 4 * peer)
        raw.write(struct.pack("<I", epoch))


def test_memory_gets_another_use_when_all_have_let_go(
    declare: Declare, path: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare.region()
    declare.chunk("gone")
    declare.chunk("peer")
    start_module(path, 1)
    use("-name", "guest=peer")
    monkeypatch.setattr(region_state, "SETTLE_SECONDS", 0.1)
    with pytest.raises(TcpSmError, match=r"Cannot free chunk 0 of gone: .* have not let go"):
        declare.chunk("gone", size="3M")
    with RegionFile(path) as file:
        chunk = file.read().chunks[0]
        attention = model.member_offset("tcp_sm_chunk_header", "attention")
        peer = file.read().chunks[1]
    # The peer was told, and the memory is as it was.
    assert (chunk.state, chunk.size) == (ChunkState.DEAD, 2 * MIB)
    assert declare.content()[peer.offset + attention] == 1
    see(path, 1, 0)
    assert declare.chunk("gone", size="3M").data["size"] == 3 * MIB


def test_nobody_is_waited_for_who_does_not_run(declare: Declare, path: str) -> None:
    declare.region()
    declare.chunk("gone")
    declare.chunk("peer")
    start_module(path, 1)
    assert declare.chunk("gone", state="absent").changed


def test_automatic_chunks_in_use_stay(declare: Declare, path: str, use: Any) -> None:
    declare.region(automatic={"count": 2, "size": "1M"})
    with RegionFile(path) as file, file.locked():
        file.begin_life(file.read().chunks[1], "guest")
    user = use("-name", "guest=guest")
    fewer = declare.region(automatic={"count": 1, "size": "1M"})
    assert [chunk["index"] for chunk in fewer.data["chunks"]] == [1]
    with pytest.raises(TcpSmError, match=rf"chunk 1 of guest .* \(pid {user.pid}\) uses it"):
        declare.region(automatic={"count": 0})


# Lives.


def test_a_life_ends_dead_with_another_epoch_and_others_look(declare: Declare, path: str) -> None:
    declare.region()
    declare.chunk("a")
    declare.chunk("b")
    with RegionFile(path) as file:
        file.begin_life(file.read().chunks[0], "a")
        before = file.read()
        file.end_life(0, before.used)
        after = file.read()
        attention = model.member_offset("tcp_sm_chunk_header", "attention")
        words = [declare.content()[chunk.offset + attention] for chunk in after.used]
    assert (after.chunks[0].state, after.chunks[0].epoch) == (
        ChunkState.DEAD,
        before.chunks[0].epoch + 1,
    )
    assert after.chunks[1] == before.chunks[1]
    assert words == [0, 1]


def test_only_who_runs_and_has_not_looked_is_waited_for(declare: Declare, path: str) -> None:
    declare.region()
    for owner in ("a", "b", "c"):
        declare.chunk(owner)
    start_module(path, 1)
    with RegionFile(path) as file:
        now = file.read()
        assert file.is_settled(now, 0, living=[])
        assert file.is_settled(now, 0, living=[0, 2])
        assert not file.is_settled(now, 0, living=[1])
        see(path, 1, 0)
        assert file.is_settled(now, 0, living=[0, 1, 2])


# Processes.


def test_users_are_found_by_what_they_have_mapped(declare: Declare, path: str, use: Any) -> None:
    declare.region()
    assert process.users_of(path) == []
    user = use("-name", "guest=a,debug-threads=on", "-uuid", "1-2")
    (found,) = process.users_of(path)
    assert (found.pid, found.identity.names) == (user.pid, ("a", "1-2"))
    assert str(found) == f"a (pid {user.pid})"
    user.communicate()
    assert process.users_of(path) == []
    assert process.users_of("/no/such") == []


def test_names_of_other_peoples_files_need_not_be_text(
    declare: Declare, path: str, use: Any, tmp_path: Path
) -> None:
    declare.region()
    odd = os.fsencode(tmp_path) + b"/\xff\xfe\rodd"
    Path(os.fsdecode(odd)).write_bytes(bytes(4096))
    command = [os.fsencode(sys.executable), b"-c", USER.encode(), odd]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mapped\n"
        found = os.stat(odd)
        assert process.maps_file(other.pid, found.st_dev, found.st_ino)
        user = use("-name", "guest=a")
        assert [one.pid for one in process.users_of(path)] == [user.pid]
        other.communicate()


def test_a_process_that_is_gone_is_none() -> None:
    with subprocess.Popen(["true"]) as done:
        done.wait()
        # Not reaped by the kernel's standards until Popen asked; either way nobody.
        assert process.read_process(done.pid) is None
    assert process.maps_file(done.pid, 0, 0) is False
    assert process.eventfds_of(done.pid) == {}


def test_an_eventfd_can_be_taken_from_another_process() -> None:
    code = "import os, sys; os.eventfd(7); print('made', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        found = list(process.eventfds_of(other.pid).items())
        assert len(found) == 1
        number, fd = found[0]
        try:
            taken = process.take_descriptor(other.pid, fd)
        except OSError as error:
            other.communicate()
            pytest.skip(f"SKIPPED: this kernel does not let us take descriptors: {error}")
        assert os.eventfd_read(taken) == 7
        assert {v: k for k, v in process.eventfds_of(os.getpid()).items()}[taken] == number
        os.close(taken)
        other.communicate()
        with pytest.raises(OSError, match="No such process"):
            process.take_descriptor(other.pid, fd)


# Options.

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no size": ({"size": None}, "size: region lab needs one"),
    "odd size": ({"size": "100M"}, "not a power of two"),
    "no number": ({"size": "big"}, "size: 'big' is not a size"),
    "relative path": ({"path": "lab"}, "path: 'lab' must be the absolute path"),
    "folder": ({"path": "/dev/shm/"}, "must be the absolute path of a file"),
    "state": ({"state": "gone"}, "state: 'gone' must be one of"),
    "automatic count": ({"automatic": {"count": "x"}}, "automatic: count: 'x' must be a number"),
    "automatic list": ({"automatic": [1]}, "automatic: needs a dictionary with count"),
    "too few": ({"automatic": {"count": -1}}, "automatic: -1 must be from 0 to 256"),
    "no chunks": ({"chunks": "a"}, "chunks: needs a list, not 'a'"),
    "names for chunks": ({"chunks": ["a"]}, "chunks: needs a dictionary with owner"),
    "chunk key": ({"chunks": [{"owner": "a", "sise": 1}]}, "chunks: unknown sise"),
    "chunk of nobody": ({"chunks": [{"size": "1M"}]}, "owner: '' must be the name"),
    "chunk twice": ({"chunks": [{"owner": "a"}, {"owner": "a"}]}, "chunks: a is there twice"),
    "chunk of nothing": ({"chunks": [{"owner": "a", "size": 0}]}, "size: 0 is too small"),
    "parts": ({"parts": "x"}, "parts: 'x' must be a number"),
    "few parts": ({"parts": 1, "automatic": {"count": 2}}, "parts: 1 must be a number of at least"),
    "automatic key": ({"automatic": {"many": 1}}, "automatic: unknown many"),
    "automatic ring": ({"automatic": {"count": 1, "ring_size": "3K"}}, "ring_size: 3K must be"),
    "too many": ({"automatic": {"count": 257}}, "257 must be from 0 to 256"),
    "share too small": ({"automatic": {"count": 100}}, "has no room for a connection"),
    "timeout": ({"lock_timeout": -1}, "must not be negative"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_options_are_named_and_nothing_is_made(declare: Declare, path: str, kind: str) -> None:
    options, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        declare.region(**options)
    assert not os.path.exists(path)


def test_bad_options_of_a_chunk_are_named(declare: Declare) -> None:
    declare.region()
    content = declare.content()
    for owner, options, message in (
        ("", {}, "owner: '' must be"),
        ("a", {"size": None}, "size: the chunk of a needs one"),
        ("a", {"size": "1000"}, "must be a multiple of 4096"),
        ("a", {"size": "16M"}, "a chunk for a of 16M is larger than region lab"),
        ("a", {"ring_size": "1000"}, "ring_size: 1000 must be"),
        ("a", {"region": "../x"}, "region: '../x' must be"),
    ):
        with pytest.raises(InputError, match=message):
            declare.chunk(owner, **options)
    assert declare.content() == content


def test_a_big_endian_machine_is_refused(
    declare: Declare, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare.region()
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(TcpSmError, match="little-endian"):
        RegionFile(path)
