# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a connection fall back to plain TCP, with the reason, when anything is missing?

Each test transfers bytes both ways, compares them, counts them on the cable, and looks at
what both ends say. An end that cannot know why says that the other one did not offer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.abi import Channel
from ringlab import scene as scenes
from ringlab.cable import Cable, Segment, strip
from ringlab.guest import channel
from ringlab.guest.lib import LIBC, accept, connect, listener, wait_for
from ringlab.lab import CONFIG_ON, CONFIG_PASS, Guest, Lab
from ringlab.remote import Remote
from ringlab.scene import PORT, Reason, Scene

SIZE = 20_000
TCP_FASTOPEN_CONNECT, TCP_ULP = 30, 31
IPPROTO_MPTCP = 262
DEFER = ((socket.SOL_TCP, socket.TCP_DEFER_ACCEPT, 1),)


def stays(
    scene: Scene, cable: Cable, client: Reason | None, server: Reason | None, port: int = PORT
) -> None:
    """Both ends are on TCP for these reasons (None: nobody asked), and TCP carried all."""
    scene.look()
    expected = [why and (Channel.TCP, why) for why in (client, server)]
    assert [scene.place("client"), scene.place("server")] == expected
    assert cable.payload(port) >= 2 * SIZE, "the bytes did not cross the network"


def falls_back(scene: Scene, cable: Cable, client: Reason | None, server: Reason | None) -> None:
    """An ordinary connection, transferred and looked at."""
    one, two = scene.pair()
    scene.exchange(one, two, SIZE)
    stays(scene, cable, client, server)


def in_ring(scene: Scene, cable: Cable) -> None:
    """An ordinary connection goes through the ring, on another port."""
    one, two = scene.pair()
    port = two.getsockname()[1]
    scene.exchange(one, two, SIZE)
    scene.look()
    assert {scene.place("client"), scene.place("server")} == {(Channel.RING, Reason.NONE)}
    assert cable.payload(port) == 0, "bytes crossed the network"


def restore(lab: Lab, guest: Guest, provider: str = "doorbell") -> None:
    """The guest as it was: module, device, programs."""
    for address in guest.run(channel.bound) if guest.run(channel.has_module) else ():
        guest.run(channel.unbind, address)
    guest.run(channel.unload_programs)
    lab.equip(guest, provider)
    scenes.exclude_ports(guest)


@contextlib.contextmanager
def changed(lab: Lab, *guests: Guest) -> Iterator[None]:
    """Afterwards these guests are restored, and ready."""
    try:
        yield
    finally:
        for guest in guests:
            restore(lab, guest)
        lab.ready()


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_without_a_device(played: Scene, cable: Cable, side: int) -> None:
    guest = played.lab.guests[side]
    reasons = (Reason.NO_REGION, Reason.NO_OFFER)
    with changed(played.lab, guest):
        guest.run(channel.unbind, guest.run(channel.bound)[0])
        falls_back(played, cable, reasons[side], reasons[1 - side])
    in_ring(played, cable)


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_without_a_module(played: Scene, cable: Cable, side: int) -> None:
    """Also another host: a peer that knows nothing of all this."""
    guest = played.lab.guests[side]
    with changed(played.lab, guest):
        guest.run(channel.unbind, guest.run(channel.bound)[0])
        guest.run(channel.unload_programs)
        assert not guest.run(channel.rmmod)
        reasons = (None, Reason.NO_OFFER)
        falls_back(played, cable, reasons[side], reasons[1 - side])
    in_ring(played, cable)


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_without_programs(played: Scene, cable: Cable, side: int) -> None:
    guest = played.lab.guests[side]
    guest.run(channel.attach_handshake, False)
    try:
        reasons = (None, Reason.NO_OFFER)
        falls_back(played, cable, reasons[side], reasons[1 - side])
    finally:
        guest.run(channel.attach_handshake, True)
    in_ring(played, cable)


@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_other_region(played: Scene, cable: Cable, side: int) -> None:
    """The server finds out by the tag; the client hears nothing."""
    guest = played.lab.guests[side]
    with changed(played.lab, guest):
        restore(played.lab, guest, "other")
        played.lab.ready()
        falls_back(played, cable, Reason.NO_OFFER, Reason.OTHER_REGION)
    in_ring(played, cable)


def open_many(address: str, port: int, count: int) -> list[socket.socket]:
    return [connect(address, port) for _ in range(count)]


def accept_many(door: socket.socket, count: int) -> list[socket.socket]:
    return [accept(door) for _ in range(count)]


def test_slots_exhausted(played: Scene, cable: Cable) -> None:
    """All slots of a small region: the next is TCP, and when one is free, the ring again."""
    lab = played.lab
    with changed(lab, *lab.guests):
        for guest in lab.guests:
            restore(lab, guest, "other")
        lab.ready()
        slots = played.here.run(channel.status)["slots"]
        door, port = played.door()
        ends = played.one.run(open_many, played.there.address, port, slots)
        others = played.two.run(accept_many, door, slots)
        assert played.here.run(channel.status)["slots_busy"] == slots
        one, two = played.meet(door, port)
        played.exchange(one, two, SIZE)
        stays(played, cable, Reason.SLOTS, Reason.NO_OFFER)
        ends.pop().close()
        others.pop().close()
        wait_for("a free slot", lambda: played.here.run(channel.status)["slots_busy"] < slots)
        in_ring(played, cable)
        played.end()
        lab.quiet()


def test_stripped_by_nftables(played: Scene, cable: Cable) -> None:
    """A firewall that takes unknown options away."""
    played.there.run(
        channel.run, "nft",
        "table ip strip { chain in { type filter hook prerouting priority raw;"
        " tcp flags & syn == syn reset tcp option 254; }; }",
    )  # fmt: skip
    try:
        falls_back(played, cable, Reason.NO_OFFER, Reason.NO_OFFER)
        assert cable.find("syn")[0].offer, "there was nothing to strip"
    finally:
        played.there.run(channel.run, "nft", "delete table ip strip")
    in_ring(played, cable)


@pytest.mark.parametrize("kind", ["syn", "synack"])
def test_stripped_on_the_way(played: Scene, cable: Cable, kind: str) -> None:
    cable.rule(kind, strip)
    # The server saw an offer and accepted it, of which the client knows nothing.
    server = Reason.NO_OFFER if kind == "syn" else Reason.UNCONFIRMED
    falls_back(played, cable, Reason.NO_OFFER, server)
    assert cable.find(kind)[0].offer, "there was nothing to strip"


@pytest.mark.parametrize(
    ("side", "client", "server"),
    [(0, Reason.NO_OFFER, Reason.OTHER_REGION), (1, Reason.OTHER_REGION, Reason.UNCONFIRMED)],
    ids=["offer", "acceptance"],
)
def test_option_of_a_stranger(
    played: Scene, cable: Cable, side: int, client: Reason, server: Reason
) -> None:
    """The tag is not one of this region."""

    def forge(segment: Segment) -> list[tuple[float, Segment]]:
        option = bytearray(segment.offer)
        option[-1] ^= 1
        segment.replace_offer(bytes(option))
        return [(0, segment)]

    cable.rule("synack" if side else "syn", forge)
    falls_back(played, cable, client, server)


@pytest.mark.parametrize("kind", ["verbatim", "as an acceptance"])
def test_server_echoes_options(played: Scene, cable: Cable, kind: str) -> None:
    """A server without the channel that sends unknown options back accepts nothing."""

    def echo(segment: Segment) -> list[tuple[float, Segment]]:
        assert not segment.offer
        option = bytearray(cable.find("syn")[0].offer)
        if kind != "verbatim":
            option[4] = 2
        segment.replace_offer(bytes(option))
        return [(0, segment)]

    played.there.run(channel.attach_handshake, False)
    try:
        cable.rule("synack", echo)
        client = Reason.NO_OFFER if kind == "verbatim" else Reason.OTHER_REGION
        falls_back(played, cable, client, None)
    finally:
        played.there.run(channel.attach_handshake, True)


def test_defer_accept(played: Scene, cable: Cable) -> None:
    one, two = played.pair(server=DEFER, first=b"first")
    played.exchange(one, two, SIZE)
    stays(played, cable, Reason.NO_OFFER, Reason.DEFER_ACCEPT)


@contextlib.contextmanager
def sysctl(guest: Guest, name: str, value: str) -> Iterator[None]:
    """Set until the end."""
    path = f"/proc/sys/net/ipv4/{name}"
    before = guest.run(channel.read, path)
    guest.run(channel.write, path, value)
    try:
        yield
    finally:
        guest.run(channel.write, path, before)


def test_syn_cookies(played: Scene, cable: Cable) -> None:
    """Nothing is left of the SYN when its connection is made."""
    with sysctl(played.there, "tcp_syncookies", "2"):
        falls_back(played, cable, Reason.NO_OFFER, Reason.NO_OFFER)
        assert cable.find("syn")[0].offer
        assert not cable.find("synack")[0].offer


def test_fast_open_client(played: Scene, cable: Cable) -> None:
    """The first asks for a cookie, the second has data in its SYN."""
    option = ((socket.SOL_TCP, TCP_FASTOPEN_CONNECT, 1),)
    with sysctl(played.here, "tcp_fastopen", "3"), sysctl(played.there, "tcp_fastopen", "3"):
        door, port = played.door(options=((socket.SOL_TCP, socket.TCP_FASTOPEN, 5),))
        for data in (b"", b"in the SYN"):
            one, two = played.meet(door, port, client=option, first=data or b"later")
            played.exchange(one, two, SIZE)
            assert cable.find("syn")[-1].payload == data
            stays(played, cable, Reason.TFO, Reason.NO_OFFER)
        # A listener that would take such connections takes others into the ring.
        one, two = played.meet(door, port)
        played.exchange(one, two, SIZE)
        played.look()
        assert played.place("client") == played.place("server") == (Channel.RING, Reason.NONE)
    played.here.run(channel.run, "ip", "tcp_metrics", "flush")


def test_fast_open_server(played: Scene, cable: Cable) -> None:
    """An offer and data in one SYN: the client cannot have settled."""
    early = b"early"

    def insert(segment: Segment) -> list[tuple[float, Segment]]:
        if segment.kind == "syn":
            segment.payload = early
        elif segment.sender == 0:
            segment.seq += len(early)
        else:
            segment.ack -= len(early)
        return [(0, segment)]

    with sysctl(played.there, "tcp_fastopen", str(0x203)):  # no cookie required
        cable.rule("any", insert, None)
        door, port = played.door(options=((socket.SOL_TCP, socket.TCP_FASTOPEN, 5),))
        one, two = played.meet(door, port)
        assert played.receive(two, len(early)) == early
        played.exchange(one, two, SIZE)
        stays(played, cable, Reason.NO_OFFER, Reason.TFO)
        cable.clear()


def multipath(address: str, port: int, listens: bool) -> socket.socket:
    """A socket of Multipath TCP."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    if listens:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(5)
    else:
        sock.connect((address, port))
    return sock


@pytest.mark.parametrize("side", ["both", "client", "server"])
def test_multipath(played: Scene, cable: Cable, side: str) -> None:
    """The sockets that programs see are the kernel's own, so they are found by port."""
    if side == "client":
        door, port = played.door()
    else:
        port = PORT
        door = played.two.run(multipath, "", port, True)
    if side == "server":
        one = played.one.run(connect, played.there.address, port)
    else:
        one = played.one.run(multipath, played.there.address, port, False)
    two = played.two.run(accept, door)
    played.exchange(one, two, SIZE)
    ports = {port, one.getsockname()[1]}
    reasons = [
        [record.reason for record in scenes.kept(guest).values()
         if {record.local_port, record.remote_port} == ports]
        for guest in played.lab.guests
    ]  # fmt: skip
    expected = [[Reason.MPTCP], [Reason.NO_OFFER]]
    assert reasons == (expected[::-1] if side == "server" else expected)
    assert cable.payload(port) >= 2 * SIZE


SOL_TLS, TLS_TX, TLS_RX = 282, 1, 2


def use_tls(sock: socket.socket) -> None:
    """Kernel TLS 1.2 with AES-128-GCM and keys of zeros, both directions."""
    sock.setsockopt(socket.SOL_TCP, TCP_ULP, b"tls")
    keys = struct.pack("<HH", 0x0303, 51) + bytes(36)
    for direction in (TLS_TX, TLS_RX):
        sock.setsockopt(SOL_TLS, direction, keys)


def test_kernel_tls(played: Scene, cable: Cable) -> None:
    """A connection in the ring goes back to TCP for it."""
    for guest in played.lab.guests:
        guest.run(channel.run, "modprobe", "tls")
    one, two = played.pair()
    played.exchange(one, two, SIZE)
    played.look()
    assert played.place("client") == played.place("server") == (Channel.RING, Reason.NONE)
    assert cable.payload(PORT) == 0
    played.one.run(use_tls, one)
    played.two.run(use_tls, two)
    played.exchange(one, two, SIZE)
    stays(played, cable, Reason.ULP, Reason.ULP)


def exchange_inside(
    played: Scene, one: Remote, two: Remote, client: Reason, server: Reason
) -> None:
    """Bytes both ways between two sockets of the first guest, which stay on TCP, each why."""
    played.exchange(one, two, SIZE)
    played.watch(client=(played.one, one), server=(played.one, two))
    played.look()
    assert played.place("client") == (Channel.TCP, client)
    assert played.place("server") == (Channel.TCP, server)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.9.0.1"])
def test_same_guest(played: Scene, address: str) -> None:
    """Over the loopback device nothing is offered."""
    door = played.one.run(listener, "::" if ":" in address else "", PORT)
    one = played.one.run(connect, address, PORT, False)
    two = played.one.run(accept, door, False)
    exchange_inside(played, one, two, Reason.SAME_GUEST, Reason.NO_OFFER)


def listener_in(name: str, port: int) -> socket.socket:
    """A listener in another network namespace."""
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{name}") as there:
        LIBC.setns(there.fileno(), 0)
        try:
            return listener("", port)
        finally:
            LIBC.setns(home.fileno(), 0)


NAMESPACE = """
ip netns add inner
ip link add outer type veth peer name eth0 netns inner
ip address add 10.8.0.1/24 dev outer
ip link set outer up
ip -n inner address add 10.8.0.2/24 dev eth0
ip -n inner link set eth0 up
"""


def test_same_guest_by_a_device(played: Scene) -> None:
    """Two namespaces of one guest: an offer is made, and comes back to its own machine."""
    try:
        for line in NAMESPACE.strip().splitlines():
            played.here.run(channel.run, *line.split())
        door = played.one.run(listener_in, "inner", PORT)
        one = played.one.run(connect, "10.8.0.2", PORT, False)
        two = played.one.run(accept, door, False)
        exchange_inside(played, one, two, Reason.NO_OFFER, Reason.SAME_GUEST)
    finally:
        played.here.run(channel.run, "ip", "netns", "del", "inner")


def begin_connect(own: int, address: str, port: int) -> socket.socket:
    """A socket that connects, from a port of its own."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", own))
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((address, port))
    return sock


def test_simultaneous_open(played: Scene, cable: Cable) -> None:
    """Both ends offer, and nobody is there to accept."""
    cable.rule("syn", cable.hold, None)
    one = played.one.run(begin_connect, PORT, played.there.address, PORT + 1)
    two = played.two.run(begin_connect, PORT + 1, played.here.address, PORT)
    cable.wait("syn", 2)
    cable.clear()
    cable.release()
    for end in (one, two):
        assert played.wait(end, select.POLLOUT) == select.POLLOUT
    played.exchange(one, two, SIZE)
    played.watch(client=(played.one, one), server=(played.two, two))
    assert all(segment.offer for segment in cable.find("syn"))
    stays(played, cable, Reason.NO_OFFER, Reason.NO_OFFER)


# Reason, function, what it is called with to begin and to end.
RULES: dict[str, tuple[Reason, Any, tuple[Any, ...], tuple[Any, ...]]] = {
    "port": (Reason.PORT, channel.port_rule, (PORT, 2), (PORT, 0)),
    "cidr": (Reason.CIDR, channel.cidr_rule, ("10.9.0.0", 24, 2), ("10.9.0.0", 24, 0)),
    "mode": (Reason.MODE_PASS, channel.configure, (CONFIG_PASS,), (CONFIG_ON,)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", ["client", "server", "listening server"])
def test_rules(played: Scene, cable: Cable, side: str, rule: str) -> None:
    """What the operator excludes; also when the listener is older than the rule."""
    reason, change, begin, end = RULES[rule]
    guest = played.here if side == "client" else played.there
    door = None
    if side == "listening server":
        door, port = played.door()
    try:
        guest.run(change, *begin)
        if door is None:
            door, port = played.door()
        one, two = played.meet(door, port)
        played.exchange(one, two, SIZE)
        reasons = (reason, Reason.NO_OFFER)
        stays(played, cable, *(reasons if side == "client" else reasons[::-1]))
    finally:
        guest.run(change, *end)
    in_ring(played, cable)
