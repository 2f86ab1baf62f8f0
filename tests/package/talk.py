# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server and its client with non-blocking sockets: several connections, one after another to
the same port, each exchanging messages and kept open. Says "ready", and ends at a line of input.

Usage: talk.py CGROUP_PROCS, the file of the cgroup to enter first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

CONNECTIONS = 3
MESSAGES = 50


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(port: int) -> asyncio.StreamWriter:
    """One connection; exits when a byte comes back different."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(MESSAGES):
        message = os.urandom(2048)
        writer.write(message)
        back = await reader.readexactly(len(message))
        if hashlib.sha256(back).digest() != hashlib.sha256(message).digest():
            sys.exit("the echo differs from what was sent")
    return writer


async def main() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    writers = [await exchange(port) for _ in range(CONNECTIONS)]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for writer in writers:
        writer.close()


Path(sys.argv[1]).write_text("0")
asyncio.run(main())
