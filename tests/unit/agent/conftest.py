# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent, its regions in /dev/shm, and machines that only pretend; all end with the test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_host import Agent, FakeMachine

_numbers = itertools.count()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent that is not started yet, with a folder for regions."""
    shm = Path(f"/dev/shm/tcp_sm_unit_{os.getpid()}_{next(_numbers)}")
    shm.mkdir()
    one = Agent(tmp_path, shm)
    try:
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.kill()
        for path in shm.iterdir():
            path.unlink()
        shm.rmdir()


@pytest.fixture
def machines() -> Iterator[Callable[..., FakeMachine]]:
    """Makes machines that end with the test: `machines(agent, "a")`."""
    made: list[FakeMachine] = []

    def make(agent: Agent, name: str, region: str = "one") -> FakeMachine:
        made.append(agent.machine(name, region))
        return made[-1]

    make.made = made  # type: ignore[attr-defined]
    yield make
    for one in made:
        one.close()


@pytest.fixture
def two(agent: Agent, machines: Any) -> tuple[FakeMachine, FakeMachine]:
    """An agent with region `one`, in which the machines a (chunk 0) and b (chunk 1) run, their
    modules too."""
    agent.region(chunks=[{"owner": "a", "size": "4M"}, {"owner": "b", "size": "4M"}])
    agent.start()
    pair = machines(agent, "a"), machines(agent, "b")
    for index, machine in enumerate(pair):
        machine("greet")
        machine("take", index)
    return pair
