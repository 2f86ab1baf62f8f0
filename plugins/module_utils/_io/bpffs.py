# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pin folder of one object: `<bpffs>/<name>/{progs,maps,links}`.

A new version is staged beside it in `<bpffs>/<name>%new` (the name of an object has no
percent sign; bpffs has no dots), then both folders are exchanged in one step, so that a
reader or a kill -9 sees the old set of pins or the new one, never a mixture. What is left in
the staging folder is waste by definition, and the next run throws it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from .._model.errors import ForeignError
from .._model.spec import escape, unescape
from .libbpf import Bpf

FOLDERS = {"progs": "prog", "maps": "map", "links": "link"}
NAME_LENGTH = 15
# Between the name of a struct_ops map and its digest. No name has it.
MARK = "#"
AT_FDCWD = -100
RENAME_EXCHANGE = 2


@dataclass
class Pinned:
    """Open descriptors of a pin folder by name; a context manager that closes them."""

    progs: dict[str, int] = field(default_factory=dict)
    maps: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    # Digests of struct_ops maps, by name: the kernel cannot tell what their object said.
    contents: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Pinned:
        return self

    def __exit__(self, *_exc: object) -> None:
        # A dropped link detaches here: the cgroups' first, which feed the others.
        links = sorted(self.links, key=lambda key: "@" not in key)
        for fd in (*(self.links[key] for key in links), *self.progs.values(), *self.maps.values()):
            os.close(fd)


class PinFolder:
    """Reads and changes the pins of the object `name` below `bpffs`."""

    def __init__(self, bpf: Bpf, bpffs: str, name: str) -> None:
        self.bpf = bpf
        self.path = os.path.join(bpffs, name)
        self.staging = f"{self.path}%new"

    def exists(self) -> bool:
        """Is anything pinned under this name?"""
        return os.path.lexists(self.path)

    def has_waste(self) -> bool:
        """Did a run that was killed leave its staging folder?"""
        return os.path.lexists(self.staging)

    def pin_path(self, folder: str, name: str, staged: bool = False, content: str = "") -> str:
        """Where the object `name` of kind `folder` is pinned; `content` is a struct_ops map's
        digest."""
        file = name if folder == "links" else escape(name)
        file += MARK + content if content else ""
        return os.path.join(self.staging if staged else self.path, folder, file)

    def open(self) -> Pinned:
        """Open every pin; ForeignError for anything that this collection would not pin."""
        with contextlib.ExitStack() as stack:
            pinned = stack.enter_context(Pinned())
            for folder, name, content, path in self._walk():
                fd = self.bpf.obj_get(path)
                getattr(pinned, folder)[name] = fd
                if content:
                    pinned.contents[name] = content
                self._check(folder, name, path, fd)
            stack.pop_all()
            return pinned

    def _walk(self) -> Iterator[tuple[str, str, str, str]]:
        """(folder, name, digest of a struct_ops map, path) of each pin."""
        if not self.exists():
            return
        if not _is_folder(self.path):
            raise _foreign(self.path, "it is not a folder")
        for folder in sorted(os.listdir(self.path)):
            path = os.path.join(self.path, folder)
            if folder not in FOLDERS or not _is_folder(path):
                raise _foreign(path, f"the folder of an object holds {', '.join(FOLDERS)}")
            for file in sorted(os.listdir(path)):
                name, content = file, ""
                if folder != "links":
                    name, _mark, content = unescape(file).partition(MARK)
                if _is_folder(os.path.join(path, file)):
                    raise _foreign(os.path.join(path, file), "it is a folder")
                yield folder, name, content, os.path.join(path, file)

    def _check(self, folder: str, name: str, path: str, fd: int) -> None:
        kind = self.bpf.kind(fd)
        if kind != FOLDERS[folder]:
            raise _foreign(
                path, f"it is a {kind or 'foreign object'} where only {folder} are pinned"
            )
        if folder == "progs":
            real = self.bpf.prog_info(fd).name
        elif folder == "maps":
            real = self.bpf.map_info(fd).name
        else:
            return
        # The kernel keeps 15 characters; internal maps (".rodata") are prefixed there.
        if not name.startswith(".") and real != name[:NAME_LENGTH]:
            raise _foreign(path, f"the kernel calls it {real!r}")

    # -- changes -----------------------------------------------------------------------------

    def clean_waste(self) -> None:
        """Remove a staging folder that a killed run left, with whatever it keeps attached."""
        if self.has_waste():
            self.remove_tree(self.staging)

    def stage(self) -> None:
        """Make the empty staging folder."""
        self.mkdir(self.staging)
        for folder in FOLDERS:
            self.mkdir(os.path.join(self.staging, folder))

    def commit(self) -> None:
        """Put the staging folder in place: the point of no return. The old set of pins is
        then the waste."""
        if self.exists():
            self.exchange(self.staging, self.path)
        else:
            self.rename(self.staging, self.path)

    def retire(self) -> None:
        """Turn the pins into waste in one step, for removal."""
        self.rename(self.path, self.staging)

    def remove_tree(self, top: str) -> None:
        """Remove pins: links first, and of these the cgroups' first, which feed the others."""
        if not _is_folder(top):
            self.unlink(top)
            return
        for name in sorted(os.listdir(top), key=lambda name: (name != "links", "@" not in name)):
            self.remove_tree(os.path.join(top, name))
        self.rmdir(top)

    # Each change is one method, so that a test can fail or kill at every one of them.

    def pin(self, fd: int, path: str) -> None:
        """Pin a descriptor."""
        self.bpf.obj_pin(fd, path)

    def mkdir(self, path: str) -> None:
        """Make a folder that only root may enter."""
        os.mkdir(path, 0o700)

    def unlink(self, path: str) -> None:
        """Remove one pin."""
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        os.rmdir(path)

    def rename(self, source: str, target: str) -> None:
        """Rename a folder."""
        os.rename(source, target)

    def exchange(self, first: str, second: str) -> None:
        """Exchange two folders atomically (bpffs can since Linux 5.16)."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(
            AT_FDCWD,
            os.fsencode(first),
            AT_FDCWD,
            os.fsencode(second),
            ctypes.c_uint(RENAME_EXCHANGE),
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), second)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _foreign(path: str, why: str) -> ForeignError:
    return ForeignError(
        f"{path} was not pinned by this collection: {why}. Nothing was changed. "
        "Choose another name, or remove it by hand if nothing needs it."
    )
