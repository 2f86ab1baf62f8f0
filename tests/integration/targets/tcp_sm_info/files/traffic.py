# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open non-blocking connections over loopback and keep them until told to stop.

Usage: traffic.py CGROUP FOLDER
The server and its clients run in CGROUP (a folder of cgroup2), a client for each of EXCHANGES,
which sends that many messages and waits for each answer. One more client, the outsider,
connects from the cgroup in which this was started. FOLDER/ready then tells their ports; all
ends when FOLDER/stop appears, or after LIFETIME seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

EXCHANGES = (10, 100, 1000)
SIZE = 1000
LIFETIME = 120


class Outsider:
    """A child process that connects when it is told a port, and lives as long as its parent."""

    def __init__(self) -> None:
        self.parent, child = socket.socketpair()
        if os.fork() == 0:
            self.parent.close()
            self._run(child)
        child.close()

    @staticmethod
    def _run(parent: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", int(parent.recv(16)))) as client:
            parent.send(str(client.getsockname()[1]).encode())
            parent.recv(1)
        os._exit(0)

    def connect(self, port: int) -> int:
        """Make the child connect; returns the port that it connects from."""
        self.parent.send(str(port).encode())
        return int(self.parent.recv(16))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(port: int, count: int) -> asyncio.StreamWriter:
    """A connection that has exchanged ``count`` messages."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for index in range(count):
        message = bytes([index % 256]) * SIZE
        writer.write(message)
        await writer.drain()
        if await reader.readexactly(SIZE) != message:
            raise SystemExit(f"message {index} came back changed")
    return writer


async def main(cgroup: Path, folder: Path) -> None:
    outsider = Outsider()
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers = [await exchange(port, count) for count in EXCHANGES]
    ports = [writer.get_extra_info("sockname")[1] for writer in writers]
    report = {"server": port, "clients": ports, "outsider": outsider.connect(port)}
    (folder / "part").write_text(json.dumps(report))
    (folder / "part").rename(folder / "ready")
    while not (folder / "stop").exists():
        await asyncio.sleep(0.1)


asyncio.run(asyncio.wait_for(main(Path(sys.argv[1]), Path(sys.argv[2])), LIFETIME))
