# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator, compiled and run on loopback and AF_UNIX."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tcp_sm_bench import machine

SOURCES = Path(__file__).parents[3] / "roles" / "bench" / "files" / "tcp_sm_load"
MODES = ("pingpong", "up", "down", "short")


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "load"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    subprocess.run(["gcc", *flags, "-o", path, *SOURCES.glob("*.c")], check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, tool: Path, tmp_path: Path) -> Iterator[list[str]]:
    """Address and port of a running server."""
    port, path = free_port(), str(tmp_path / "socket")
    where = ["127.0.0.1", str(port)] if request.param == "tcp" else [path, "0"]
    server = subprocess.Popen([tool, "serve", *where])
    table = Path(f"/proc/{server.pid}/net/{request.param}")
    while not (
        machine.is_listening_tcp(table.read_text(), port)
        if request.param == "tcp"
        else machine.is_listening_unix(table.read_text(), path)
    ):
        assert server.poll() is None
    yield where
    assert server.poll() is None, "the server ended by itself"
    server.kill()
    server.wait()


def run(tool: Path, mode: str, target: list[str], *rest: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tool, mode, *target, *rest], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("rest", [[], ["blocking"]], ids=["epoll", "blocking"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 64, 65537, 1 << 20])
def test_every_mode_moves_whole_messages(
    tool: Path, target: list[str], mode: str, size: int, rest: list[str]
) -> None:
    done = run(tool, mode, target, str(size), "0.05", *rest)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["ops"] > 0
    assert out["bytes"] == out["ops"] * size * (2 if mode in ("pingpong", "short") else 1)
    assert 0.05 <= out["seconds"] < 10


@pytest.mark.parametrize(
    "rest", [("0", "1"), (str((1 << 20) + 1), "1"), ("64",), ("x", "1"), ("64", "1", "spinning")]
)
def test_a_wrong_call_explains_itself(tool: Path, rest: tuple[str, ...]) -> None:
    done = run(tool, "pingpong", ["127.0.0.1", "1"], *rest)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_no_server_is_an_error(tool: Path) -> None:
    done = run(tool, "pingpong", ["127.0.0.1", str(free_port())], "64", "0.1")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def false_server(answer: bytes) -> tuple[list[str], threading.Thread]:
    """Reads a hello and 64 bytes, answers and closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as peer:
            peer.recv(72, socket.MSG_WAITALL)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return ["127.0.0.1", str(listener.getsockname()[1])], thread


@pytest.mark.parametrize("rest", [[], ["blocking"]], ids=["epoll", "blocking"])
@pytest.mark.parametrize(
    ("mode", "answer", "message"),
    [
        ("pingpong", b"x" * 10, "closed in the middle of an answer"),
        ("short", b"x" * 65, "sent more than the answer"),
    ],
)
def test_lost_or_added_bytes_are_errors(
    tool: Path, mode: str, answer: bytes, message: str, rest: list[str]
) -> None:
    target, thread = false_server(answer)
    done = run(tool, mode, target, "64", "0.1", *rest)
    thread.join()
    assert done.returncode == 1
    assert message in done.stderr


def socket_flags(pid: int) -> set[int]:
    """O_NONBLOCK, or 0, of each socket that a process has."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(path).startswith("socket:"):
                info = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text()
                found.add(int(info.split("flags:")[1].split()[0], 8) & os.O_NONBLOCK)
    return found


@pytest.mark.parametrize(("rest", "flag"), [([], os.O_NONBLOCK), (["blocking"], 0)])
def test_sockets_block_when_they_are_asked_to(
    tool: Path, target: list[str], rest: list[str], flag: int
) -> None:
    client = subprocess.Popen([tool, "pingpong", *target, "64", "20", *rest])
    try:
        while socket_flags(client.pid) != {flag}:
            assert client.poll() is None
    finally:
        client.kill()
        client.wait()
