# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the source tree importable as ansible_collections.colocated.tcp_sm; name the markers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

COLLECTIONS = Path(__file__).resolve().parent.parent / "build" / "collections"

# ansible-test brings its own loader, and there is no build folder in its copy.
if COLLECTIONS.is_dir() and str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))


def pytest_configure(config: pytest.Config) -> None:
    """Here and not in pyproject.toml, which ansible-test does not read."""
    config.addinivalue_line("markers", "root: needs root and a kernel with BPF")
    config.addinivalue_line("markers", "soak: long, runs only when asked for with -m soak")
    config.addinivalue_line("markers", "limit(seconds): this test's own time limit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked soak out, unless they are asked for."""
    if "soak" in str(config.getoption("markexpr")):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
