# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a region, or a chunk of one, to a wanted state: what the modules and the agent call."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .._model.errors import MissingError, TcpSmError
from .._model.region import (
    HEAD_SIZE,
    REGION_MAGIC,
    Chunk,
    ChunkState,
    Region,
    RegionError,
    keep_owners,
    new_region,
    put_chunk,
    remove_chunk,
    resize,
)
from .._model.region_spec import ChunkSpec, RegionSpec
from .lock import locked
from .process import Process, users_of
from .region import (
    Making,
    RegionFile,
    check_creation,
    create_region,
    make_identity,
    open_plain,
    user_id,
)
from .room import advice
from .temporary import leftovers, remove_leftovers

# Apart from the lock of BPF objects, which is held while these are loaded.
LOCK_PATH = "/run/lock/colocated.tcp_sm-regions.lock"
# The guest module looks at the table twice a second, also when nobody rings.
SETTLE_SECONDS = 3.0
SETTLE_POLL = 0.05
AGENT = "tcp_sm_agent"


@dataclass
class Result:
    """Outcome. `data` is what there is afterwards, in check mode what there would be; empty when
    there is nothing."""

    changed: bool
    data: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def is_agent(process: Process) -> bool:
    """Is it the agent? It has every region mapped that it serves."""
    return any(AGENT in argument for argument in process.arguments[:6])


def describe_region(region: Region, path: str) -> dict[str, Any]:
    """For RETURN. The identity is a secret among the region's machines, hence a fingerprint."""
    return {
        "name": region.name,
        "path": path,
        "size": region.size,
        "host": region.host,
        "fingerprint": hashlib.sha256(region.id).hexdigest()[:16],
        "chunks": [chunk.describe() for chunk in region.used],
    }


def apply_region(spec: RegionSpec, check: bool = False, lock_path: str = LOCK_PATH) -> Result:
    """Bring the region to `spec`; with `check`, only say what would happen.

    Raises TcpSmError with everything as before.
    """
    with locked(spec.lock_timeout, lock_path):
        if spec.state == "absent":
            return _remove(spec, check)
        owner = user_id(spec.owner)
        if not os.path.lexists(spec.path):
            return _create(spec, check)
        with RegionFile(spec.path, check, [owner], larger=True) as file:
            result = _change(file, spec, check, lambda: _plan(spec, file, check))
            if check:
                result.warnings = [
                    f"Check mode takes for granted that an earlier task takes the device out of "
                    f"{process}, whose chunk of region {spec.name} is removed."
                    for process in users_of(spec.path)
                    if _leaves(process, file.read(), spec)
                ]
            return result


def make_region(spec: RegionSpec, making: Making) -> None:
    """Make the region where there is none, as after a reboot.

    Raises TcpSmError with nothing left behind.
    """
    with locked(spec.lock_timeout, LOCK_PATH):
        if os.path.lexists(spec.path):
            return
        create_region(spec.path, fresh_region(spec), making)


def fresh_region(spec: RegionSpec) -> Region:
    """A region as wanted that has never been used. Raises TcpSmError."""
    host = os.uname().nodename if spec.host is None else spec.host
    return spec.arrange(new_region(spec.name, spec.size, make_identity(), host))


def _create(spec: RegionSpec, check: bool) -> Result:
    region = fresh_region(spec)
    if check:
        check_creation(spec.path, region, spec.allocate)
    else:
        create_region(spec.path, region, Making(allocate=spec.allocate))
    data = describe_region(region, spec.path)
    if check:
        # The next run makes another one.
        data["fingerprint"] = ""
    return Result(True, data, {}, data)


def _plan(spec: RegionSpec, file: RegionFile, check: bool) -> Region:
    """The region as wanted. Raises TcpSmError."""
    region = file.read()
    if region.name != spec.name:
        raise _other_region(spec.name, spec.path, region.name)
    used = [
        process
        for process in users_of(spec.path)
        if not is_agent(process) and not (check and _leaves(process, region, spec))
    ]
    if spec.chunks is not None:
        owners = [one.owner for one in spec.chunks]
        region = keep_owners(region, owners, chunks_in_use(region, used))
    resized = spec.size != region.size
    # A run that was killed in between has let it grow already.
    if resized or spec.size != file.mapped:
        if used:
            raise RegionError(
                f"Cannot resize region {spec.name}: {_list(used)} has it mapped, and a device "
                "keeps its size. Shut these machines down, or detach the device, and run again."
            )
        region = resize(region, spec.size)
    if spec.host is not None:
        region = replace(region, host=spec.host)
    # Nobody uses a region that gets another size, and its equal parts are others.
    return spec.arrange(region, chunks_in_use(region, used), keep=not resized)


def _leaves(process: Process, region: Region, spec: RegionSpec) -> bool:
    """Is it a machine whose chunk is not wanted any more?"""
    if spec.chunks is None:
        return False
    chunks = [region.owned_by(name) for name in process.identity.names]
    owners = {one.owner for one in spec.chunks}
    return any(one and not one.automatic and one.owner not in owners for one in chunks)


def _other_region(wanted: str, path: str, name: str) -> RegionError:
    return RegionError(
        f"Cannot use {path} for region {wanted}: it is region {name}. Name another path, or remove "
        "that region first."
    )


def _remove(spec: RegionSpec, check: bool) -> Result:
    left = leftovers(spec.path)
    if not check:
        remove_leftovers(spec.path)
    if not os.path.lexists(spec.path):
        return Result(bool(left))
    data = _describe_any(spec.path)
    if data.get("name", spec.name) != spec.name:
        raise _other_region(spec.name, spec.path, data["name"])
    users = [process for process in users_of(spec.path) if not is_agent(process)]
    if users and not spec.force:
        raise RegionError(
            f"Cannot remove region {spec.name}: {_list(users)} has it mapped. Shut these machines "
            "down, or detach the device; or use force, after which they go on with a region that "
            "nobody can join any more."
        )
    if not check:
        try:
            os.unlink(spec.path)
        except OSError as error:
            raise TcpSmError(
                f"Cannot remove region {spec.name}: {spec.path} cannot be deleted: "
                f"{error.strerror}. Nothing was changed. {advice(error)}"
            ) from error
    return Result(True, {}, data, {})


def _describe_any(path: str) -> dict[str, Any]:
    """Of a region that may be damaged; refuses what never was one."""
    with open(path, "rb", opener=open_plain) as file:
        magic = file.read(8) if os.fstat(file.fileno()).st_size >= HEAD_SIZE else b""
    if magic != REGION_MAGIC.to_bytes(8, "little"):
        raise RegionError(
            f"Cannot remove region {path}: it does not begin with a region's magic number, so it "
            "belongs to something else. Name another path, or delete the file by hand."
        )
    try:
        with RegionFile(path, read_only=True, owners=None) as region:
            return describe_region(region.read(), path)
    except TcpSmError:
        return {"path": path}


def apply_chunk(spec: ChunkSpec, check: bool = False, lock_path: str = LOCK_PATH) -> Result:
    """Bring the chunk to `spec`; with `check`, only say what would happen.

    Raises TcpSmError with everything as before.
    """
    try:
        with (
            locked(spec.lock_timeout, lock_path),
            RegionFile(spec.path, check, [user_id(spec.file_owner)]) as file,
        ):
            return _apply_chunk(spec, file, check)
    except MissingError as error:
        if spec.state == "absent":
            return Result(False)
        if not check:
            raise
        wanted = {"owner": spec.owner, "size": spec.size, "ring_size": spec.ring_size}
        warning = f"Check mode cannot predict the rest: {error}"
        return Result(True, wanted, {}, wanted, [warning])


def _apply_chunk(spec: ChunkSpec, file: RegionFile, check: bool) -> Result:
    def plan() -> Region:
        region = file.read()
        if region.name != spec.region:
            raise _other_region(spec.region, spec.path, region.name)
        used = chunks_in_use(region, users_of(spec.path))
        if spec.state == "absent":
            return remove_chunk(region, spec.owner, used)
        return put_chunk(region, spec.owner, spec.size, spec.ring_size, used)

    def describe(region: dict[str, Any]) -> dict[str, Any]:
        return next((one for one in region["chunks"] if one["owner"] == spec.owner), {})

    result = _change(file, spec, check, plan)
    return Result(
        result.changed, describe(result.data), describe(result.before), describe(result.after)
    )


def _change(
    file: RegionFile, spec: RegionSpec | ChunkSpec, check: bool, plan: Callable[[], Region]
) -> Result:
    """Write what `plan` gives, unless it is what there is."""
    with file.locked(spec.lock_timeout):
        before, wanted = file.read(), plan()
        changed = before != wanted or wanted.size != file.mapped
        allocate = isinstance(spec, ChunkSpec) or spec.allocate
        if changed and check:
            file.check_room(wanted, allocate)
        elif changed:
            with file.room_for(wanted, allocate):
                # Peers may write into memory that gets another use now.
                if vacated := _vacated(before, wanted):
                    for chunk in vacated:
                        _retire(file, chunk)
                    wanted = plan()
                file.write(file.read(), wanted)
        data = describe_region(wanted, spec.path)
        return Result(changed, data, describe_region(before, spec.path), data)


def chunks_in_use(region: Region, users: list[Process]) -> dict[int, str]:
    """Index -> the process that has the region mapped and is the chunk's owner."""
    found = {}
    for process in users:
        for name in process.identity.names:
            chunk = region.owned_by(name)
            if chunk:
                found[chunk.index] = str(process)
    return found


def _vacated(before: Region, wanted: Region) -> list[Chunk]:
    """Chunks whose memory is given up, also to another owner."""
    return [chunk for chunk in before.used if wanted.chunks[chunk.index].memory != chunk.memory]


def _retire(file: RegionFile, chunk: Chunk) -> None:
    """End the chunk's life, and wait until nobody uses its memory. Raises RegionError."""
    region = file.read()
    if chunk.state == ChunkState.ASSIGNED:
        file.end_life(chunk.index, region.used)
    living = chunks_in_use(region, users_of(file.path))
    deadline = time.monotonic() + SETTLE_SECONDS
    while not file.is_settled(file.read(), chunk.index, living):
        if time.monotonic() >= deadline:
            raise RegionError(
                f"Cannot free chunk {chunk.index} of {chunk.owner or 'nobody'}: machines that had "
                f"connections to it have not let go within {SETTLE_SECONDS:g} seconds; are they "
                "paused? Resume them and run again. Nothing else was changed."
            )
        time.sleep(SETTLE_POLL)


def _list(processes: list[Process]) -> str:
    return ", ".join(str(process) for process in processes)
