# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make demo` shows of its playbooks: a line for what changes something or takes its time,
tables as they are, and failures as Ansible always shows them."""

from __future__ import annotations

import time
from typing import Any

from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = r"""
name: brief
type: stdout
short_description: Few lines, for a demonstration
description:
  - Shows tasks that change something, take some seconds, or fail.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  slow:
    description: From how many seconds on a task is shown that changed nothing.
    type: float
    default: 3
    env:
      - name: TCP_SM_BRIEF_SLOW
"""


class CallbackModule(Default):
    """The default output but for what went well."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "brief"

    def __init__(self) -> None:
        super().__init__()
        # By host and task: when it or its latest item began, and whether a line tells of it.
        self._since: dict[tuple[str, str], float] = {}
        self._told: set[tuple[str, str]] = set()

    def set_options(self, *args: Any, **kwargs: Any) -> None:
        super().set_options(*args, **kwargs)
        # The heading of a task is printed with its first failure, and not before.
        self.set_option("display_ok_hosts", False)
        self.set_option("display_skipped_hosts", False)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play
        self._display.display(f"\n{play.get_name().strip()}")

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._since[host.get_name(), task._uuid] = time.monotonic()

    def v2_playbook_on_include(self, included_file: Any) -> None:
        pass

    def v2_runner_on_ok(self, result: Any) -> None:
        if isinstance(result.task, TaskInclude):
            return
        self._handle_warnings_and_exception(result)
        if not result.task.loop:
            self._ended(result)
        elif result.result.get("changed") and _key(result) not in self._told:
            self._line("changed", result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        if isinstance(result.task, TaskInclude):
            return
        self._handle_warnings_and_exception(result)
        self._ended(result, item=True)
        self._since[_key(result)] = time.monotonic()

    def v2_runner_on_async_poll(self, result: Any) -> None:
        self._waiting(result)

    def v2_runner_on_async_ok(self, result: Any) -> None:
        pass

    def v2_runner_retry(self, result: Any) -> None:
        self._waiting(result)

    def _waiting(self, result: Any) -> None:
        """Says once that a task is not ready yet."""
        if _key(result) not in self._told:
            self._line("waiting", result)

    def _ended(self, result: Any, item: bool = False) -> None:
        """A task, or one item of its loop, that did not fail. Fast items have one line together."""
        if result.task.action.rpartition(".")[2] == "debug":
            self._message(result)
            return
        seconds = time.monotonic() - self._since.get(_key(result), time.monotonic())
        changed = result.result.get("changed", False)
        if self._is_slow(seconds) or (changed and not item):
            label = self._get_item_label(result.result) if item else None
            self._line("changed" if changed else "ok", result, label, seconds)

    def _is_slow(self, seconds: float) -> bool:
        return seconds >= self.get_option("slow")

    def _message(self, result: Any) -> None:
        message = result.result.get("msg")
        if isinstance(message, list) and all(isinstance(line, str) for line in message):
            message = "\n".join(message)
        if not isinstance(message, str):
            message = self._dump_results(result.result).strip("\n")
        self._display.display(f"\n{_name(result.task)}:\n\n{message}\n")

    def _line(self, word: str, result: Any, label: str | None = None, seconds: float = 0.0) -> None:
        self._told.add(_key(result))
        parts = [f"  {word:<8}{self.host_label(result)}: {_name(result.task)}"]
        parts += [str(label)] if label else []
        parts += [f"{seconds:.0f} s"] if self._is_slow(seconds) else []
        self._display.display(", ".join(parts))


def _key(result: Any) -> tuple[str, str]:
    return result.host.get_name(), result.task._uuid


def _name(task: Any) -> str:
    """The name without that of the role."""
    return str(task.get_name()).rpartition(" : ")[2].strip()
