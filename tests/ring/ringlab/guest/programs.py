# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs as they come from Debian, started in a guest, and the files that they transfer."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import subprocess
import time
from pathlib import Path

LISTEN = "0A"
STATISTICS = "/sys/class/net/eth0/statistics"
SERVERS: dict[int, subprocess.Popen[bytes]] = {}
HELPERS: dict[str, subprocess.Popen[str]] = {}  # for what tests start by functions of their own


def has_python_module(module: str) -> bool:
    """Does this guest's Python have that module?"""
    return importlib.util.find_spec(module) is not None


def on_network() -> int:
    """Bytes that the network interface sent and received."""
    return sum(int(Path(STATISTICS, f"{way}_bytes").read_text()) for way in ("rx", "tx"))


def listens(port: int) -> bool:
    """Does a socket of this guest listen there?"""
    wanted = f":{port:04X}"
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[1].endswith(wanted) and words[3] == LISTEN:
                return True
    return False


def start(port: int, *command: str, seconds: float = 20) -> int:
    """Start a server, and wait until it listens; its pid. It ends with the scenario."""
    log = Path(f"/tmp/server-{port}.log")
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    SERVERS[port] = child
    deadline = time.monotonic() + seconds
    while not listens(port):
        if child.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")
            raise RuntimeError(f"{' '.join(command)} does not listen on {port}: {text}")
        time.sleep(0.01)
    return child.pid


def finished(port: int, seconds: float = 20) -> str:
    """Wait for a server's own end; its output. RuntimeError when it failed."""
    code = SERVERS[port].wait(seconds)
    text = Path(f"/tmp/server-{port}.log").read_text(errors="replace")
    if code:
        raise RuntimeError(f"the server on {port} ended with {code}: {text}")
    return text


def said(port: int) -> str:
    """What a server printed so far."""
    return Path(f"/tmp/server-{port}.log").read_text(errors="replace")


def tool(*command: str, given: str = "", saved: str = "", seconds: float = 50) -> str:
    """Run a client to its end; what it printed. given, saved: files for its input and output."""
    with open(given or os.devnull, "rb") as source, open(saved or os.devnull, "wb") as target:
        done = subprocess.run(
            command,
            stdin=source,
            stdout=target if saved else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    printed = (done.stdout or b"").decode(errors="replace")
    if done.returncode:
        errors = done.stderr.decode(errors="replace")
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {printed}{errors}")
    return printed


def make_file(path: str, size: int, seed: int = 1) -> str:
    """A file of bytes that depend on the seed; its SHA-256."""
    data = random.Random(seed).randbytes(size)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def sum_of(path: str, begin: int = 0, end: int | None = None) -> str:
    """SHA-256 of a file, or of its bytes [begin, end)."""
    data = Path(path).read_bytes()
    return hashlib.sha256(data[begin:end]).hexdigest()


def write_text(path: str, text: str, mode: int = 0o644) -> None:
    """Write a small file, its folders too."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    Path(path).chmod(mode)
