# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cable between the guests' network cards, in the tests' hands.

Each card sends its frames to a socket that has the other's name. `with Cable(lab) as cable`
takes these names over, hands every frame on, and does with TCP segments what the rules say:

    cable.rule("synack", drop)            the first SYN-ACK is lost
    cable.rule("syn", cable.hold)         the first SYN waits for cable.release()
    cable.rule("any", fate, number=None)  `fate` decides about each

So the n-th packet of a handshake can be lost, late, doubled, overtaken, changed or forged,
the same way in each run.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .lab import Lab

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
OUR_KIND, OUR_LENGTH = 254, 20
PADDING = b"\x01"


class Segment:
    """A TCP segment in its frame. sender: 0 or 1, the guest."""

    def __init__(self, frame: bytes, sender: int, start: int, length: int) -> None:
        self.sender = sender
        self.head = frame[:start]
        tcp = frame[start : start + length]
        size = (tcp[12] >> 4) * 4
        self.source, self.target, self.seq, self.ack = struct.unpack("!HHII", tcp[:12])
        self.flags, self.window = tcp[13], struct.unpack("!H", tcp[14:16])[0]
        self.options, self.payload = tcp[20:size], tcp[size:]

    @classmethod
    def parse(cls, frame: bytes, sender: int) -> Segment | None:
        """The segment of an Ethernet frame, IPv4 or IPv6; None: something else."""
        kind = frame[12:14]
        if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
            words = (frame[14] & 15) * 4
            total = struct.unpack("!H", frame[16:18])[0]
            return cls(frame, sender, 14 + words, total - words)
        if kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
            return cls(frame, sender, 54, struct.unpack("!H", frame[18:20])[0])
        return None

    @property
    def kind(self) -> str:
        """rst, syn, synack, fin, data or ack."""
        if self.flags & RST:
            return "rst"
        if self.flags & SYN:
            return "synack" if self.flags & ACK else "syn"
        if self.flags & FIN:
            return "fin"
        return "data" if self.payload else "ack"

    @property
    def offer(self) -> bytes:
        """The channel's option in it, or nothing."""
        at = 0
        while at < len(self.options) and self.options[at]:
            size = 1 if self.options[at] == 1 else self.options[at + 1]
            if self.options[at] == OUR_KIND:
                return self.options[at : at + size]
            at += max(size, 1)
        return b""

    def replace_offer(self, option: bytes = b"") -> None:
        """Put `option` where the channel's option is, or behind the others."""
        option += PADDING * (-len(option) % 4)
        old = self.offer
        self.options = self.options.replace(old, b"") + option if old else self.options + option
        self.options += PADDING * (-len(self.options) % 4)

    def pack(self) -> bytes:
        """The frame, with lengths and checksum of what it is now."""
        size = 20 + len(self.options)
        tcp = struct.pack(
            "!HHIIBBHHH", self.source, self.target, self.seq & 0xFFFFFFFF, self.ack & 0xFFFFFFFF,
            size << 2, self.flags, self.window, 0, 0,
        ) + self.options + self.payload  # fmt: skip
        head = bytearray(self.head)
        if head[12:14] == b"\x08\x00":
            struct.pack_into("!H", head, 16, len(head) - 14 + len(tcp))
            struct.pack_into("!H", head, 24, 0)
            struct.pack_into("!H", head, 24, checksum(head[14:]))
            addresses = head[26:34]
        else:
            struct.pack_into("!H", head, 18, len(tcp))
            addresses = head[22:54]
        total = checksum(addresses + struct.pack("!II", socket.IPPROTO_TCP, len(tcp)) + tcp)
        return bytes(head) + tcp[:16] + struct.pack("!H", total) + tcp[18:]

    def answer(self, flags: int, seq: int, ack: int, options: bytes = b"") -> Segment:
        """A segment to whoever sent this one, as if from whom it was for."""
        made = Segment(self.pack(), 1 - self.sender, len(self.head), 20 + len(self.options))
        v4 = self.head[12:14] == b"\x08\x00"
        first, size = (26, 4) if v4 else (22, 16)
        head = bytearray(self.head)
        head[0:12] = self.head[6:12] + self.head[0:6]
        theirs = self.head[first : first + size]
        head[first : first + 2 * size] = self.head[first + size : first + 2 * size] + theirs
        made.head = bytes(head)
        made.source, made.target = self.target, self.source
        made.flags, made.seq, made.ack = flags, seq, ack
        made.options, made.payload = options, b""
        return made

    def copy(self) -> Segment:
        """Another one, to be changed."""
        packed = self.pack()
        return Segment(packed, self.sender, len(self.head), len(packed) - len(self.head))

    def __repr__(self) -> str:
        option = f" offer={self.offer.hex()}" if self.offer else ""
        return (
            f"<{self.sender} {self.source}>{self.target} {self.kind} {self.seq} {self.ack}"
            f" +{len(self.payload)}{option}>"
        )


def checksum(data: bytes | bytearray) -> int:
    """The Internet's."""
    padded = bytes(data) + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# What becomes of a segment: (seconds from now, the segment), none or several.
Fate = Iterable[tuple[float, Segment]]
Decide = Callable[[Segment], Fate]


def drop(_segment: Segment) -> Fate:
    """Lost."""
    return ()


def twice(segment: Segment) -> Fate:
    """Doubled."""
    return ((0, segment), (0, segment))


def late(seconds: float) -> Decide:
    """Delayed."""
    return lambda segment: ((seconds, segment),)


def strip(segment: Segment) -> Fate:
    """The channel's option is taken out."""
    segment.replace_offer()
    return ((0, segment),)


def chance(seed: int, lost: float, doubled: float, delayed: float, seconds: float) -> Decide:
    """Lost, doubled or delayed by up to `seconds`, with these probabilities."""
    dice = random.Random(seed)

    def decide(segment: Segment) -> Fate:
        value = dice.random()
        if value < lost:
            return ()
        if value < lost + doubled:
            return ((0, segment), (dice.random() * seconds, segment))
        if value < lost + doubled + delayed:
            return ((dice.random() * seconds, segment),)
        return ((0, segment),)

    return decide


@dataclass
class Rule:
    """`decide` about segment `number` of `kind` (any: all; None: each) of each connection."""

    kind: str
    decide: Decide
    number: int | None = 1
    sender: int | None = None
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)

    def wants(self, segment: Segment) -> bool:
        if self.kind not in (segment.kind, "any") or self.sender not in (segment.sender, None):
            return False
        ports = (segment.source, segment.target)
        connection = (min(ports), max(ports))
        self.counts[connection] += 1
        return self.number in (None, self.counts[connection])


class Cable:
    """See above. Frames are handed on by a thread."""

    def __init__(self, lab: Lab) -> None:
        self.rules: list[Rule] = []
        self.seen: list[Segment] = []
        self.held: list[Segment] = []
        self.failed: BaseException | None = None
        self._paths = [guest.path("net") for guest in lab.guests]
        self._far = [str(path) + ".card" for path in self._paths]
        # Socket i has guest i's name, so what comes there is for guest i.
        self._socks: list[socket.socket] = []
        self._waiting: list[tuple[float, int, Segment]] = []
        self._serial = itertools.count()
        self._lock = threading.RLock()
        self._bell = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ends = False

    def __enter__(self) -> Cable:
        for path, far in zip(self._paths, self._far, strict=True):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socks.append(sock)
            mine = str(path) + ".cable"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mine)
            sock.bind(mine)
            if not os.path.exists(far):  # else left by a run that was killed
                os.link(path, far)
            os.rename(mine, path)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self.release()
        for path, far in zip(self._paths, self._far, strict=True):
            os.link(far, str(path) + ".cable")
            os.rename(str(path) + ".cable", path)
        self._ends = True
        self._ring()
        self._thread.join(10)
        for sock in self._socks:
            sock.close()
        for end in self._bell:
            os.close(end)
        for far in self._far:
            os.unlink(far)
        if self.failed:
            raise self.failed

    def rule(
        self, kind: str, decide: Decide, number: int | None = 1, sender: int | None = None
    ) -> None:
        """The first rule that wants a segment decides."""
        with self._lock:
            self.rules.append(Rule(kind, decide, number, sender))

    def clear(self) -> None:
        """No rules any more."""
        with self._lock:
            self.rules.clear()

    def hold(self, segment: Segment) -> Fate:
        """Keep it until `release`."""
        self.held.append(segment)
        return ()

    def release(self) -> None:
        """Send what is held, in order."""
        with self._lock:
            held, self.held = self.held, []
        self.send(*held)

    def send(self, *segments: Segment) -> None:
        """Put segments on the cable, past the rules; forged ones too."""
        with self._lock:
            for segment in segments:
                heapq.heappush(self._waiting, (0, next(self._serial), segment))
        self._ring()

    def wait(self, kind: str, number: int = 1, seconds: float = 10.0, port: int = 0) -> Segment:
        """The n-th segment of a kind (and of a port) that came; waits for it."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                found = self.find(kind, port)
            if len(found) >= number:
                return found[number - 1]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {number} {kind} in {seconds} s: {self.seen}")
            time.sleep(0.005)

    def find(self, kind: str, port: int = 0) -> list[Segment]:
        """What came of a kind (any: all), as it came."""
        return [
            segment
            for segment in self.seen
            if kind in (segment.kind, "any") and port in (0, segment.source, segment.target)
        ]

    def payload(self, port: int) -> int:
        """Bytes of data that came in connections of a port, repeated ones as well."""
        return sum(len(segment.payload) for segment in self.find("any", port))

    def _ring(self) -> None:
        os.write(self._bell[1], b"!")

    def _decide(self, segment: Segment) -> Fate:
        self.seen.append(segment.copy())
        for rule in self.rules:
            if rule.wants(segment):
                return rule.decide(segment)
        return ((0, segment),)

    def _deliver(self, frame: bytes, target: int) -> None:
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            self._socks[0].sendto(frame, self._far[target])

    def _arrive(self, target: int) -> None:
        frame = self._socks[target].recv(1 << 17)
        segment = Segment.parse(frame, 1 - target)
        if not segment:
            self._deliver(frame, target)
            return
        now = time.monotonic()
        with self._lock:
            for delay, made in self._decide(segment):
                heapq.heappush(self._waiting, (now + delay, next(self._serial), made))

    def _due(self) -> float:
        """Deliver what is due; seconds until the next."""
        while True:
            now = time.monotonic()
            with self._lock:
                if not self._waiting or self._waiting[0][0] > now:
                    return max(self._waiting[0][0] - now, 0) if self._waiting else 1.0
                segment = heapq.heappop(self._waiting)[2]
            self._deliver(segment.pack(), 1 - segment.sender)

    def _run(self) -> None:
        try:
            while not self._ends:
                watched: list[socket.socket | int] = [*self._socks, self._bell[0]]
                ready = select.select(watched, [], [], self._due())[0]
                for target, sock in enumerate(self._socks):
                    if sock in ready:
                        self._arrive(target)
                if self._bell[0] in ready:
                    os.read(self._bell[0], 4096)
            self._due()
        except BaseException as error:
            self.failed = error
