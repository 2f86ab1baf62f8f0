# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private BPF file system, a private cgroup and real objects for the loader's tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root

SOURCES = Path(__file__).resolve().parents[4] / "integration" / "targets" / "setup_bpf" / "files"
# Object by name: source, and what is defined for it.
OBJECTS = {
    "one": ("counter", []),
    "two": ("counter", ["-DVERSION=2"]),
    "wider": ("counter", ["-DVERSION=3", "-DWIDER"]),
    "rejected": ("rejected", []),
}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of the compiled fixtures by name."""
    if os.geteuid() != 0 or not shutil.which("clang"):
        pytest.skip("needs root and clang")
    folder = tmp_path_factory.mktemp("objects")
    paths = {}
    for name, (source, flags) in OBJECTS.items():
        paths[name] = str(folder / f"{name}.bpf.o")
        include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
        subprocess.run(
            [
                *("clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", include, *flags),
                *("-c", str(SOURCES / f"{source}.bpf.c"), "-o", paths[name]),
            ],
            check=True,
        )
    return paths


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[str]:
    """A BPF file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = tmp_path / "bpf"
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(path)], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A new cgroup with two children, `a.b` and `c`, as the modules name it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = f"tcp_sm_unit_{os.getpid()}"
    top = Path(cgroup2_root()) / name
    children = [top / "a.b", top / "c"]
    for child in children:
        child.mkdir(parents=True)
    try:
        yield f"/{name}"
    finally:
        for path in (*children, top):
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
