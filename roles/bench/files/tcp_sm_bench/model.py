# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured, in which order, and what is concluded. Standard library only, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TCP, OURS, NAIVE, UNIX = ARMS = ("tcp", "ours", "naive", "unix")
TOPOLOGIES = ("loopback", "veth")
# Probability with which the interval should cover the true median: of 8 values, the second to
# the seventh do so with 0.930, of 5 the extremes with 0.938.
COVERAGE = 0.92
FIRST_PORT = 20000

_SIZES = {
    "64": 64,
    "1k": 1024,
    "4k": 4096,
    "16k": 16384,
    "64k": 65536,
    "256k": 262144,
    "1m": 1048576,
}
_LOAD_UNITS = {
    "pingpong": ("us", "lower"),
    "up": ("MB/s", "higher"),
    "down": ("MB/s", "higher"),
    "short": ("conn/s", "higher"),
}


@dataclass(frozen=True)
class Workload:
    """One row of the report. `tool` is load, redis or wrk; the rest depends on it.

    mode: load's mode, or redis' command; size: bytes; pipeline: redis' -P.
    """

    name: str
    tool: str
    mode: str
    size: int
    unit: str
    better: str
    pipeline: int = 1
    clients: int = 1

    @property
    def arms(self) -> tuple[str, ...]:
        """wrk cannot speak AF_UNIX."""
        return tuple(arm for arm in ARMS if arm != UNIX or self.tool != "wrk")


@dataclass(frozen=True)
class Sample:
    """One run of one arm: the workload's unit, and CPU seconds per operation."""

    value: float
    cpu_per_op: float


@dataclass
class Samples:
    """Runs of one workload by arm and round, None where there is none, and what went wrong."""

    by_arm: dict[str, list[Sample | None]]
    errors: list[str] = field(default_factory=list)


def _load(mode: str, label: str) -> Workload:
    unit, better = _LOAD_UNITS[mode]
    name = {"up": "stream-up", "down": "stream-down", "short": "connect-request-close"}.get(
        mode, mode
    )
    return Workload(f"{name}-{label}", "load", mode, _SIZES[label], unit, better)


def all_workloads() -> list[Workload]:
    """Every workload, in the order in which they are run and reported."""
    found = [_load("pingpong", label) for label in ("64", "1k", "16k", "64k")]
    found += [_load(mode, label) for mode in ("up", "down") for label in _SIZES]
    found.append(_load("short", "64"))
    for pipeline, suffix in ((1, ""), (16, "-p16")):
        found += [
            Workload(f"redis-{mode}-c50{suffix}", "redis", mode, 3, "req/s", "higher", pipeline, 50)
            for mode in ("get", "set")
        ]
    found += [
        Workload(f"wrk-{label}", "wrk", "get", _SIZES[label], "req/s", "higher", 1, 32)
        for label in ("1k", "64k", "1m")
    ]
    return found


QUICK = (
    "pingpong-64",
    "stream-up-64k",
    "connect-request-close-64",
    "redis-get-c50",
    "redis-set-c50-p16",
    "wrk-64k",
)


def select(names: Iterable[str]) -> list[Workload]:
    """Workloads by name; a name without a size ("stream-up") means all of that kind.

    Raises ValueError naming what is unknown.
    """
    chosen: list[Workload] = []
    for name in names:
        hits = [w for w in all_workloads() if w.name == name]
        hits = hits or [w for w in all_workloads() if w.name.startswith(f"{name}-")]
        if not hits:
            known = ", ".join(w.name for w in all_workloads())
            raise ValueError(f"workload {name!r} is unknown; choose from: {known}")
        chosen += [w for w in hits if w not in chosen]
    return chosen


def port_of(workload: Workload, arm: str) -> int:
    """A server port of its own, as what is learned of one port must not colour another."""
    names = [w.name for w in all_workloads()]
    return FIRST_PORT + len(ARMS) * names.index(workload.name) + ARMS.index(arm)


def order(arms: Sequence[str], runs: int) -> list[list[str]]:
    """One list of arms per round: rotated and every other one reversed, so that no arm always
    runs first or always follows the same one. Arms that are there for orientation sit out every
    other pair of rounds, which leaves time for more rounds of the two that are judged."""
    rounds = []
    for number in range(runs):
        shift = (number // 2) % len(arms)
        turned = [*arms[shift:], *arms[:shift]]
        present = [arm for arm in turned if arm in (TCP, OURS) or number % 4 < 2]
        rounds.append(present[::-1] if number % 2 else present)
    return rounds


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Order-statistic confidence interval of the median: no assumption but independence.

    The narrowest pair of symmetric ranks that covers it with COVERAGE, or the extremes when
    there are too few values for that.
    """
    ordered = sorted(values)
    count = len(ordered)
    best = 0
    for rank in range(count // 2):
        outside = 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count
        if 1 - outside >= COVERAGE:
            best = rank
    return ordered[best], ordered[count - 1 - best]


def _ratios(
    one: Sequence[Sample | None], base: Sequence[Sample | None], better: str
) -> list[float]:
    pairs = [(a.value, b.value) for a, b in zip(one, base, strict=True) if a and b]
    return [b / a if better == "lower" else a / b for a, b in pairs]


def _median(samples: Sequence[Sample | None]) -> float | None:
    values = [s.value for s in samples if s]
    return statistics.median(values) if values else None


def summarise(topology: str, workload: Workload, samples: Samples) -> dict[str, object]:
    """The report's entry for one workload, see docs/measuring.md for its fields.

    `ratio` and `ci` come from runs paired by round; `cpu_ratio` is CPU time per operation of
    ours over TCP's, so below 1 is better.
    """
    by_arm: Mapping[str, list[Sample | None]] = samples.by_arm
    runs = max(map(len, by_arm.values()), default=0)
    tcp, ours = (by_arm.get(arm) or [None] * runs for arm in (TCP, OURS))
    ratios = _ratios(ours, tcp, workload.better)
    cpu = [
        a.cpu_per_op / b.cpu_per_op
        for a, b in zip(ours, tcp, strict=True)
        if a and b and b.cpu_per_op > 0
    ]
    entry: dict[str, object] = {
        "topology": topology,
        "workload": workload.name,
        "unit": workload.unit,
        "better": workload.better,
    }
    entry.update({arm: _median(by_arm[arm]) if arm in by_arm else None for arm in ARMS})
    entry.update(
        {
            "ratio": statistics.median(ratios) if ratios else None,
            "ci": list(median_interval(ratios)) if ratios else None,
            "runs": len(ratios),
            "cpu_ratio": statistics.median(cpu) if cpu else None,
            "cpu_us_per_op": {
                arm: statistics.median([s.cpu_per_op for s in taken if s]) * 1e6
                for arm, taken in by_arm.items()
                if any(taken)
            },
            "ratios": {
                arm: _ratios(taken, tcp, workload.better)
                for arm, taken in by_arm.items()
                if arm != TCP
            },
            "errors": samples.errors,
        }
    )
    return entry
