# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the ring's tests: two guests for the whole run, and a time limit for each test.

TCP_SM_RING_KERNEL   6.12 (default) or 7.3
TCP_SM_RING_CPUS     of each guest, default 1
TCP_SM_RING_KEEP     a folder in /dev/shm: leave the guests running there, and use them again
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ringlab import scene
from ringlab.cable import Cable
from ringlab.guest import channel
from ringlab.lab import Lab, memory_folder
from ringlab.scene import Scene, Stage

LIMIT = 60
SPIN = "/sys/module/tcp_sm/parameters/spin_us"
FAILED, LAB = pytest.StashKey[bool](), pytest.StashKey[Lab]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test failed."""
    report = yield
    if report.failed:
        item.config.stash[FAILED] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Guests as after the start of the run, before any fixture: what a test that failed left in
    them is no concern of the next one's."""
    stash = item.config.stash
    if stash.get(FAILED, False) and LAB in stash:
        stash[FAILED] = False
        stash[LAB].renew()
        for guest in stash[LAB].guests:
            scene.exclude_ports(guest)


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that hangs, so that its cleanup still runs."""
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else LIMIT

    def late(*_: Any) -> None:
        raise TimeoutError(f"the test took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab, started once."""
    keep = os.environ.get("TCP_SM_RING_KEEP")
    version = os.environ.get("TCP_SM_RING_KERNEL", "6.12")
    with contextlib.nullcontext(Path(keep)) if keep else memory_folder() as folder:
        folder.mkdir(exist_ok=True)
        made = Lab(folder, version)
        try:
            if keep and made.running():
                made.attach()
            else:
                made.start()
            for guest in made.guests:
                scene.exclude_ports(guest)
            request.config.stash[LAB] = made
            yield made
        finally:
            if not keep:
                made.stop()


@pytest.fixture
def lab(guests: Lab) -> Iterator[Lab]:
    """The lab; afterwards the guests' kernels have nothing to complain of."""
    yield guests
    for guest in guests.guests:
        trouble = guest.trouble()
        assert not trouble, f"{guest.name}'s kernel:\n" + "\n".join(trouble)


@pytest.fixture(scope="session")
def plain() -> dict[str, scene.Outcome]:
    """What plain TCP did, by scenario."""
    return {}


@pytest.fixture(scope="session", params=[scene.RING, scene.LEAVE])
def way(request: pytest.FixtureRequest, guests: Lab) -> Iterator[str]:
    """How the ring is moved and left, see scene.py."""
    guests.move_by(request.param == scene.RING)
    yield request.param
    guests.move_by(True)


@pytest.fixture
def stage(lab: Lab, way: str, plain: dict[str, scene.Outcome]) -> Stage:
    """Where scenarios are played."""
    return Stage(lab, way, plain)


@pytest.fixture
def played(lab: Lab) -> Iterator[Scene]:
    """A scene through the ring, moved by programs; afterwards no slot is in use."""
    made = Scene(scene.RING, lab)
    yield made
    made.end()
    lab.quiet()


@pytest.fixture
def cable(played: Scene) -> Iterator[Cable]:
    """The network between the guests."""
    with Cable(played.lab) as made:
        yield made


@pytest.fixture
def spin(lab: Lab) -> Iterator[Callable[[int], None]]:
    """Say how long anybody looks before it sleeps, in both guests (us)."""
    before = [guest.run(channel.read, SPIN).strip() for guest in lab.guests]

    def set_spin(microseconds: int) -> None:
        for guest in lab.guests:
            guest.run(channel.write, SPIN, str(microseconds))

    yield set_spin
    for guest, value in zip(lab.guests, before, strict=True):
        guest.run(channel.write, SPIN, value)
