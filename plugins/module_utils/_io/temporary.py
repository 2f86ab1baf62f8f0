# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names under which files are made before they are put in place, and what killed runs left."""

from __future__ import annotations

import contextlib
import os
import re


def temporary_name(path: str) -> str:
    """Where this process makes the file for `path`."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")


def leftovers(path: str) -> list[str]:
    """What runs that were killed left when they made the file for `path`.

    Only plain files of processes that are gone. One of our own number is of an earlier process,
    for this one has not made any yet.
    """
    folder, name = os.path.split(path)
    pattern = re.compile(rf"\.{re.escape(name)}\.([1-9][0-9]*)")
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False) and _is_gone(int(match[1])):
                found.append(entry.path)
    return sorted(found)


def remove_leftovers(path: str) -> None:
    """Delete them; one that cannot be deleted is in nobody's way."""
    for one in leftovers(path):
        with contextlib.suppress(OSError):
            os.unlink(one)


def _is_gone(pid: int) -> bool:
    return pid == os.getpid() or not os.path.exists(f"/proc/{pid}")
