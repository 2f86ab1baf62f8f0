# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do unmodified servers and their load generators work, accelerated, without an error?"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import re
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import SLOWNESS, process
from harness.channel import Config, wait_for
from harness.process import Place, Said
from harness.scene import PRODUCTION, Stage, connect, listener

SECONDS = float(os.environ.get("TCP_SM_SOAK_SECONDS", "60"))


def free_port() -> int:
    with listener() as door:
        return int(door.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        connect("127.0.0.1", port).close()
    except OSError:
        return False
    return True


def _serve(said: Said, command: list[str]) -> int:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said.say(server.pid)
    return server.wait()


@contextlib.contextmanager
def server(place: Place, port: int, *command: str, seconds: float = 60) -> Iterator[None]:
    """Run a server in a place until the block ends."""
    with process.children() as start:
        child = start(_serve, list(command), place=place, seconds=seconds)
        pid = child.take()
        try:
            wait_for(f"{command[0]} on port {port}", lambda: accepts(port))
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            child.result()


def tool(place: Place, *command: str, seconds: float = 60) -> str:
    """Run a client program in a place and return what it printed."""

    def body(_said: Said) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * SLOWNESS)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    return str(process.run(body, place=place, seconds=seconds))


NGINX = """
worker_processes 1;
pid {root}/pid;
error_log {root}/error.log;
daemon off;
events {{ worker_connections 2000; }}
http {{
  access_log off;
  client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;
  uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
  sendfile {sendfile};
  keepalive_requests 1000000000;
  client_max_body_size 100m;
  upstream files {{ server 127.0.0.1:{port}; keepalive 8; }}
  server {{ listen 127.0.0.1:{port}; root {root}/www; }}
  server {{
    listen 127.0.0.1:{proxy};
    location / {{
      proxy_pass http://files;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running server: its ports, and the sha256 of each file by its name."""

    port: int
    proxy: int
    sums: dict[str, str]


@contextlib.contextmanager
def nginx(place: Place, sendfile: str, seconds: float = 60) -> Iterator[Nginx]:
    """Run nginx with files of several sizes, served directly and through a proxy."""
    port, proxy = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="tcp_sm_nginx_") as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "www").mkdir()
        sums = {}
        for size in (1, 1024, 65536, 1 << 20):
            data = random.Random(size).randbytes(size)
            (root / "www" / str(size)).write_bytes(data)
            sums[str(size)] = hashlib.sha256(data).hexdigest()
        config = root / "conf"
        config.write_text(NGINX.format(root=root, port=port, proxy=proxy, sendfile=sendfile))
        with server(place, port, "nginx", "-c", str(config), "-p", name, seconds=seconds):
            yield Nginx(port, proxy, sums)


def fetch(_said: Said, port: int, sums: dict[str, str]) -> list[str]:
    """Fetch every file several times over one connection; return the wrong ones."""
    wrong = []
    # A time limit makes Python's socket non-blocking.
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20 * SLOWNESS)
    for turn in range(10):
        for name, wanted in sums.items():
            client.request("GET", f"/{name}")
            if hashlib.sha256(client.getresponse().read()).hexdigest() != wanted:
                wrong.append(f"{name} in turn {turn}")
    return wrong


def rate(output: str) -> float:
    """Return wrk's requests per second; AssertionError when it saw any error."""
    assert "Socket errors" not in output, output
    assert "Non-2xx" not in output, output
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_nginx(stage: Stage, sendfile: str) -> None:
    before = stage.channel.redirected()
    with stage.configured(PRODUCTION), stage.place() as place, nginx(place, sendfile) as server:
        assert not process.run(fetch, server.port, server.sums, place=place)
        for size in server.sums:
            url = f"http://127.0.0.1:{server.port}/{size}"
            assert rate(tool(place, "wrk", "-t1", "-c20", "-d1s", url)) > 0
        assert not process.run(fetch, server.port, server.sums, place=place)
    assert stage.channel.redirected() - before > 1000


def test_nginx_as_a_proxy(stage: Stage) -> None:
    """nginx reads large answers from itself, edge-triggered, over kept connections."""
    before = stage.channel.redirected()
    with stage.configured(PRODUCTION), stage.place() as place, nginx(place, "on") as server:
        for _ in range(3):
            assert not process.run(fetch, server.proxy, server.sums, place=place, seconds=50)
        for size in server.sums:
            url = f"http://127.0.0.1:{server.proxy}/{size}"
            assert rate(tool(place, "wrk", "-t1", "-c10", "-d1s", url)) > 0
    assert stage.channel.redirected() - before > 1000


def test_redis(stage: Stage) -> None:
    port = free_port()
    before = stage.channel.redirected()
    command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with stage.configured(PRODUCTION), stage.place() as place, server(place, port, *command):
        for tests, *extra in (
            ["set,get,lrange_100"],
            ["set,get", "-P", "16"],
            ["set,get", "-d", "20000"],
        ):
            tool(place, "redis-benchmark", "-p", str(port), "-n", "5000", "-q", "-e",
                 "-t", tests, *extra)  # fmt: skip
        echo = tool(place, "redis-cli", "-p", str(port), "echo", "still alive")
    assert echo.strip() == "still alive"
    assert stage.channel.redirected() - before > 1000


@pytest.mark.soak
@pytest.mark.limit(int(SECONDS) + 120)
@pytest.mark.parametrize("size", ["1024", "65536", "1048576"])
def test_no_run_of_wrk_is_slow(stage: Stage, start: Callable[..., Any], size: str) -> None:
    """Short runs of wrk, TCP and accelerated in turn, looking for one that stalls."""
    rates: dict[str, list[float]] = {"off": [], "on": []}
    limit = SECONDS + 60
    with (
        stage.configured(PRODUCTION),
        stage.place("off") as outside,
        stage.place() as inside,
        nginx(outside, "on", limit) as plain,
        nginx(inside, "on", limit) as ours,
    ):
        for _ in range(max(5, int(SECONDS / 3 / 4))):
            for way, place, port in (("off", outside, plain.port), ("on", inside, ours.port)):
                url = f"http://127.0.0.1:{port}/{size}"
                rates[way].append(rate(tool(place, "wrk", "-t1", "-c50", "-d2s", url)))
    # How fast it is, `make bench` says; here a run that stalls is looked for. wrk itself
    # reports requests that took more than two seconds, see rate().
    pairs = zip(rates["on"], rates["off"], strict=True)
    ratios = [ours_rate / plain_rate for ours_rate, plain_rate in pairs]
    assert min(ratios) > 0.3 * min(1.0, statistics.median(ratios)), rates


@pytest.mark.soak
@pytest.mark.limit(int(SECONDS) + 120)
def test_redis_for_a_long_time(stage: Stage) -> None:
    port = free_port()
    limit = SECONDS + 60
    command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    with (
        stage.configured(Config()),
        stage.place() as place,
        server(place, port, *command, seconds=limit),
    ):
        requests = str(int(20_000 * SECONDS))
        tool(place, "redis-benchmark", "-p", str(port), "-n", requests, "-q", "-e", "-t", "set,get",
             seconds=limit)  # fmt: skip
