# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the traffic tests: a bpffs, two cgroups and the channel, and their removal."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root
from harness import SLOWNESS, process
from harness.channel import OBJECT, Channel, Config
from harness.scene import Stage

LIMIT = 60
_SERIAL = itertools.count()


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, so that its cleanup still runs."""
    marker = request.node.get_closest_marker("limit")
    seconds = int((marker.args[0] if marker else LIMIT) * SLOWNESS)

    def late(*_: Any) -> None:
        raise TimeoutError(f"the test took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def bpffs() -> Iterator[Path]:
    """A bpffs that only this run uses."""
    if os.geteuid():
        pytest.fail("the traffic tests load BPF programs and make namespaces: run them as root")
    with tempfile.TemporaryDirectory(prefix="tcp_sm_traffic_") as directory:
        subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


@pytest.fixture(scope="session")
def cgroups() -> Iterator[tuple[Path, Path]]:
    """(the one the channel is attached to, the one beside it)."""
    base = Path(cgroup2_root()) / f"tcp_sm_traffic.{os.getpid()}"
    made = [base, base / "inside", base / "outside"]
    for group in made:
        group.mkdir()
    try:
        yield made[1], made[2]
    finally:
        for top, below, _ in os.walk(base, topdown=False):
            for name in below:
                with contextlib.suppress(OSError):
                    (Path(top) / name).rmdir()
        base.rmdir()


@pytest.fixture(scope="session")
def channel(bpffs: Path, cgroups: tuple[Path, Path]) -> Iterator[Channel]:
    """The channel, attached, mode `on`, eager."""
    if not OBJECT.exists():
        pytest.fail(f"{OBJECT} does not exist: run `make bpf` first")
    made = Channel(bpffs / "tcp_sm", cgroups[0])
    made.load()
    made.configure(Config())
    made.attach()
    yield made
    made.remove()


@pytest.fixture
def stage(channel: Channel, cgroups: tuple[Path, Path]) -> Iterator[Stage]:
    """Where scenes run; rules and configuration do not outlive the test."""
    yield Stage(channel, *cgroups)
    channel.reset()


@pytest.fixture
def own(bpffs: Path, cgroups: tuple[Path, Path]) -> Iterator[Stage]:
    """A channel that the test may take apart, on a cgroup of its own."""
    # Another name for each test, which finds nothing of one that failed.
    name = f"own-{next(_SERIAL)}"
    top = cgroups[0].parent / name
    top.mkdir()
    channel = Channel(bpffs / name, top)
    channel.load()
    channel.configure(Config())
    channel.attach()
    yield Stage(channel, top, cgroups[1])
    channel.remove()
    channel.pins.rmdir()
    top.rmdir()


@pytest.fixture
def start() -> Iterator[Any]:
    """Starts children that do not outlive the test."""
    with process.children() as begin:
        yield begin


@pytest.fixture(scope="session", autouse=True)
def many_files() -> None:
    """As many descriptors as this session may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
