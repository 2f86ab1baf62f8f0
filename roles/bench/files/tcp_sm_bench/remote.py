# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaches other machines: copies the benchmark there and talks to its agent."""

from __future__ import annotations

import io
import json
import os
import select
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tools import RunError

# A guest without KVM on a busy machine takes its time.
PATIENCE = 120.0
FILES = Path(__file__).resolve().parent.parent
LOAD_TOOL = "load"


class RemoteError(RuntimeError):
    """A machine cannot be reached or said something strange; the text says which and what."""


@dataclass(frozen=True)
class Login:
    """How to get a shell on a machine: `words` take the command as one more argument."""

    name: str
    words: list[str]
    python: str = "python3"

    def command(self, script: str) -> list[str]:
        """The script runs as root there."""
        as_root = f"sudo -n sh -c {shlex.quote(script)}"
        return [*self.words, f"if [ $(id -u) = 0 ]; then {script}; else {as_root}; fi"]

    def do(self, script: str, data: bytes = b"") -> bytes:
        """Standard output of a script; RemoteError when it fails."""
        try:
            done = subprocess.run(
                self.command(script), input=data, capture_output=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RemoteError(f"{self.name} does not answer for {PATIENCE:.0f} s") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise RemoteError(f"`{script}` failed on {self.name} ({done.returncode}): {said}")
        return done.stdout


def archive(part: str, more: Mapping[str, bytes] | None = None) -> bytes:
    """A folder of sources as a tar file, and further programs in it by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted((FILES / part).iterdir()):
            if path.suffix in (".py", ".c", ".h"):
                tar.add(path, f"{part}/{path.name}", recursive=False)
        for name, content in (more or {}).items():
            member = tarfile.TarInfo(f"{part}/{name}")
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def compile_load_tool(login: Login, directory: str) -> bytes:
    """The load generator, compiled on a machine, to run on all of its architecture."""
    where = shlex.quote(directory)
    login.do(_unpack(directory), archive("tcp_sm_load"))
    return login.do(f"cd {where}/tcp_sm_load && gcc -O2 -static -o load *.c && exec cat load")


def install(login: Login, directory: str, load_tool: bytes) -> None:
    """Copies the benchmark to a machine."""
    login.do(_unpack(directory), archive("tcp_sm_bench", {LOAD_TOOL: load_tool}))


def _unpack(directory: str) -> str:
    where = shlex.quote(directory)
    return f"rm -rf {where} && mkdir -p {where} && tar x -C {where}"


def remove(login: Login, directory: str) -> None:
    """Removes it."""
    login.do(f"rm -rf {shlex.quote(directory)}")


class Remote:
    """A machine's agent. Leaving the context ends it."""

    def __init__(self, login: Login, directory: str) -> None:
        self.login = login
        self._buffer = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        script = f"cd {shlex.quote(directory)} && exec {login.python} -B -m tcp_sm_bench.agent"
        self._process = subprocess.Popen(
            login.command(script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def call(self, name: str, *arguments: Any, timeout: float = PATIENCE) -> Any:
        """Result of a call. RunError when it failed there, RemoteError when there is no answer."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._lost("its agent has ended") from None
        answer = json.loads(self._line(timeout))
        if "error" in answer:
            raise RunError(f"{self.login.name}: {answer['error']}")
        return answer["result"]

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout
        number = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([number], [], [], left)[0]:
                raise self._lost(f"no answer for {timeout:.0f} s")
            part = os.read(number, 1 << 16)
            if not part:
                raise self._lost("its agent has ended")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _lost(self, what: str) -> RemoteError:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()[-500:]
        return RemoteError(f"{self.login.name}: {what}{': ' if said else ''}{said}")
