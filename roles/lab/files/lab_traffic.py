# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real traffic between the lab's containers.

  lab_traffic.py measure ... WORKLOAD    compare plain TCP with accelerated; JSON on stdout
  lab_traffic.py hold ... SECONDS        keep some connections busy, in the background

Plain TCP is the live mode `pass`: each run opens new connections, which that mode leaves alone.
Workloads, their order and the statistics are the benchmark's (role bench, on PYTHONPATH).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tcp_sm_bench.model import OURS, TCP, Sample, Samples, Workload, order, select, summarise
from tcp_sm_bench.tools import RunError, parse_redis, parse_wrk

RUN_SECONDS = 60  # no single run takes longer
REDIS_REQUESTS = 20000  # of the first run, which tells how many make `--seconds`
# A port of its own for each size, as what is learned of one must not colour another.
URLS = {
    1024: "http://server:8001/1k",
    65536: "http://server:8064/64k",
    1048576: "http://server:8100/1m",
}
MODE = 4  # offset of `mode` in struct tcp_sm_config, a little-endian __u32
MODES = {TCP: 0, OURS: 1}


def run(words: list[str]) -> str:
    """Standard output of a program; RunError when it fails or hangs."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"`{' '.join(words)}` took longer than {RUN_SECONDS} s") from error
    if done.returncode:
        text = (done.stderr or done.stdout).strip()[-300:]
        raise RunError(f"`{' '.join(words)}` failed ({done.returncode}): {text}")
    return done.stdout


@dataclass(frozen=True)
class Lab:
    """The containers, through the lab's podman, and the channel's live configuration."""

    podman: Path
    cgroup: Path  # of both containers
    config: Path  # pinned map tcp_sm_config

    def client(self, *words: str) -> str:
        """Run a command in the client container."""
        return run([str(self.podman), "exec", "client", *words])

    def detach(self, *words: str) -> None:
        """Start a command in the client container and leave it running."""
        run([str(self.podman), "exec", "--detach", "client", *words])

    def cpu_seconds(self) -> float:
        """CPU time of both containers so far."""
        for line in (self.cgroup / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise RunError(f"{self.cgroup}/cpu.stat has no usage_usec")

    def read_config(self) -> list[str]:
        """Bytes of the configuration's only entry, each as bpftool writes it (0x1f)."""
        entry = json.loads(run(["bpftool", "-j", "map", "lookup", *self._entry()]))
        return [str(byte) for byte in entry["value"]]

    def write_config(self, value: list[str]) -> None:
        """Replace the entry; connections opened from now on see it."""
        run(["bpftool", "map", "update", *self._entry(), "value", *value])

    def _entry(self) -> list[str]:
        return ["pinned", str(self.config), "key", "0", "0", "0", "0"]

    def set_mode(self, arm: str) -> None:
        """Switch to plain TCP or to acceleration."""
        value = self.read_config()
        value[MODE] = f"0x{MODES[arm]:02x}"
        self.write_config(value)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the configuration back as it was found."""
        before = self.read_config()
        try:
            yield
        finally:
            self.write_config(before)


def redis(lab: Lab, workload: Workload, requests: int) -> tuple[float, float]:
    """(requests, requests per second) of one redis-benchmark."""
    out = lab.client(
        *("redis-benchmark", "-h", "server", "--csv", "-t", workload.mode),
        *("-c", str(workload.clients), "-P", str(workload.pipeline), "-n", str(requests)),
    )
    return requests, parse_redis(out)


def wrk(lab: Lab, workload: Workload, seconds: float) -> tuple[float, float]:
    """(requests, requests per second) of one wrk, which takes whole seconds."""
    length = f"-d{max(1, round(seconds))}s"
    count = parse_wrk(
        lab.client("wrk", "-t1", f"-c{workload.clients}", length, URLS[workload.size])
    )
    return count.ops, count.value


def measure_once(lab: Lab, workload: Workload, amount: float) -> Sample:
    """One run; amount is requests for redis and seconds for wrk."""
    before = lab.cpu_seconds()
    if workload.tool == "redis":
        ops, rate = redis(lab, workload, int(amount))
    else:
        ops, rate = wrk(lab, workload, amount)
    return Sample(rate, (lab.cpu_seconds() - before) / ops)


def warm_up(lab: Lab, workload: Workload, seconds: float) -> float:
    """Run both arms once, since a port's first connection is only watched; return the amount
    for the runs that count."""
    first = REDIS_REQUESTS if workload.tool == "redis" else 1
    for arm in (OURS, TCP):
        lab.set_mode(arm)
        sample = measure_once(lab, workload, first)
    return sample.value * seconds if workload.tool == "redis" else seconds


def measure(lab: Lab, name: str, runs: int, seconds: float) -> dict[str, object]:
    """The report's entry for one workload: both arms in turn, `runs` times."""
    (workload,) = select([name])
    if workload.tool not in ("redis", "wrk"):
        raise ValueError(f"workload {name!r} is not one of redis or nginx")
    samples = Samples({TCP: [], OURS: []})
    with lab.restored():
        amount = warm_up(lab, workload, seconds)
        for turn in order([TCP, OURS], runs):
            for arm in turn:
                lab.set_mode(arm)
                samples.by_arm[arm].append(measure_once(lab, workload, amount))
    return summarise("veth", workload, samples)


def hold(lab: Lab, seconds: int) -> None:
    """Clients that end by themselves, among them two that stay on TCP: a stream of large files,
    and redis-cli, which blocks in recv."""
    # The first connection of a port is only watched.
    lab.client("wrk", "-t1", "-c1", "-d1s", URLS[1024])
    lab.client("redis-benchmark", "-h", "server", "-c", "1", "-t", "get", "-n", "100", "-q")
    lab.detach(
        *("timeout", str(seconds), "redis-benchmark", "-h", "server", "-c", "4", "-t", "get"),
        *("-n", "100000000", "-q"),
    )
    for count, size in ((4, 1024), (1, 1048576)):
        lab.detach("wrk", "-t1", f"-c{count}", f"-d{seconds}s", URLS[size])
    pause = str(max(1, seconds // 3))
    lab.detach("redis-cli", "-h", "server", "-r", "3", "-i", pause, "ping")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure", "hold"))
    parser.add_argument("what", help="workload of measure, seconds of hold")
    parser.add_argument("--podman", type=Path, required=True)
    parser.add_argument("--cgroup", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    lab = Lab(args.podman, args.cgroup, args.config)
    try:
        if args.action == "hold":
            hold(lab, int(args.what))
        else:
            print(json.dumps(measure(lab, args.what, args.runs, args.seconds)))
    except (RunError, ValueError, OSError) as error:
        print(f"lab_traffic: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
