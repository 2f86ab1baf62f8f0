# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do Python's own test_socket and test_asyncio end inside an accelerated cgroup as outside?"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import SLOWNESS, process
from harness.channel import Channel, Config
from harness.process import Said
from harness.scene import LEARNING, Stage

LIMIT = 240
SUITE = Path(__file__).parent / "harness" / "suite.py"

# AF_VSOCK is another address family, and without a vsock device its tests wait for ever. The other
# one (Python 3.13) counts on small SO_SNDBUF and SO_RCVBUF: test_known_limits.py has that.
EXCLUDED = r"VSOCK|TestServer2\.test_abort_clients"

# What of test_asyncio touches sockets; the rest does not differ between cgroups.
ASYNCIO = ("base_events", "buffered_proto", "selector_events", "sendfile", "server",
           "sock_lowlevel", "sslproto", "streams", "transports", "unix_events", "ssl")  # fmt: skip
ALL_OF_ASYNCIO = (*ASYNCIO, "events", "subprocess", "tasks", "futures", "locks", "queues",
                  "runners", "taskgroups", "timeouts", "threads", "waitfor")  # fmt: skip


@pytest.fixture(scope="session")
def python() -> str:
    """An interpreter that has its tests."""
    candidates = [
        sys.executable,
        str(Path(sys.base_prefix) / "bin" / "python3"),
        "/usr/bin/python3",
    ]
    for candidate in candidates:
        probe = [candidate, "-c", "import test.test_socket, test.test_asyncio"]
        if subprocess.run(probe, capture_output=True, timeout=60).returncode == 0:
            return candidate
    return pytest.fail(
        f"none of {candidates} has Python's own tests:"
        " apt-get install libpython3.11-testsuite (Debian 13: libpython3.13-testsuite)"
    )


def run_suite(_said: Said, python: str, modules: list[str], seconds: float) -> dict[str, str]:
    """Run test modules at once in processes of this child's cgroup; return outcomes by test."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        parts = pool.map(lambda module: _one(python, module, seconds), modules)
        return {name: outcome for part in parts for name, outcome in part.items()}


def _one(python: str, module: str, seconds: float) -> dict[str, str]:
    # Where it may write.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, str(SUITE), EXCLUDED, module],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds * SLOWNESS,
        )
    try:
        return dict(json.loads(done.stdout[done.stdout.rindex("{") :]))
    except ValueError:
        raise AssertionError(f"{module}: {done.stdout[-500:]}{done.stderr[-1500:]}") from None


@dataclass
class Results:
    """Outcomes by test id outside and inside; messages that were redirected meanwhile."""

    plain: dict[str, str]
    ours: dict[str, str]
    redirected: int
    again: Callable[[str], bool]


def run_both(stage: Stage, python: str, modules: list[str], config: Config) -> Results:
    """Run the modules outside and inside the accelerated cgroup at the same time."""
    before = stage.channel.redirected()
    with (
        stage.configured(config),
        stage.place("off") as outside,
        stage.place() as inside,
        process.children() as start,
    ):
        running = [
            start(run_suite, python, modules, LIMIT, place=place, seconds=LIMIT)
            for place in (outside, inside)
        ]
        plain, ours = (child.result() for child in running)

    def again(name: str) -> bool:
        alone = run_both(stage, python, [name], config)
        return alone.plain == alone.ours

    return Results(plain, ours, stage.channel.redirected() - before, again)


def check(results: Results, prefix: str) -> None:
    """Assert that each test whose id has the prefix ended alike."""
    plain = {name: end for name, end in results.plain.items() if name.startswith(prefix)}
    ours = {name: end for name, end in results.ours.items() if name.startswith(prefix)}
    assert len(plain) > 50, f"{prefix} hardly ran: {plain}"
    differing = [name for name in plain.keys() | ours.keys() if plain.get(name) != ours.get(name)]
    # Some of these tests depend on the machine's load; alone they have a quiet one.
    differing = [name for name in differing if not results.again(name)]
    assert not differing, {name: (plain.get(name), ours.get(name)) for name in differing}


@pytest.fixture(scope="module")
def eager(channel: Channel, cgroups: tuple[Path, Path], python: str) -> Results:
    """Both packages at once, with every non-blocking listener accelerated at once."""
    modules = ["test.test_socket", *(f"test.test_asyncio.test_{name}" for name in ASYNCIO)]
    return run_both(Stage(channel, *cgroups), python, modules, Config())


@pytest.mark.limit(LIMIT + 60)
def test_socket(eager: Results) -> None:
    check(eager, "test.test_socket")


@pytest.mark.limit(LIMIT + 60)
def test_asyncio(eager: Results) -> None:
    check(eager, "test.test_asyncio")
    assert eager.redirected > 50


@pytest.mark.soak
@pytest.mark.limit(4 * LIMIT)
@pytest.mark.parametrize("config", [Config(), LEARNING], ids=["eager", "learning"])
def test_all_of_both(stage: Stage, python: str, config: Config) -> None:
    names = ALL_OF_ASYNCIO
    modules = ["test.test_socket", *(f"test.test_asyncio.test_{name}" for name in names)]
    results = run_both(stage, python, modules, config)
    check(results, "test.test_socket")
    check(results, "test.test_asyncio")
