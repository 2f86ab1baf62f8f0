# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Installations for the tests: one that must stay as it is, and fresh ones to break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installation, dispose, make_installation


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Installation]:
    """Nothing applied; removed afterwards."""
    installation = make_installation(tmp_path, f"tcp_sm_fresh_{os.getpid()}")
    yield installation
    dispose(installation)


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Applied once for all the tests that must leave it as it is."""
    home = tmp_path_factory.mktemp("applied")
    installation = make_installation(home, f"tcp_sm_faults_{os.getpid()}")
    try:
        done = installation.play("site", container_ports_exclude=[22])
        assert done.returncode == 0, done.stdout
        yield installation
    finally:
        dispose(installation)
