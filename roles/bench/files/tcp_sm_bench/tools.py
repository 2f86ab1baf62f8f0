# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of the workloads: how each is called, and what it prints. No I/O."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # guests, where imports take long, do without the model
    from .model import Workload

_NGINX = """daemon off; worker_processes 1; error_log stderr; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen {address}:{port}; root {directory}; }}
}}
"""
# Batches of requests that tell redis' rate before it is known.
_REDIS_TRIAL = 2000


class RunError(RuntimeError):
    """One run gave no result; the text says which and why."""


@dataclass(frozen=True)
class Count:
    """What a client reports: operations, and the value in the workload's unit."""

    ops: float
    value: float


@dataclass(frozen=True)
class Where:
    """What both ends of one arm of a workload agree on.

    unix: by the AF_UNIX socket `directory`/socket, else by address and port. directory: of the
    server, its own. load_tool: path of the load generator.
    """

    workload: Workload
    unix: bool
    address: str
    port: int
    directory: str
    load_tool: str

    @property
    def socket(self) -> str:
        return f"{self.directory}/socket"

    @property
    def listens_at(self) -> int | str:
        """The port, or the path of an AF_UNIX socket."""
        return self.socket if self.unix else self.port


@dataclass(frozen=True)
class Server:
    """How a server is started: command line, and files in its directory."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """How a client is called, and what its output means; `count` raises RunError."""

    words: list[str]
    count: Callable[[str], Count]


@dataclass(frozen=True)
class Tool:
    """A pair of programs.

    client's arguments: where, seconds, and operations per second as far as known, else 0.
    """

    server: Callable[[Where], Server]
    client: Callable[[Where, float, float], Client]


def _load_target(where: Where) -> list[str]:
    return [where.socket, "0"] if where.unix else [where.address, str(where.port)]


def _load_server(where: Where) -> Server:
    return Server([where.load_tool, "serve", *_load_target(where)])


def _load_client(where: Where, seconds: float, _rate: float) -> Client:
    workload = where.workload
    words = [where.load_tool, workload.mode, *_load_target(where), str(workload.size), str(seconds)]
    if workload.blocking:
        words.append("blocking")
    return Client(words, lambda text: parse_load(text, workload.unit))


def parse_load(text: str, unit: str) -> Count:
    """Operations, and the value in that unit, from the load generator's line."""
    out = json.loads(text)
    if not out["ops"]:
        raise RunError(f"the load generator moved nothing in {out['seconds']} s")
    value = {
        "MB/s": out["bytes"] / out["seconds"] / 1e6,
        "conn/s": out["ops"] / out["seconds"],
        "us": out["seconds"] / out["ops"] * 1e6,
    }[unit]
    return Count(out["ops"], value)


def _redis_server(where: Where) -> Server:
    listen = (
        ["--port", "0", "--unixsocket", where.socket]
        if where.unix
        else ["--port", str(where.port), "--bind", where.address]
    )
    quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no"]
    return Server(["redis-server", *listen, *quiet, "--dir", where.directory])


def _redis_client(where: Where, seconds: float, rate: float) -> Client:
    """redis-benchmark counts requests, not seconds: some batches tell how many fit."""
    workload = where.workload
    target = ["-s", where.socket] if where.unix else ["-h", where.address, "-p", str(where.port)]
    requests = int(seconds * rate) or _REDIS_TRIAL * workload.pipeline
    options = {"c": workload.clients, "n": requests, "P": workload.pipeline, "t": workload.mode}
    words = [word for name, value in options.items() for word in (f"-{name}", str(value))]
    return Client(
        ["redis-benchmark", *target, *words, "--csv"],
        lambda text: Count(requests, parse_redis(text)),
    )


def parse_redis(text: str) -> float:
    """Requests per second from redis-benchmark's CSV."""
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 1 and row[0] != "test"]
    if len(rows) != 1:
        raise RunError(f"redis-benchmark printed {text.strip()[-300:]!r} in place of one result")
    return float(rows[0][1])


def _wrk_server(where: Where) -> Server:
    config = _NGINX.format(directory=where.directory, address=where.address, port=where.port)
    files = {"file": os.urandom(where.workload.size), "nginx.conf": config.encode()}
    return Server(["nginx", "-c", f"{where.directory}/nginx.conf", "-e", "stderr"], files)


def _wrk_client(where: Where, seconds: float, _rate: float) -> Client:
    """wrk takes whole seconds only."""
    url = f"http://{where.address}:{where.port}/file"
    words = ["wrk", "-t1", f"-c{where.workload.clients}", f"-d{max(1, round(seconds))}s", url]
    return Client(words, parse_wrk)


def parse_wrk(text: str) -> Count:
    """Requests, and requests per second, from wrk's report; errors in it are failures."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.M)
    total = re.search(r"^\s*(\d+) requests in ", text, re.M)
    trouble = re.search(r"Socket errors:.*|Non-2xx.*", text)
    if not rate or not total or trouble or float(rate[1]) == 0:
        reason = trouble[0] if trouble else text.strip()[-300:]
        raise RunError(f"wrk reports no clean result: {reason}")
    return Count(float(total[1]), float(rate[1]))


TOOLS = {
    "load": Tool(_load_server, _load_client),
    "redis": Tool(_redis_server, _redis_client),
    "wrk": Tool(_wrk_server, _wrk_client),
}
