# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's own cgroups and network namespaces.

One cgroup per arm, with a child for each side, so that programs attached to one arm are not
seen by another. Namespaces: NAME-lo with only loopback; NAME-br holds a bridge between
NAME-s (server) and NAME-c (client), as container networks do.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .drive import RUN_TIMEOUT, Run
from .machine import Machine
from .model import HOST_ARMS, UNIX, Workload, port_of
from .tools import TOOLS, Where

SERVER_ADDRESS, CLIENT_ADDRESS = "192.0.2.1", "192.0.2.2"
SERVER, CLIENT = SIDES = ("server", "client")


class StageError(RuntimeError):
    """Something of the stage could not be made or removed; the text says what and why."""


@dataclass(frozen=True)
class Place:
    """Where a topology's server and client run, and the server's address."""

    server_netns: str
    client_netns: str
    address: str


def cgroup2_mount(mounts: str) -> Path:
    """The first cgroup2 mount point in the text of /proc/mounts."""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    raise StageError(
        "no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup"
    )


def place(name: str, topology: str) -> Place:
    """The namespaces of a topology."""
    if topology == "loopback":
        return Place(f"{name}-lo", f"{name}-lo", "127.0.0.1")
    return Place(f"{name}-s", f"{name}-c", SERVER_ADDRESS)


class Stage:
    """Makes and removes everything that carries the benchmark's name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = cgroup2_mount(Path("/proc/mounts").read_text()) / name
        self.directory = Path("/run") / name

    def cgroup(self, arm: str, side: str) -> Path:
        """cgroup of one side of an arm."""
        return self.root / arm / side

    def cpu_seconds(self, arm: str) -> float:
        """CPU time that the arm's processes used so far, ended ones included."""
        for line in (self.root / arm / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise StageError(f"{self.root / arm}/cpu.stat has no usage_usec")

    def up(self) -> None:
        """Makes cgroups, namespaces and the run directory; what is left of an earlier, killed
        run is removed first."""
        self.down()
        self.directory.mkdir(parents=True)
        for arm in HOST_ARMS:
            for side in SIDES:
                self.cgroup(arm, side).mkdir(parents=True)
        for suffix in ("lo", "br", "s", "c"):
            _ip("netns", "add", f"{self.name}-{suffix}")
            _ip("-n", f"{self.name}-{suffix}", "link", "set", "lo", "up")
        _ip("-n", f"{self.name}-br", "link", "add", "br0", "type", "bridge")
        _ip("-n", f"{self.name}-br", "link", "set", "br0", "up")
        for suffix, address in (("s", SERVER_ADDRESS), ("c", CLIENT_ADDRESS)):
            self._join(suffix, address)
        for suffix in ("lo", "s", "c"):
            self._many_ports(f"{self.name}-{suffix}")

    def down(self) -> None:
        """Removes everything; processes that still run in the cgroups are killed."""
        listed = _ip("netns", "list").splitlines()
        for suffix in ("lo", "br", "s", "c"):
            if f"{self.name}-{suffix}" in [line.split()[0] for line in listed if line]:
                _ip("netns", "del", f"{self.name}-{suffix}")
        if self.root.exists():
            for procs in self.root.glob("*/*/cgroup.procs"):
                _kill_all(procs)
            for directory in sorted(self.root.glob("**/"), reverse=True):
                directory.rmdir()
        if self.directory.exists():
            for path in sorted(self.directory.glob("**/*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            self.directory.rmdir()

    def _join(self, suffix: str, address: str) -> None:
        inside, port = f"{self.name}-{suffix}", f"port-{suffix}"
        _ip(
            "-n",
            f"{self.name}-br",
            "link",
            "add",
            port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            inside,
        )
        _ip("-n", f"{self.name}-br", "link", "set", port, "master", "br0", "up")
        _ip("-n", inside, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", inside, "link", "set", "eth0", "up")

    def _many_ports(self, netns: str) -> None:
        """connect-request-close must not run out of ports that wait in TIME_WAIT."""
        _run(
            [
                "nsenter",
                f"--net=/run/netns/{netns}",
                "sysctl",
                "-q",
                "-w",
                "net.ipv4.ip_local_port_range=30000 65000",
            ]
        )


class HostGround:
    """One topology of a stage."""

    def __init__(self, stage: Stage, topology: str, load_tool: str) -> None:
        self.stage, self.topology, self.load_tool = stage, topology, load_tool
        self.place = place(stage.name, topology)
        self.machine = Machine()
        self.facts: dict[str, object] = {}

    def where(self, arm: str, workload: Workload) -> Where:
        directory = self.stage.directory / f"{workload.name}-{arm}"
        port = port_of(workload, arm)
        address = self.place.address
        return Where(workload, arm == UNIX, address, port, str(directory), self.load_tool)

    def start(self, arm: str, where: Where) -> int:
        server = TOOLS[where.workload.tool].server(where)
        words = self._words(arm, SERVER, server.words)
        return self.machine.start(words, where.directory, server.files, where.listens_at)

    def stop(self, arm: str, server: int) -> None:
        self.machine.stop(server)

    def run(self, arm: str, words: list[str]) -> Run:
        words = self._words(arm, CLIENT, words)
        before = self._cpu_seconds(arm)
        out = self.machine.run(words, RUN_TIMEOUT)
        return Run(out, self._cpu_seconds(arm) - before)

    def _words(self, arm: str, side: str, words: list[str]) -> list[str]:
        """Moves itself to the side's cgroup and namespace; the pid stays the program's."""
        netns = self.place.client_netns if side == CLIENT else self.place.server_netns
        procs = self.stage.cgroup(arm, side) / "cgroup.procs"
        enter = ["nsenter", f"--net=/run/netns/{netns}"]
        return ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(procs), *enter, *words]

    def _cpu_seconds(self, arm: str) -> float:
        return self.stage.cpu_seconds(arm) + _ksoftirqd_seconds()


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


def _kill_all(procs: Path) -> None:
    """Kills a cgroup's processes and waits until they are gone."""
    deadline = time.monotonic() + 5
    while procs.read_text():
        (procs.parent / "cgroup.kill").write_text("1")
        if time.monotonic() > deadline:
            raise StageError(f"processes in {procs.parent} do not end: {procs.read_text()}")
        time.sleep(0.01)


def _ip(*words: str) -> str:
    return _run(["ip", *words])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
