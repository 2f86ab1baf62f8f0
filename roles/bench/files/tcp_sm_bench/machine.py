# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts servers and clients on the machine that this runs on."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .tools import RunError

READY_TIMEOUT = 15.0


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[str]
    log: IO[str]


class Machine:
    """Servers by their pid, and clients. Arguments and results are plain JSON values."""

    def __init__(self) -> None:
        self._servers: dict[int, _Running] = {}

    def start(
        self, words: list[str], directory: str, files: dict[str, bytes], at: int | str
    ) -> int:
        """Starts a server and waits until it listens at a port or an AF_UNIX path; its pid.

        files: written to the directory first. RunError when the server does not listen.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # nginx' workers are not root.
        folder.chmod(0o755)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        log = (folder / "server.log").open("w+")
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
            )
        except FileNotFoundError as error:
            raise RunError(f"there is no program {words[0]}") from error
        self._servers[process.pid] = _Running(process, log)
        try:
            self._wait_ready(words, process.pid, at)
        except BaseException:
            self.stop(process.pid)
            raise
        return process.pid

    def stop(self, pid: int) -> None:
        """Ends a server that `start` started."""
        server = self._servers.pop(pid)
        server.process.terminate()
        try:
            server.process.wait(5)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
        server.log.close()

    def stop_all(self) -> None:
        """Ends what still runs."""
        for pid in list(self._servers):
            self.stop(pid)

    def run(self, words: list[str], timeout: float) -> str:
        """A program's standard output; RunError when it fails or hangs."""
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except FileNotFoundError as error:
            raise RunError(f"there is no program {words[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise RunError(f"`{' '.join(words)}` hung for {timeout:.0f} s") from error
        if done.returncode:
            raise RunError(
                f"`{' '.join(words)}` failed ({done.returncode}): "
                f"{(done.stderr or done.stdout).strip()[-300:]}"
            )
        return done.stdout

    def _wait_ready(self, words: list[str], pid: int, at: int | str) -> None:
        server = self._servers[pid]
        deadline = time.monotonic() + READY_TIMEOUT
        while not _listens(pid, at):
            if server.process.poll() is not None or time.monotonic() > deadline:
                server.log.seek(0)
                raise RunError(
                    f"server `{' '.join(words)}` did not start listening: "
                    f"{server.log.read().strip()[-300:]}"
                )
            time.sleep(0.005)


def _listens(pid: int, at: int | str) -> bool:
    """Looks the listener up in the server's own tables: a probing connection would be the first
    connection that the accelerator learns from."""
    tables = Path(f"/proc/{pid}/net")
    if isinstance(at, str):
        return is_listening_unix((tables / "unix").read_text(), at)
    return is_listening_tcp((tables / "tcp").read_text(), at)


def is_listening_tcp(table: str, port: int) -> bool:
    """Whether /proc/net/tcp shows a listener (state 0A) on the port."""
    return re.search(rf"[0-9A-F]{{8}}:{port:04X} 00000000:0000 0A ", table) is not None


def is_listening_unix(table: str, path: str) -> bool:
    """Whether /proc/net/unix shows a socket with __SO_ACCEPTCON (flags 00010000) at the path."""
    rows = [line.split() for line in table.splitlines()]
    return any(len(row) == 8 and row[3] == "00010000" and row[7] == path for row in rows)
