# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run modules of Python's own test package and print each test's outcome as JSON.

Runs by path under the interpreter whose tests these are:
    python3 suite.py EXCLUDED MODULE...
EXCLUDED: a regular expression of test ids that are not run.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unittest
from collections.abc import Iterator
from typing import Any


class Outcomes(unittest.TestResult):
    """Remembers the outcome of each test by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.seen[test.id()] = "ok"

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        self.seen[test.id()] = f"error {err[0].__name__}"

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.seen[test.id()] = "failure"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.seen[test.id()] = "skipped"


def tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the single tests of a suite."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from tests(one)
        else:
            yield one


def main() -> None:
    excluded = re.compile(sys.argv[1])
    loaded = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[2:])
    # Groups keep setUpModule and setUpClass where they belong.
    wanted = unittest.TestSuite(one for one in tests(loaded) if not excluded.search(one.id()))
    outcomes = Outcomes()
    wanted.run(outcomes)
    # A test may have replaced sys.stdout.
    os.write(1, json.dumps(outcomes.seen).encode())


if __name__ == "__main__":
    main()
