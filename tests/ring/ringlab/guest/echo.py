# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An asyncio program as anybody would write it: an echo server, and a client that checks it.

echo.py LOOP server KIND PORT
echo.py LOOP client KIND PORT ADDRESS CONNECTIONS SIZE
LOOP is asyncio or uvloop, KIND streams, protocol or buffered. The client prints how many
connections got back, byte for byte, what they sent.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Streams."""
    while data := await reader.read(50_000):
        writer.write(data)
        await writer.drain()
    writer.close()


class EchoProtocol(asyncio.Protocol):
    """Callbacks, with flow control."""

    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class EchoBuffered(asyncio.BufferedProtocol):
    """Callbacks that lend their own buffer."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(20_000)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


async def serve(kind: str, port: int) -> None:
    if kind == "streams":
        server = await asyncio.start_server(echo_stream, "0.0.0.0", port)
    else:
        made = {"protocol": EchoProtocol, "buffered": EchoBuffered}[kind]
        server = await asyncio.get_running_loop().create_server(made, "0.0.0.0", port)
    async with server:
        await server.serve_forever()


async def by_stream(address: str, port: int, data: bytes) -> bytes:
    """Send while receiving, end, and read to the end."""
    reader, writer = await asyncio.open_connection(address, port)

    async def send() -> None:
        for at in range(0, len(data), 30_000):
            writer.write(data[at : at + 30_000])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    got = await reader.read(-1)
    await sending
    writer.close()
    await writer.wait_closed()
    return got


class Collector(asyncio.Protocol):
    """Sends all at once, collects what comes until the end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.got = data, bytearray()
        self.ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.data)
        transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            self.ended.set_exception(exc)
        else:
            self.ended.set_result(bytes(self.got))


async def by_protocol(address: str, port: int, data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    _, collector = await loop.create_connection(lambda: Collector(data), address, port)
    return await collector.ended


async def ask(kind: str, port: int, address: str, count: int, size: int) -> None:
    exchange = by_stream if kind == "streams" else by_protocol
    sent = [os.urandom(size + number) for number in range(count)]
    got = await asyncio.gather(*(exchange(address, port, data) for data in sent))
    print(sum(one == other for one, other in zip(sent, got, strict=True)))


def main() -> None:
    loop, role, kind, port, *rest = sys.argv[1:]
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        if role == "server":
            runner.run(serve(kind, int(port)))
        else:
            runner.run(ask(kind, int(port), rest[0], int(rest[1]), int(rest[2])))


if __name__ == "__main__":
    main()
