#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Echo traffic between two processes of a cgroup, checked byte by byte.

Knows nothing of the collection: whether the bytes went through TCP is read from the IP counters
of the network namespace it runs in. Start it with ``nsenter --net=...``; it joins the cgroup
itself. With ``--until`` it goes on exchanging, on the same connections, until that file appears.
The report is a JSON object: ``phase`` (``holding``, ``done``), ``payload`` (bytes exchanged after
the warm-up, both directions), ``ip_octets`` (bytes that left by IP meanwhile), ``rounds``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

CHUNK = 64 * 1024
LIMIT_SECONDS = 300


def ip_octets() -> int:
    """Bytes sent by IP in this network namespace, loopback included."""
    lines = Path("/proc/self/net/netstat").read_text(encoding="ascii").splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("IpExt:"))
    return int(dict(zip(names, values, strict=True))["OutOctets"])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what arrives until the other side has finished."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(port: int, ready: int) -> None:
    """Listen on loopback and tell the parent, by closing ``ready``, that it may connect."""
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    os.close(ready)
    await server.serve_forever()


async def exchange(
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], size: int, seed: int
) -> int:
    """Send ``size`` bytes in random pieces and expect each back; returns the bytes both ways."""
    reader, writer = stream
    rng = random.Random(seed)
    left = size
    while left:
        piece = rng.randbytes(min(left, rng.randint(1, CHUNK)))
        writer.write(piece)
        await writer.drain()
        if await reader.readexactly(len(piece)) != piece:
            sys.exit("the echo differs from what was sent")
        left -= len(piece)
    return 2 * size


async def run(args: argparse.Namespace) -> None:
    """Warm up, exchange, report; then keep going until told to stop."""
    deadline = time.monotonic() + LIMIT_SECONDS
    # The first connection to a port is only watched, so it is not part of the measurement.
    first = await asyncio.open_connection("127.0.0.1", args.port)
    await exchange(first, args.bytes, 0)
    streams = [
        await asyncio.open_connection("127.0.0.1", args.port) for _ in range(args.connections)
    ]
    before, payload, rounds, size = ip_octets(), 0, 0, args.bytes
    while True:
        rounds += 1
        for seed, stream in enumerate(streams):
            payload += await exchange(stream, size, seed + rounds)
        report = {
            "phase": "holding",
            "payload": payload,
            "ip_octets": ip_octets() - before,
            "rounds": rounds,
        }
        write_report(args.report, report)
        if not args.until or os.path.exists(args.until):
            break
        if time.monotonic() > deadline:
            sys.exit(f"{args.until} did not appear within {LIMIT_SECONDS} s")
        # Enough to notice a fault, and little enough to leave the machine to the test.
        size = CHUNK
        await asyncio.sleep(0.1)
    for _, writer in [first, *streams]:
        writer.close()
        await writer.wait_closed()
    write_report(args.report, report | {"phase": "done"})


def write_report(path: str, report: dict[str, object]) -> None:
    """Replace the report in one step; readers never see half of it."""
    text = json.dumps(report)
    if path == "-":
        print(text, flush=True)
        return
    Path(f"{path}.new").write_text(text, encoding="ascii")
    os.replace(f"{path}.new", path)


def main() -> None:
    """Join the cgroup, fork the server, be the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cgroup", required=True, help="directory of the cgroup to join")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument(
        "--bytes", type=int, default=4 << 20, help="per connection in the first round"
    )
    parser.add_argument("--until", help="go on until this file exists")
    parser.add_argument("--report", default="-")
    args = parser.parse_args()
    Path(args.cgroup, "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
    parent_end, child_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_end)
        asyncio.run(serve(args.port, child_end))
    os.close(child_end)
    try:
        os.read(parent_end, 1)
        asyncio.run(run(args))
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
