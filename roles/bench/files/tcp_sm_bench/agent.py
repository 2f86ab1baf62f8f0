# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does on one machine what the driver says, by standard input and output.

A call is a line of JSON, [name, [argument, ...]], and so is its answer: {"result": value} or
{"error": text}. Bytes are in base64. The end of the input ends the agent and its servers.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import IO, Any

from . import probe
from .machine import Machine
from .tools import RunError


class Agent:
    """The calls; see machine.py and probe.py for what each does."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.calls: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "stop": self.machine.stop,
            "run": self.machine.run,
            "measured_run": self.measured_run,
            "sample": probe.sample,
            "describe": probe.describe,
            "find_qemu": probe.find_qemu,
            "process_seconds": probe.process_seconds,
            "set_parameter": probe.set_parameter,
        }

    def start(self, words: list[str], directory: str, files: dict[str, str], at: int | str) -> int:
        content = {name: base64.b64decode(text) for name, text in files.items()}
        return self.machine.start(words, directory, content, at)

    def measured_run(
        self, words: list[str], timeout: float
    ) -> tuple[str, dict[str, float], dict[str, float]]:
        """Output, and samples from before and after, between which nothing else is said."""
        before = probe.sample()
        out = self.machine.run(words, timeout)
        return out, before, probe.sample()

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one call."""
        name, arguments = json.loads(line)
        try:
            return {"result": self.calls[name](*arguments)}
        except (RunError, OSError) as error:
            return {"error": str(error)}

    def serve(self, calls: IO[str], answers: IO[str]) -> None:
        """Answer until the input ends."""
        try:
            for line in calls:
                answers.write(json.dumps(self.answer(line)) + "\n")
                answers.flush()
        finally:
            self.machine.stop_all()


if __name__ == "__main__":
    Agent().serve(sys.stdin, sys.stdout)
