# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of connections when agent, machine, module, programs or device go, and come back?"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region import RegionFile
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region import ChunkState
from ringlab import scene as scenes
from ringlab.guest import channel
from ringlab.guest.lib import fill, wait_for
from ringlab.lab import Guest, Lab
from ringlab.remote import Remote
from ringlab.scene import IN_RING, Load, Reason, Scene

LEFT = (abi.Channel.TCP, Reason.PEER_LEFT)
STARTING = (abi.Channel.TCP, Reason.STARTING)
NO_OFFER = (abi.Channel.TCP, Reason.NO_OFFER)


def where(scene: Scene) -> tuple[abi.Channel, Reason] | None:
    """Where the client that was made last is now."""
    scene.look()
    return scene.place("client")


def fresh(scene: Scene) -> tuple[abi.Channel, Reason] | None:
    """A new connection works; where it was."""
    client, server = scene.pair()
    scene.exchange(client, server, 1000)
    place = where(scene)
    client.close()
    server.close()
    return place


def both_offer(scene: Scene) -> None:
    """New connections from either guest are in the played."""
    for way in (scene, scene.turned()):

        def offered(way: Scene = way) -> bool:
            return fresh(way) == IN_RING

        wait_for("the ring", offered)


def new_life(lab: Lab) -> None:
    """The same, with other workers, since a machine was started."""
    for guest in lab.guests:
        scenes.exclude_ports(guest)
    both_offer(Scene(scenes.RING, lab))


# The agent.


@contextmanager
def no_agent(lab: Lab) -> Iterator[None]:
    """kill -9, and another one afterwards."""
    lab.kill_agent()
    try:
        yield
    finally:
        lab.start_agent()


def test_traffic_without_the_agent(lab: Lab, played: Scene) -> None:
    """Nobody needs the agent but machines that come or go."""
    load = Load(played)
    with no_agent(lab):
        load.goes_on()
        assert fresh(played) == IN_RING
    load.goes_on()
    assert fresh(played) == IN_RING
    load.check()


@pytest.mark.limit(120)
def test_a_restarted_agent_tells_of_deaths(lab: Lab, played: Scene) -> None:
    """It finds the machines that its predecessor served, and their end."""
    with no_agent(lab):
        client, _server = played.pair(blocking=True)
        reader = client.later("recv", 1)
    victim = played.there
    told = die(victim, [reader])
    lab.boot(victim)
    assert told < 1.5, f"told after {told:.2f} s"
    new_life(lab)


# Machines.


def die(victim: Guest, calls: list[Any]) -> float:
    """kill -9 of a QEMU; how many seconds until the last of `calls` was reset."""
    victim.kill()
    begin = time.monotonic()
    for call in calls:
        with pytest.raises(ConnectionResetError):
            call.result(10)
    return time.monotonic() - begin


@pytest.mark.limit(120)
def test_a_killed_machine(lab: Lab, played: Scene) -> None:
    """Peers are reset within a second, the chunk is free for the next life, which starts clean."""
    victim, other = played.there, played.here
    before = lab.chunk(victim)
    idle, _ = played.pair(blocking=True)
    full, _ = played.pair(blocking=True)
    played.one.run(fill, full)
    waiting, _ = played.pair()
    poll = played.one.later("wait", waiting, select.POLLIN, 10.0)
    reader, writer = idle.later("recv", 1), full.later("sendall", b"x" * 100_000)
    assert not writer.done(0.2)
    told = die(victim, [reader, writer])
    assert poll.result(5) & select.POLLERR
    assert told < 1.0, f"told after {told:.2f} s"
    assert lab.chunk(victim).state == ChunkState.DEAD
    assert lab.chunk(victim).epoch != before.epoch
    wait_for("no connections", lambda: not other.run(channel.status)["connections"])

    lab.boot(victim)
    status = victim.run(channel.status)
    assert [status[name] for name in ("connections", "slots_busy", "opened")] == [0, 0, 0]
    after = lab.chunk(victim)
    assert after.state == ChunkState.ASSIGNED
    assert after.geometry == before.geometry
    new_life(lab)


@pytest.mark.limit(120)
def test_a_rebooted_machine(lab: Lab, played: Scene) -> None:
    """Without a process that ends: its next life tells the peers of the former one's end."""
    victim = played.there
    client, _server = played.pair(blocking=True)
    reader = client.later("recv", 1)
    victim.reset()
    lab.equip(victim)
    with pytest.raises(ConnectionResetError):
        reader.result(5)
    new_life(lab)


SENT = 20_000


def both_send_and_end(played: Scene, first: int = 1) -> list[Remote]:
    """What the second guest has of two connections that the first one's ends have closed: one as
    its server, one as its client. Of each `first` bytes are read."""
    client, server = played.pair()
    turned = played.turned()
    other_client, other_server = turned.pair()
    for scene, sock in ((played, client), (turned, other_server)):
        scene.send(sock, b"A" * SENT)
        sock.close()
    assert played.wait(server, select.POLLRDHUP)
    assert turned.wait(other_client, select.POLLRDHUP)
    for sock in (server, other_client):
        assert not first or sock.recv(first) == b"A" * first
    return [server, other_client]


@pytest.mark.limit(120)
def test_what_a_machine_sent_before_it_died(lab: Lab, played: Scene) -> None:
    """It closed, so all of it is there: nobody loses the rest, nobody takes a part for all."""
    kept = both_send_and_end(played)
    victim = played.here
    victim.kill()
    try:
        wait_for("both left", lambda: not played.there.run(channel.status)["connections"])
        for sock in kept:
            assert sock.recv(SENT) == b"A" * (SENT - 1)
            assert sock.recv(1) == b""
            sock.close()
    finally:
        lab.boot(victim)
    new_life(lab)


@pytest.mark.limit(120)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_what_a_machine_sent_before_it_rebooted(
    lab: Lab, played: Scene, first: int, ended: bool
) -> None:
    """Its next life empties its slots: what was in them ends with an error, not as a whole."""
    in_its_slot, in_ours = kept = both_send_and_end(played, first)
    if ended:
        for sock in kept:
            sock.shutdown(socket.SHUT_WR)
        time.sleep(0.2)  # TCP is done with both
    victim = played.here
    victim.reset()
    lab.equip(victim)
    wait_for("both left", lambda: not played.there.run(channel.status)["connections"])
    assert in_ours.recv(SENT) == b"A" * (SENT - first)
    assert in_ours.recv(1) == b""
    with pytest.raises(ConnectionResetError):
        in_its_slot.recv(SENT)
    new_life(lab)


@pytest.mark.limit(120)
def test_a_life_that_ended_while_it_goes_on(lab: Lab, played: Scene) -> None:
    """The hypervisor says that a machine is dead, and it hears that: it lets go, as all do."""
    victim = played.here
    ends = played.pair(blocking=True)
    readers = [sock.later("recv", 1) for sock in ends]
    with RegionFile(str(lab.region)) as file:
        chunks = [lab.chunk(guest) for guest in lab.guests]
        file.end_life(victim.number - 1, [])
        try:
            for reader in readers:
                with pytest.raises(ConnectionResetError):
                    reader.result(5)
            assert not victim.run(channel.status)["ready"]
            assert fresh(played) == (abi.Channel.TCP, Reason.STARTING)
            assert fresh(played.turned()) == (abi.Channel.TCP, Reason.NO_OFFER)
        finally:
            file.begin_life(lab.chunk(victim), chunks[0].owner)
    address = victim.run(channel.bound)[0]
    victim.run(channel.unbind, address)
    victim.run(channel.bind, address)
    new_life(lab)


def test_memory_that_is_not_cached(lab: Lab, played: Scene) -> None:
    """A device whose memory is slower than the network is refused, and TCP goes on."""
    guest = played.here
    address = guest.run(channel.bound)[0]
    guest.run(channel.unbind, address)
    guest.run(channel.parameter, "cached_mbps", str(10**9))
    try:
        with pytest.raises(OSError, match="not supported"):
            guest.run(channel.bind, address)
        assert guest.run(channel.bound) == []
    finally:
        guest.run(channel.parameter, "cached_mbps", "100")
        guest.run(channel.bind, address)
    new_life(lab)


# Resets that get lost.


@contextmanager
def no_resets(guest: Guest) -> Iterator[None]:
    """No RST leaves a guest."""
    hook = "type filter hook output priority 0"
    guest.run(
        channel.run, "nft", f"table inet lost {{ chain out {{ {hook}; tcp flags rst drop; }}; }}"
    )
    try:
        yield
    finally:
        guest.run(channel.run, "nft", "delete table inet lost")


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("waits", ["writer", "reader"])
def test_a_lost_reset(played: Scene, side: str, waits: str) -> None:
    """Who waits hears of it all the same; TCP's next segment would ask."""
    client, server = played.pair(blocking=True)
    stays, goes = (client, server) if side == "client" else (server, client)
    played.at(stays).run(fill, stays)
    call = stays.later("recv", 1) if waits == "reader" else stays.later("sendall", b"x" * 100_000)
    with no_resets(played.at(goes).guest):
        goes.close()
        assert not call.done(0.3)
    with pytest.raises(ConnectionResetError):
        call.result(3)


# Module, programs, driver.


def test_unloading_in_use_is_refused(played: Scene) -> None:
    load = Load(played)
    assert "in use" in played.here.run(channel.rmmod, 0.1)
    load.goes_on()
    assert where(played) == IN_RING
    load.check()


@pytest.mark.parametrize("which", [0, 1])
def test_unloading_and_loading_under_load(lab: Lab, played: Scene, which: int) -> None:
    """Drained first: the connection goes on by TCP through all of it."""
    guest = lab.guests[which]
    load = Load(played)
    guest.run(channel.drain, True)
    guest.run(channel.unload_programs)
    assert not guest.run(channel.rmmod)
    load.goes_on()
    lab.equip(guest)
    scenes.exclude_ports(guest)
    load.goes_on()
    both_offer(played)
    load.check()


@pytest.mark.parametrize("which", [0, 1])
def test_unbinding_under_load(lab: Lab, played: Scene, which: int) -> None:
    """The driver lets go of the device when all its connections are TCP's."""
    guest = lab.guests[which]
    loads = [Load(played, seed) for seed in (1, 5)]
    device = lab.device(guest, "doorbell")
    guest.run(channel.unbind, device)
    try:
        for load in loads:
            load.goes_on()
        assert fresh(played) != IN_RING
    finally:
        guest.run(channel.bind, device)
    both_offer(played)
    for load in loads:
        load.check()


def test_programs_go_under_load(lab: Lab, played: Scene) -> None:
    """Data path and handshake go: C moves the ring, and new connections are TCP's."""
    load = Load(played)
    for guest in lab.guests:
        guest.run(channel.use_programs, False)
        guest.run(channel.attach_handshake, False)
    try:
        load.goes_on()
        assert where(played) == IN_RING
    finally:
        for guest in lab.guests:
            guest.run(channel.attach_handshake, True)
            guest.run(channel.use_programs, True)
    load.check()
    both_offer(played)


@pytest.mark.parametrize("which", [0, 1])
def test_draining_under_load(lab: Lab, played: Scene, which: int) -> None:
    guest = lab.guests[which]
    loads = [Load(played, seed, address) for seed, address in ((1, ""), (5, "fd00:9::2"), (9, ""))]
    guest.run(channel.drain, True)
    try:
        assert not guest.run(channel.status)["connections"]
        for load in loads:
            load.goes_on()
        wait_for("what was unread to be read", lambda: where(played) == LEFT)
        assert fresh(played) == (STARTING if guest is played.here else NO_OFFER)
    finally:
        guest.run(channel.drain, False)
    both_offer(played)
    for load in loads:
        load.check()


def eager(sock: socket.socket) -> bytes:
    """Receives without sleeping until something comes."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return sock.recv(100, socket.MSG_DONTWAIT)


def test_draining_beside_an_eager_reader(lab: Lab, played: Scene) -> None:
    """The reader may see first that the peer left; a writer that waits beside it goes on."""
    data = os.urandom(300_000)
    for _ in range(10):
        client, server = played.pair(blocking=True)
        writer, reader = client.later("sendall", data), played.one.later(eager, client)
        played.arrived(server, 10_000)
        played.there.run(channel.drain, True)
        try:
            assert played.receive(server, len(data)) == data
            writer.result(5)
            played.send(server, b"end")
            assert reader.result(5) == b"end"
        finally:
            played.there.run(channel.drain, False)


# Machines that hang.


@contextmanager
def hung(guest: Guest) -> Iterator[None]:
    """Its processors stand still."""
    os.kill(guest.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(guest.pid, signal.SIGCONT)


def test_a_machine_that_hangs(lab: Lab, played: Scene) -> None:
    """Who waits for room in its ring goes on by TCP, which has its own patience."""
    silence = "/sys/module/tcp_sm/parameters/silence_s"
    client, server = played.pair()
    played.here.run(channel.write, silence, "2")
    try:
        with hung(played.there):
            took = played.one.run(fill, client)
            assert played.wait(client, select.POLLOUT, 10) & select.POLLOUT
            assert client.send(b"by TCP") == 6
    finally:
        played.here.run(channel.write, silence, "15")
    assert played.receive(server, took + 6, 20)[took:] == b"by TCP"
    played.exchange(client, server)
    assert where(played) == LEFT
    both_offer(played)


# The device.


def test_unbinding_with_unread_bytes(lab: Lab, played: Scene) -> None:
    """What nobody has read yet outlives the device, and keeps nobody waiting."""
    client, server = played.pair()
    played.send(client, b"unread" * 100)
    played.arrived(server, 600)
    guest = played.there
    address = guest.run(channel.bound)[0]
    guest.run(channel.drain, True)
    guest.run(channel.unbind, address)
    try:
        assert played.receive(server, 600) == b"unread" * 100
        played.exchange(client, server)
        assert where(played) == LEFT
    finally:
        guest.run(channel.bind, address)
        lab.ready()
    both_offer(played)


def removed(guest: Guest, backend: str) -> bool:
    """Remove a character device; False: it is busy."""
    try:
        guest.qmp("chardev-remove", id=backend)
    except RuntimeError as error:
        if "busy" not in str(error):
            raise
        return False
    return True


@contextmanager
def unplugged(lab: Lab, guest: Guest) -> Iterator[None]:
    """Without its device; then with another one, which has its own connection to the agent."""
    devices = guest.run(channel.devices)
    guest.qmp("device_del", id="ring")
    wait_for("no device", lambda: len(guest.run(channel.devices)) < len(devices), 20)
    try:
        yield
    finally:
        address = {"type": "unix", "data": {"path": str(lab.sock)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        # The guest has let go of the device before QEMU has freed it.
        wait_for("the device freed", lambda: removed(guest, "agent"), 20)
        guest.qmp("chardev-add", id="agent", backend=backend)
        device = {"driver": "ivshmem-doorbell", "vectors": 1, "chardev": "agent"}
        # Older kernels ask drivers about whatever is plugged in, even with drivers_autoprobe off.
        guest.run(channel.autoprobe, True)
        guest.qmp("device_add", id="ring", bus="port0", **device)
        wait_for("the device driven", lambda: guest.run(channel.bound), 20)
        guest.run(channel.autoprobe, False)


@pytest.mark.limit(90)
@pytest.mark.parametrize("drained", [True, False])
def test_unplugging_under_load(lab: Lab, played: Scene, drained: bool) -> None:
    """Drained as an operator would, or by the driver when the guest is asked for the device."""
    guest = played.there
    load = Load(played)
    if drained:
        guest.run(channel.drain, True)
    with unplugged(lab, guest):
        load.goes_on()
    both_offer(played)
    load.check()
