# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured, in which order, and what is concluded. Standard library only, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ARMS = ("tcp", "ours", "naive", "unix", "spin", "loopback")
TCP, OURS, NAIVE, UNIX, SPIN, LOOPBACK = ARMS
VM = "vm"
HOST = ("loopback", "veth")
TOPOLOGIES = (*HOST, VM)
# Which arms a topology has.
HOST_ARMS = (TCP, OURS, NAIVE, UNIX)
VM_ARMS = (TCP, OURS, SPIN, LOOPBACK)
# Those that run in every round, since a ratio to TCP is concluded from them.
JUDGED = (TCP, OURS, SPIN)
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
_LOAD_NAMES = {
    "pingpong": "pingpong",
    "up": "stream-up",
    "down": "stream-down",
    "short": "connect-request-close",
}


@dataclass(frozen=True)
class Workload:
    """One row of the report. `tool` is load, redis or wrk; the rest depends on it.

    mode: load's mode, or redis' command; size: bytes; pipeline: redis' -P; blocking: both ends
    sleep in send and recv instead of epoll; places: the topologies that have it.
    """

    name: str
    tool: str
    mode: str
    size: int
    unit: str
    better: str
    pipeline: int = 1
    clients: int = 1
    blocking: bool = False
    places: tuple[str, ...] = TOPOLOGIES

    def arms(self, topology: str) -> tuple[str, ...]:
        """wrk cannot speak AF_UNIX."""
        arms = VM_ARMS if topology == VM else HOST_ARMS
        return tuple(arm for arm in arms if arm != UNIX or self.tool != "wrk")


@dataclass(frozen=True)
class Sample:
    """One run of one arm: the workload's unit, and CPU seconds per operation.

    host_cpu_per_op: what the hypervisor spent on both machines, where that is known.
    counts: further things per operation, by name.
    """

    value: float
    cpu_per_op: float
    host_cpu_per_op: float | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Samples:
    """Runs of one workload by arm and round, None where there is none, and what went wrong."""

    by_arm: dict[str, list[Sample | None]]
    errors: list[str] = field(default_factory=list)


def _load(mode: str, label: str) -> Workload:
    unit, better = _LOAD_UNITS[mode]
    return Workload(f"{_LOAD_NAMES[mode]}-{label}", "load", mode, _SIZES[label], unit, better)


def _blocking(mode: str, label: str) -> Workload:
    """Between containers such connections stay on TCP."""
    unit, better = _LOAD_UNITS[mode]
    name, size = f"blocking-{_LOAD_NAMES[mode]}-{label}", _SIZES[label]
    return Workload(name, "load", mode, size, unit, better, blocking=True, places=(VM,))


def all_workloads() -> list[Workload]:
    """Every workload, in the order in which they are run and reported."""
    found = [_load("pingpong", label) for label in ("64", "1k", "16k", "64k")]
    found += [_load(mode, label) for mode in ("up", "down") for label in _SIZES]
    found.append(_load("short", "64"))
    found += [_blocking("pingpong", label) for label in ("64", "1k", "16k", "64k")]
    found += [_blocking("up", label) for label in ("64", "4k", "64k", "1m")]
    for pipeline, suffix in ((1, ""), (16, "-p16")):
        found += [
            Workload(f"redis-{mode}-c50{suffix}", "redis", mode, 3, "req/s", "higher", pipeline, 50)
            for mode in ("get", "set")
        ]
    found += [
        Workload(f"wrk-{label}", "wrk", "get", _SIZES[label], "req/s", "higher", 1, 32)
        for label in ("1k", "64k")
    ]
    found.append(
        Workload("wrk-1m", "wrk", "get", _SIZES["1m"], "req/s", "higher", 1, 32, places=HOST)
    )
    return found


QUICK = (
    "pingpong-64",
    "stream-up-64k",
    "connect-request-close-64",
    "blocking-pingpong-64",
    "blocking-stream-up-64k",
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
    other pair of rounds, which leaves time for more rounds of those that are judged."""
    rounds = []
    for number in range(runs):
        shift = (number // 2) % len(arms)
        turned = [*arms[shift:], *arms[:shift]]
        present = [arm for arm in turned if arm in JUDGED or number % 4 < 2]
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


Row = Sequence[Sample | None]


def _paired(one: Row, base: Row) -> list[tuple[Sample, Sample]]:
    """Rounds in which both arms gave a result."""
    return [(a, b) for a, b in zip(one, base, strict=True) if a and b]


def _ratios(one: Row, base: Row, better: str) -> list[float]:
    pairs = [(a.value, b.value) for a, b in _paired(one, base)]
    return [b / a if better == "lower" else a / b for a, b in pairs]


def _median(values: Iterable[float]) -> float | None:
    """None where there are no values."""
    taken = list(values)
    return statistics.median(taken) if taken else None


def _against_tcp(one: Row, tcp: Row, better: str) -> dict[str, object]:
    """Ratio, its interval, and CPU ratios of one arm, from rounds in which TCP ran as well."""
    ratios = _ratios(one, tcp, better)
    pairs = _paired(one, tcp)
    hosts = [(a.host_cpu_per_op, b.host_cpu_per_op) for a, b in pairs]
    return {
        "ratio": _median(ratios),
        "ci": list(median_interval(ratios)) if ratios else None,
        "runs": len(ratios),
        "cpu_ratio": _median(a.cpu_per_op / b.cpu_per_op for a, b in pairs if b.cpu_per_op > 0),
        "host_cpu_ratio": _median(a / b for a, b in hosts if a is not None and b),
    }


def _counts(row: Row) -> dict[str, float]:
    """Medians of the further counts of one arm."""
    samples = [sample for sample in row if sample]
    names = {name: None for sample in samples for name in sample.counts}
    return {
        name: statistics.median(s.counts[name] for s in samples if name in s.counts)
        for name in names
    }


def summarise(topology: str, workload: Workload, samples: Samples) -> dict[str, object]:
    """The report's entry for one workload, see docs/measuring.md for its fields.

    `ratio` and `ci` come from runs paired by round; `cpu_ratio` is CPU time per operation of
    ours over TCP's, so below 1 is better.
    """
    by_arm: Mapping[str, list[Sample | None]] = samples.by_arm
    runs = max(map(len, by_arm.values()), default=0)
    tcp, ours, spin = (by_arm.get(arm) or [None] * runs for arm in (TCP, OURS, SPIN))
    entry: dict[str, object] = {
        "topology": topology,
        "workload": workload.name,
        "unit": workload.unit,
        "better": workload.better,
    }
    entry.update({arm: _median(s.value for s in by_arm.get(arm, ()) if s) for arm in ARMS})
    entry.update(_against_tcp(ours, tcp, workload.better))
    spinning = _against_tcp(spin, tcp, workload.better)
    entry.update({f"spin_{name}": spinning[name] for name in ("ratio", "ci", "cpu_ratio")})
    present = {arm: row for arm, row in by_arm.items() if any(row)}
    entry.update(
        {
            "cpu_us_per_op": {
                arm: statistics.median(s.cpu_per_op for s in row if s) * 1e6
                for arm, row in present.items()
            },
            "ratios": {
                arm: _ratios(row, tcp, workload.better) for arm, row in by_arm.items() if arm != TCP
            },
            "per_op": {arm: counts for arm, row in present.items() if (counts := _counts(row))},
            "errors": samples.errors,
        }
    )
    return entry
