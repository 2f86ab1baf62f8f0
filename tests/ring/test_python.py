# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do Python's own test_socket and test_asyncio end with the channel as without it?

They run in both guests at once: in the first with module, device and programs, in the second
with none of them. Their servers and clients are in one machine, which has one chunk, so
their connections are asked about, offered or refused, and stay on TCP. So this proves that
what is around the ring changes nothing that Python can see: listeners that keep SYNs, the
connect that waits for an outcome, sockets that get their own operations back, kernel objects
of a thousand odd sockets. What a ring does is the other files' matter.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from ringlab import scene
from ringlab.build import ROOT
from ringlab.guest import channel, programs
from ringlab.lab import Lab

SUITE = ROOT / "tests" / "traffic" / "harness" / "suite.py"
# AF_VSOCK is another address family, and without a device its tests wait for ever.
EXCLUDED = "VSOCK"
# The classes of test_socket that use TCP, without those that wait for long timeouts.
SOCKET = (
    "BasicTCPTest", "BasicTCPTest2", "SendmsgTCPTest", "RecvmsgTCPTest", "RecvmsgIntoTCPTest",
    "NonBlockingTCPTests", "FileObjectClassTestCase", "UnbufferedFileObjectClassTestCase",
    "LineBufferedFileObjectClassTestCase", "SmallBufferedFileObjectClassTestCase",
    "UnicodeReadFileObjectClassTestCase", "NetworkConnectionNoServer",
    "NetworkConnectionAttributesTest", "NetworkConnectionBehaviourTest", "TCPCloserTest",
    "TCPTimeoutTest", "ContextManagersTest", "InheritanceTest", "CreateServerTest",
    "CreateServerFunctionalTest", "TestMacOSTCPFlags",
)  # fmt: skip
ASYNCIO = ("test_streams", "test_server", "test_buffered_proto", "test_sock_lowlevel")
ALL_OF_ASYNCIO = (
    *ASYNCIO, "test_base_events", "test_events", "test_selector_events", "test_sendfile",
    "test_sslproto", "test_ssl", "test_transports", "test_unix_events", "test_subprocess",
)  # fmt: skip
LIMIT, ALL_LIMIT = 150, 900


def run_suite(excluded: str, names: tuple[str, ...], seconds: float) -> dict[str, str]:
    """In a guest: outcome of each test by its id."""
    done = subprocess.run(
        ["python3", "/tmp/suite.py", excluded, *names],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd="/tmp",
        check=False,
    )
    try:
        return dict(json.loads(done.stdout[done.stdout.rindex("{") :]))
    except ValueError:
        raise RuntimeError(f"{names}: {done.stdout[-500:]}{done.stderr[-1500:]}") from None


@dataclass
class Outcomes:
    """By test id, without and with the channel."""

    plain: dict[str, str]
    ours: dict[str, str]

    def differing(self) -> list[str]:
        names = self.plain.keys() | self.ours.keys()
        return sorted(name for name in names if self.plain.get(name) != self.ours.get(name))


@pytest.fixture
def half(lab: Lab) -> Iterator[Lab]:
    """The first guest has everything, the second nothing."""
    there = lab.guests[1]
    there.run(channel.unload_programs)
    assert not there.run(channel.rmmod)
    yield lab
    for guest in lab.guests:
        guest.end_worker()
    lab.equip(there)
    lab.ready()


def run_both(lab: Lab, names: tuple[str, ...], seconds: float) -> Outcomes:
    """The named modules or classes in both guests at once."""
    workers = [guest.worker() for guest in lab.guests]
    for worker in workers:
        worker.run(programs.write_text, "/tmp/suite.py", SUITE.read_text())
    calls = [worker.later(run_suite, EXCLUDED, names, seconds) for worker in workers]
    ours, plain = (call.result(seconds + 10) for call in calls)
    return Outcomes(plain, ours)


def compare(lab: Lab, names: tuple[str, ...], seconds: float, least: int) -> None:
    """Assert that the same tests ended the same way, and that the channel was there."""
    before = scene.stats(lab.guests[0])["reasons"]["same_guest"]
    outcomes = run_both(lab, names, seconds)
    asked = scene.stats(lab.guests[0])["reasons"]["same_guest"] - before
    assert len(outcomes.plain) >= least, f"hardly anything ran: {outcomes.plain}"
    passed = [name for name, end in outcomes.ours.items() if end == "ok"]
    assert len(passed) > 0.8 * least, outcomes.ours
    assert asked > 0.3 * least, f"the channel was asked about {asked} connections only"
    # Some depend on the machine's load; alone they have a quiet one.
    suspects = tuple(outcomes.differing())
    if suspects:
        outcomes = run_both(lab, suspects, seconds)
    left = outcomes.differing() if suspects else []
    assert not left, {name: (outcomes.plain.get(name), outcomes.ours.get(name)) for name in left}


@pytest.mark.limit(2 * LIMIT + 60)
def test_socket(half: Lab) -> None:
    compare(half, tuple(f"test.test_socket.{name}" for name in SOCKET), LIMIT, 100)


@pytest.mark.limit(2 * LIMIT + 60)
def test_asyncio(half: Lab) -> None:
    compare(half, tuple(f"test.test_asyncio.{name}" for name in ASYNCIO), LIMIT, 100)


@pytest.mark.soak
@pytest.mark.limit(2 * ALL_LIMIT + 60)
@pytest.mark.parametrize("names", [
    ("test.test_socket",), tuple(f"test.test_asyncio.{name}" for name in ALL_OF_ASYNCIO),
], ids=["socket", "asyncio"])  # fmt: skip
def test_all(half: Lab, names: tuple[str, ...]) -> None:
    compare(half, names, ALL_LIMIT, 400)
