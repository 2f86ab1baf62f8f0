# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs servers and clients of one workload, arm against arm."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from .model import UNIX, Sample, Samples, Workload, order, port_of, summarise
from .stage import CLIENT, SERVER, Place, Stage, place

RUN_TIMEOUT = 30.0
READY_TIMEOUT = 10.0
WARM_UP_SECONDS = 0.1
WRK_RUNS = 5  # a second each, and of many connections each: less noisy

_NGINX = """daemon off; worker_processes 1; error_log stderr; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen {address}:{port}; root {directory}; }}
}}
"""


class RunError(RuntimeError):
    """One run gave no result; the text says which and why."""


@dataclass(frozen=True)
class Count:
    """What a client reports: operations, and the value in the workload's unit."""

    ops: float
    value: float


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
    load_tool: Path


@dataclass(frozen=True)
class Arm:
    """One arm of one workload: where it runs."""

    name: str
    workload: Workload
    place: Place
    stage: Stage
    load_tool: Path
    pace: Pace

    @property
    def port(self) -> int:
        return port_of(self.workload, self.name)

    @property
    def directory(self) -> Path:
        return self.stage.directory / f"{self.workload.name}-{self.name}"

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    def command(self, side: str, words: list[str]) -> list[str]:
        """Moves itself to the side's cgroup and namespace; the pid stays the program's."""
        netns = self.place.client_netns if side == CLIENT else self.place.server_netns
        procs = self.stage.cgroup(self.name, side) / "cgroup.procs"
        return [
            "sh",
            "-c",
            'echo 0 > "$0" && exec "$@"',
            str(procs),
            "nsenter",
            f"--net=/run/netns/{netns}",
            *words,
        ]

    def run(self, words: list[str]) -> str:
        """A client's standard output; RunError when it fails or hangs."""
        command = self.command(CLIENT, words)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=RUN_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"`{' '.join(words)}` hung for {RUN_TIMEOUT:.0f} s") from error
        if done.returncode:
            raise RunError(
                f"`{' '.join(words)}` failed ({done.returncode}): "
                f"{(done.stderr or done.stdout).strip()[-300:]}"
            )
        return done.stdout


class Server(AbstractContextManager["Server"]):
    """A server process of one arm, ready when entered."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm

    def __enter__(self) -> Server:
        arm = self.arm
        arm.directory.mkdir(parents=True, exist_ok=True)
        self.log = (arm.directory / "server.log").open("w+")
        words = SERVERS[arm.workload.tool](arm)
        self.process = subprocess.Popen(
            arm.command(SERVER, words), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        try:
            self._wait_ready(words)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _wait_ready(self, words: list[str]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise RunError(
                    f"server `{' '.join(words)}` did not start listening: "
                    f"{self.log.read().strip()[-300:]}"
                )
            time.sleep(0.005)

    def _listens(self) -> bool:
        """Looks the listener up in the server's own tables: a probing connection would be the
        first connection that the accelerator learns from."""
        tables = Path(f"/proc/{self.process.pid}/net")
        if self.arm.name == UNIX:
            return is_listening_unix((tables / "unix").read_text(), str(self.arm.socket))
        return is_listening_tcp((tables / "tcp").read_text(), self.arm.port)


def is_listening_tcp(table: str, port: int) -> bool:
    """Whether /proc/net/tcp shows a listener (state 0A) on the port."""
    return re.search(rf"[0-9A-F]{{8}}:{port:04X} 00000000:0000 0A ", table) is not None


def is_listening_unix(table: str, path: str) -> bool:
    """Whether /proc/net/unix shows a socket with __SO_ACCEPTCON (flags 00010000) at the path."""
    rows = [line.split() for line in table.splitlines()]
    return any(len(row) == 8 and row[3] == "00010000" and row[7] == path for row in rows)


def _load_target(arm: Arm) -> list[str]:
    return [str(arm.socket), "0"] if arm.name == UNIX else [arm.place.address, str(arm.port)]


def _load_server(arm: Arm) -> list[str]:
    return [str(arm.load_tool), "serve", *_load_target(arm)]


def _redis_server(arm: Arm) -> list[str]:
    listen = (
        ["--port", "0", "--unixsocket", str(arm.socket)]
        if arm.name == UNIX
        else ["--port", str(arm.port), "--bind", arm.place.address]
    )
    return [
        "redis-server",
        *listen,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(arm.directory),
        "--protected-mode",
        "no",
    ]


def _wrk_server(arm: Arm) -> list[str]:
    (arm.directory / "file").write_bytes(os.urandom(arm.workload.size))
    arm.directory.chmod(0o755)
    config = arm.directory / "nginx.conf"
    config.write_text(
        _NGINX.format(directory=arm.directory, address=arm.place.address, port=arm.port)
    )
    return ["nginx", "-c", str(config), "-e", "stderr"]


def _load_client(arm: Arm, seconds: float) -> Count:
    workload = arm.workload
    out = json.loads(
        arm.run(
            [
                str(arm.load_tool),
                workload.mode,
                *_load_target(arm),
                str(workload.size),
                str(seconds),
            ]
        )
    )
    if not out["ops"]:
        raise RunError(f"{workload.name} over {arm.name} moved nothing in {seconds} s")
    value = {
        "MB/s": out["bytes"] / out["seconds"] / 1e6,
        "conn/s": out["ops"] / out["seconds"],
        "us": out["seconds"] / out["ops"] * 1e6,
    }[workload.unit]
    return Count(out["ops"], value)


def _redis_client(arm: Arm, seconds: float) -> Count:
    """redis-benchmark counts requests, not seconds: 2,000 batches tell how many fit."""
    target = (
        ["-s", str(arm.socket)]
        if arm.name == UNIX
        else ["-h", arm.place.address, "-p", str(arm.port)]
    )
    requests = int(seconds * arm.pace.rate) or 2000 * arm.workload.pipeline
    out = arm.run(
        [
            "redis-benchmark",
            *target,
            "-c",
            str(arm.workload.clients),
            "-n",
            str(requests),
            "-P",
            str(arm.workload.pipeline),
            "-t",
            arm.workload.mode,
            "--csv",
        ]
    )
    return Count(requests, parse_redis(out))


def _wrk_client(arm: Arm, seconds: float) -> Count:
    """wrk takes whole seconds only."""
    return parse_wrk(
        arm.run(
            [
                "wrk",
                "-t1",
                f"-c{arm.workload.clients}",
                f"-d{max(1, round(seconds))}s",
                f"http://{arm.place.address}:{arm.port}/file",
            ]
        )
    )


def parse_redis(text: str) -> float:
    """Requests per second from redis-benchmark's CSV."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 1 and row[0] != "test"]
    if len(rows) != 1:
        raise RunError(f"redis-benchmark printed {text.strip()[-300:]!r} in place of one result")
    return float(rows[0][1])


def parse_wrk(text: str) -> Count:
    """Requests, and requests per second, from wrk's report; errors in it are failures."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    total = re.search(r"^\s*(\d+) requests in ", text, re.M)
    trouble = re.search(r"Socket errors:.*|Non-2xx.*", text)
    if not rate or not total or trouble or float(rate[1]) == 0:
        reason = trouble[0] if trouble else text.strip()[-300:]
        raise RunError(f"wrk reports no clean result: {reason}")
    return Count(float(total[1]), float(rate[1]))


SERVERS = {"load": _load_server, "redis": _redis_server, "wrk": _wrk_server}
CLIENTS = {"load": _load_client, "redis": _redis_client, "wrk": _wrk_client}


def _measure(arm: Arm, seconds: float) -> Sample:
    """One run with a new server: where a process lies in memory and on the CPUs shifts its speed
    for as long as it lives, which would look like a difference between arms."""
    with Server(arm):
        return _measure_client(arm, seconds)


def _measure_client(arm: Arm, seconds: float) -> Sample:
    before = arm.stage.cpu_seconds(arm.name) + _ksoftirqd_seconds()
    count = CLIENTS[arm.workload.tool](arm, seconds)
    used = arm.stage.cpu_seconds(arm.name) + _ksoftirqd_seconds() - before
    return Sample(count.value, used / count.ops)


@cache
def _ksoftirqd() -> tuple[Path, ...]:
    """schedstat files of the kernel's packet threads; none when /proc hides them."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if comm.read_text().startswith("ksoftirqd/"):
                found.append(comm.parent / "schedstat")
    return tuple(found)


def _ksoftirqd_seconds() -> float:
    """Packet work that the kernel moved out of the processes; machine-wide, small."""
    return sum(int(path.read_text().split()[0]) for path in _ksoftirqd()) / 1e9


def _warm_up(arm: Arm) -> None:
    """The first connection of a server port is only watched; all arms get the same start."""
    # wrk opens all of its connections at once and knows whole seconds only: one has to do.
    with Server(arm):
        for _time in range(1 if arm.workload.tool == "wrk" else 2):
            count = CLIENTS[arm.workload.tool](arm, WARM_UP_SECONDS)
            arm.pace.rate = arm.pace.rate or count.value


def run_workload(
    stage: Stage, topology: str, workload: Workload, settings: Settings
) -> dict[str, object]:
    """Runs every arm, interleaved; returns the report's entry.

    An arm that fails is noted in `errors`, and its failed runs are left out.
    """
    where, pace = place(stage.name, topology), Pace()
    wanted = {
        name: Arm(name, workload, where, stage, settings.load_tool, pace)
        for name in workload.arms
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
    return summarise(topology, workload, samples)


@contextmanager
def _noting(samples: Samples, name: str) -> Iterator[None]:
    try:
        yield
    except RunError as error:
        samples.errors.append(f"{name}: {error}")
