# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IVSHMEM server's protocol (QEMU, docs/specs/ivshmem-spec.rst), as pure code.

Private to this collection. Messages are 64-bit little-endian numbers, some with a file
descriptor. After a greeting a client is given the doorbells (eventfds) of every peer.

The protocol also knows a message by which a peer leaves. It is never sent: QEMU (7.2, and still its
development branch) frees the peer's doorbells on it but keeps the pointer, so that the next join
under the same id writes to freed memory, and unplugging the device frees it once more. Here an id
is a chunk, and comes again with each life of its owner. So the doorbells belong to the chunk, every
client is given each of them once, and an owner's next life is given the same again.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PROTOCOL_VERSION = 0
MEMORY = -1
# No version of the protocol: QEMU says so and gives up. Of a connection that is only closed it goes
# on reading for ever.
REFUSED = -1
MESSAGE_SIZE = 8


def encode(value: int) -> bytes:
    """One message."""
    return struct.pack("<q", value)


def decode(data: bytes) -> int:
    """The number of one message of MESSAGE_SIZE bytes."""
    (value,) = struct.unpack("<q", data)
    return int(value)


@dataclass(frozen=True)
class Message:
    """What to send: `value`, and with it the memory's descriptor or doorbell `vector` of a peer."""

    value: int
    memory: bool = False
    vector: int | None = None


@dataclass
class View:
    """What the client with id `own` was told, and from that what to tell it next.

    Ask for `next` and, when that was sent, call `sent`. A client that reads slowly costs no queue.
    """

    own: int
    greeted: int = 0
    # Peer id -> how many of its doorbells were given.
    told: dict[int, int] = field(default_factory=dict)

    def next(self, peers: Mapping[int, int]) -> Message | None:
        """The next message, given how many doorbells each peer has; None when all is told."""
        greeting = self._greeting()
        if self.greeted < len(greeting):
            return greeting[self.greeted]
        for peer in self._others_first(peers):
            count = self.told.get(peer, 0)
            if count < peers[peer]:
                return Message(peer, vector=count)
        return None

    def sent(self, message: Message) -> None:
        """`message`, which `next` gave, is on its way."""
        if message.vector is None:
            self.greeted += 1
        else:
            self.told[message.value] = message.vector + 1

    def _greeting(self) -> tuple[Message, ...]:
        return Message(PROTOCOL_VERSION), Message(self.own), Message(MEMORY, memory=True)

    def _others_first(self, peers: Mapping[int, int]) -> Iterator[int]:
        """As QEMU's own server does: the client's own doorbells come last."""
        yield from (peer for peer in sorted(peers) if peer != self.own)
        if self.own in peers:
            yield self.own


@dataclass(frozen=True)
class Identity:
    """Who a QEMU process says it is, on its command line; empty where it does not."""

    name: str = ""
    uuid: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What the owner of its chunk may be called."""
        return tuple(name for name in (self.name, self.uuid) if name)

    def __str__(self) -> str:
        return self.name or self.uuid or "without a name"


def parse_identity(arguments: Sequence[str]) -> Identity:
    """From a QEMU command line: ``-name guest=NAME,…`` or ``-name NAME``, and ``-uuid UUID``."""
    name = uuid = ""
    for option, value in itertools.pairwise(arguments):
        if option in ("-name", "--name"):
            name = _guest_name(value) or name
        elif option in ("-uuid", "--uuid"):
            uuid = value.lower()
    return Identity(name, uuid)


def _guest_name(value: str) -> str:
    """The `guest` of QEMU's option syntax: comma-separated, a comma itself is doubled."""
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    for part in parts:
        if part.startswith("guest="):
            return part.removeprefix("guest=")
    # The first part may go without its key.
    return "" if "=" in parts[0] else parts[0]
