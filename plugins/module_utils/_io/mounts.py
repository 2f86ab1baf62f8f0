# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where cgroup2 and bpffs are mounted, as /proc/self/mountinfo says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .._model.errors import ForeignError, InputError, MissingError

MOUNTINFO = "/proc/self/mountinfo"


@dataclass(frozen=True)
class Mount:
    """One mount; `device` is the st_dev of what lies in it."""

    path: str
    type: str
    device: int


def mounts(text: str | None = None) -> list[Mount]:
    """All mounts, from `text` in the form of mountinfo (default: this process's)."""
    found = []
    for line in (Path(MOUNTINFO).read_text() if text is None else text).splitlines():
        left, _dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        major, minor = (int(part) for part in fields[2].split(":"))
        path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        found.append(Mount(path, kind[0], os.makedev(major, minor)))
    return found


def cgroup2_root() -> str:
    """Where cgroup2 is mounted: /sys/fs/cgroup, elsewhere on hybrid hierarchies."""
    for mount in mounts():
        if mount.type == "cgroup2" and os.path.isdir(mount.path):
            return mount.path
    raise MissingError(
        "No cgroup2 file system is mounted, and programs attach to its cgroups. "
        "Mount it: mount -t cgroup2 none /sys/fs/cgroup"
    )


def cgroup_path(cgroup: str) -> str:
    """The folder of `cgroup`, which is absolute below the cgroup2 mount."""
    return os.path.join(cgroup2_root(), cgroup.lstrip("/")).rstrip("/")


def open_cgroup(cgroup: str) -> tuple[int, int]:
    """(descriptor, cgroup id) of a cgroup; InputError if it is missing."""
    path = cgroup_path(cgroup)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"Cannot attach to cgroup {cgroup}: {path} does not exist. Cgroups are "
            f"named relative to {cgroup2_root()}; see systemd-cgls or "
            "/proc/PID/cgroup."
        ) from None
    # The inode number of a cgroup2 folder is the cgroup's id.
    return fd, os.fstat(fd).st_ino


def has_cgroup_id(cgroup: str, cgroup_id: int) -> bool:
    """Is `cgroup` still the one with this id?"""
    try:
        return os.stat(cgroup_path(cgroup)).st_ino == cgroup_id
    except OSError:
        return False


def require_bpffs(path: str) -> None:
    """Raise unless `path` is a folder on a mounted BPF file system."""
    fix = f"Mount it: mkdir -p {path} && mount -t bpf bpf {path}"
    if not os.path.lexists(path):
        raise MissingError(f"Cannot pin below {path}: it does not exist. {fix}")
    if not os.path.isdir(path):
        raise ForeignError(f"Cannot pin below {path}: it is not a folder. Name a bpffs mount.")
    if not on_bpffs(path):
        raise MissingError(f"Cannot pin below {path}: no bpffs is mounted there. {fix}")


def on_bpffs(path: str) -> bool:
    """Is `path` on a BPF file system?"""
    device = os.stat(path).st_dev
    return any(mount.device == device and mount.type == "bpf" for mount in mounts())
