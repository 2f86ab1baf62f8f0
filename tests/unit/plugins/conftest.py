# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""For every test of plugins: a module runner; for those that load BPF, a private BPF file system,
a private cgroup and real objects."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import _internal
from ansible.module_utils.testing import patch_module_args
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import ObjectSpec

SOURCES = Path(__file__).resolve().parents[2] / "integration" / "targets" / "setup_bpf" / "files"
# Object by name: source, and what is defined for it.
OBJECTS = {
    "one": ("counter", []),
    "two": ("counter", ["-DVERSION=2"]),
    "wider": ("counter", ["-DVERSION=3", "-DWIDER"]),
    "rejected": ("rejected", []),
    "future map": ("lacking", ["-DFUTURE_MAP"]),
    "no tracepoint": ("lacking", []),
    "ops": ("congestion", []),
    "ops two": ("congestion", ["-DVERSION=2"]),
    "ops swapped": ("congestion", ["-DSWAPPED"]),
    "ops renamed": ("congestion", ['-DNAME="tcp_sm_other"']),
    "ops unknown": ("congestion", ["-DTYPE=no_such_ops"]),
}


@pytest.fixture(autouse=True)
def as_on_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of filters make ansible-core believe that this is the controller, where a module's
    warnings would be printed instead of returned."""
    monkeypatch.setattr(_internal, "is_controller", False)


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a module's main() in this process and return its answer."""

    def run(module: ModuleType, *, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {**options, "_ansible_check_mode": check}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


class Objects(dict[str, str]):
    """Paths of the compiled fixtures by name; compiled when asked for, since ansible-test runs
    every test in a process of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> str:
        source, flags = OBJECTS[name]
        path = str(self.folder / f"{name}.bpf.o")
        include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
        subprocess.run(
            [
                *("clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", include, *flags),
                *("-c", str(SOURCES / f"{source}.bpf.c"), "-o", path),
            ],
            check=True,
        )
        self[name] = path
        return path


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of the compiled fixtures by name."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    return Objects(tmp_path_factory.mktemp("objects"))


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


@pytest.fixture
def spec(objects: dict[str, str], bpffs: str, cgroup: str) -> ObjectSpec:
    """Version one, attached in all four ways."""
    return ObjectSpec.parse(
        {
            "name": "unit",
            "path": objects["one"],
            "bpffs": bpffs,
            "attach": [
                {"program": "pass_messages", "type": "map", "map": "sockets"},
                {"program": "count_receives", "type": "tracing"},
                {"program": "dump_sockets", "type": "iter", "map": "storage"},
                {"program": "count_events", "type": "cgroup", "cgroup": f"{cgroup}/a.b"},
            ],
        }
    )
