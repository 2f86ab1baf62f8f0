# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs servers and clients of one workload, arm against arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from .model import Sample, Samples, Workload, order, summarise
from .tools import TOOLS, Count, RunError, Where

RUN_TIMEOUT = 30.0
WARM_UP_SECONDS = 0.1
WRK_RUNS = 5  # a second each, and of many connections each: less noisy


@dataclass(frozen=True)
class Run:
    """What one run of a client left: its output, and what was spent on it.

    cpu: seconds of both ends; host_cpu: of the hypervisor on both, where that is known;
    counts: further things by name.
    """

    out: str
    cpu: float
    host_cpu: float | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


class Ground(Protocol):
    """Where the ends of one topology run. Its methods raise RunError.

    facts: goes into the report's entry.
    """

    topology: str
    facts: dict[str, object]

    def where(self, arm: str, workload: Workload) -> Where:
        """What both ends of the arm agree on."""

    def start(self, arm: str, where: Where) -> int:
        """Start the arm's server, listening when this returns; returns what `stop` takes."""

    def stop(self, arm: str, server: int) -> None:
        """End it."""

    def run(self, arm: str, words: list[str]) -> Run:
        """Run the arm's client."""


@dataclass
class Pace:
    """Operations per second of a workload as far as known; zero before the first run.

    Shared by all arms, since each has to do the same.
    """

    rate: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How to run a workload: which arms, how many runs of each, and how long."""

    arms: list[str]
    runs: int
    seconds: float


@dataclass(frozen=True)
class Arm:
    """One arm of one workload: where it runs."""

    name: str
    workload: Workload
    ground: Ground
    pace: Pace

    @property
    def where(self) -> Where:
        return self.ground.where(self.name, self.workload)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A server process, ready when entered."""
        server = self.ground.start(self.name, self.where)
        try:
            yield
        finally:
            self.ground.stop(self.name, server)

    def run(self, seconds: float) -> tuple[Count, Run]:
        """One run of the client against the server that runs."""
        client = TOOLS[self.workload.tool].client(self.where, seconds, self.pace.rate)
        run = self.ground.run(self.name, client.words)
        return client.count(run.out), run


def _measure(arm: Arm, seconds: float) -> Sample:
    """One run with a new server: where a process lies in memory and on the CPUs shifts its speed
    for as long as it lives, which would look like a difference between arms."""
    with arm.serving():
        count, run = arm.run(seconds)
    return Sample(
        count.value,
        run.cpu / count.ops,
        None if run.host_cpu is None else run.host_cpu / count.ops,
        {name: value / count.ops for name, value in run.counts.items()},
    )


def _warm_up(arm: Arm) -> None:
    """The first connection of a server port is only watched; all arms get the same start."""
    # wrk opens all of its connections at once and knows whole seconds only: one has to do.
    with arm.serving():
        for _time in range(1 if arm.workload.tool == "wrk" else 2):
            count, _run = arm.run(WARM_UP_SECONDS)
            arm.pace.rate = arm.pace.rate or count.value


def run_workload(ground: Ground, workload: Workload, settings: Settings) -> dict[str, object]:
    """Runs every arm, interleaved; returns the report's entry.

    An arm that fails is noted in `errors`, and its failed runs are left out.
    """
    pace = Pace()
    wanted = {
        name: Arm(name, workload, ground, pace)
        for name in workload.arms(ground.topology)
        if name in settings.arms
    }
    rounds = min(settings.runs, WRK_RUNS) if workload.tool == "wrk" else settings.runs
    samples = Samples({name: [] for name in wanted})
    for name, arm in wanted.items():
        with _noting(samples, name):
            _warm_up(arm)
    for turn in order(list(wanted), rounds):
        taken: dict[str, Sample] = {}
        for name in turn:
            with _noting(samples, name):
                taken[name] = _measure(wanted[name], settings.seconds)
        for name, row in samples.by_arm.items():
            row.append(taken.get(name))
    return summarise(ground.topology, workload, samples) | ground.facts


@contextmanager
def _noting(samples: Samples, name: str) -> Iterator[None]:
    try:
        yield
    except RunError as error:
        samples.errors.append(f"{name}: {error}")
