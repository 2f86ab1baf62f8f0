# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""One installation for all tests: each play takes seconds, so its first runs are kept for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from installation import FirstRuns, Installation, dispose, first_runs, make_installation


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A home, a name and a cgroup; nothing is applied yet."""
    made = make_installation(tmp_path_factory.mktemp("faults"), f"tcp_sm_faults_{os.getpid()}")
    try:
        yield made
    finally:
        dispose(made)


@pytest.fixture(scope="session")
def first(installation: Installation) -> FirstRuns:
    """What the first runs did, from a removal of nothing to the first application."""
    return first_runs(installation)


@pytest.fixture
def applied(first: FirstRuns, installation: Installation) -> Installation:
    """The installation after its first runs. Tests leave it as it is, but for settings."""
    assert first.applied[2], "nothing is attached to the cgroup"
    return installation
