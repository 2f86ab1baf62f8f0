# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python side of ``bpf/tcp_sm.h``: layouts, enums and what they mean.

Private to this collection. Every layout is little enough to be a
:mod:`struct` format; the unit tests hold it against the header and against
the BTF of the compiled object. Nothing here touches the machine.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import struct
import sys
from collections.abc import Iterator
from typing import Any

ABI_VERSION = 1


class Mode(enum.IntEnum):
    """``enum tcp_sm_mode``."""

    PASS = 0
    ON = 1
    DRAIN = 2


class Channel(enum.IntEnum):
    """``enum tcp_sm_channel``: the way a connection's bytes take."""

    TCP = 0
    SOCKMAP = 1
    RING = 2


class Rule(enum.IntEnum):
    """``enum tcp_sm_rule``: the value of a port or address rule."""

    NONE = 0
    INCLUDE = 1
    EXCLUDE = 2


class Side(enum.IntEnum):
    """``enum tcp_sm_side``."""

    CLIENT = 0
    SERVER = 1


class Event(enum.IntEnum):
    """``enum tcp_sm_event``: why a record was written."""

    STATUS = 0
    OPEN = 1
    CLOSE = 2


class Reason(enum.IntEnum):
    """``enum tcp_sm_reason``: why a connection is on TCP; NONE when it is accelerated."""

    NONE = 0
    NO_LOCAL_PEER = 1
    MODE_PASS = 2
    PORT = 3
    CIDR = 4
    LEARNING = 5
    BLOCKING = 6
    TFO = 7
    MPTCP = 8
    ULP = 9
    ZEROCOPY = 10
    TIMESTAMP = 11
    RCVLOWAT = 12
    INQ = 13
    PEEK_OFF = 14
    OOB = 15
    SPLICE = 16
    RECV_FLAGS = 17
    REPAIR = 18
    SHORT = 19
    STREAM = 20
    PEER_LEFT = 21
    NO_MEMORY = 22
    BUSY = 23
    STARTING = 24
    SENDFILE = 25
    NO_REGION = 26
    NO_OFFER = 27
    OTHER_REGION = 28
    SLOTS = 29
    DEFER_ACCEPT = 30
    SAME_GUEST = 31
    UNCONFIRMED = 32


class TcpState(enum.IntEnum):
    """The kernel's TCP states (``include/net/tcp_states.h``)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


# One sentence an operator can act on: what it means, and what to do.
EXPLANATIONS: dict[Reason, str] = {
    Reason.NONE: "The connection is accelerated; nothing to do.",
    Reason.NO_LOCAL_PEER: (
        "The other end is not a socket of this kernel inside the accelerated cgroups; if it "
        "does run on this host, add its cgroup to container_cgroups and let it reconnect."
    ),
    Reason.MODE_PASS: (
        "The mode is `pass` or `drain`, so nothing is accelerated; set container_mode (in a "
        "virtual machine: guest_mode) to `on` and let the application reconnect."
    ),
    Reason.PORT: (
        "A port rule keeps this server port out; change container_ports_include or "
        "container_ports_exclude (in a virtual machine: guest_ports_...) to let it in."
    ),
    Reason.CIDR: (
        "An address rule keeps one of the two addresses out; change container_cidrs_include "
        "or container_cidrs_exclude (in a virtual machine: guest_cidrs_...) to let it in."
    ),
    Reason.LEARNING: (
        "The first connections to a port are only watched, to learn how its programs use "
        "their sockets; later connections follow, or set container_eager to skip this."
    ),
    Reason.BLOCKING: (
        "One end is a blocking socket, which would see errors TCP does not give; only "
        "programs with non-blocking sockets (O_NONBLOCK) can be accelerated."
    ),
    Reason.TFO: (
        "The connection was opened with TCP Fast Open, which sends data before the ends are "
        "paired; switch it off in the application if acceleration matters more."
    ),
    Reason.MPTCP: (
        "The socket belongs to Multipath TCP, which has a data path of its own; use plain "
        "TCP for connections inside one host."
    ),
    Reason.ULP: (
        "The connection begins with a TLS handshake, which may lead to kTLS, or has an upper layer "
        "protocol already; TLS stays on TCP."
    ),
    Reason.ZEROCOPY: (
        "The application set SO_ZEROCOPY and waits for completions only TCP gives; switch "
        "zero-copy sends off for connections inside one host."
    ),
    Reason.TIMESTAMP: (
        "The application asked for packet timestamps (SO_TIMESTAMP or SO_TIMESTAMPING), "
        "which exist only for packets; switch them off to have it accelerated."
    ),
    Reason.RCVLOWAT: (
        "The application set SO_RCVLOWAT above 1, which only TCP honours; remove that option "
        "to have it accelerated."
    ),
    Reason.INQ: (
        "The application set TCP_INQ, which only TCP answers; remove that option to have it "
        "accelerated."
    ),
    Reason.PEEK_OFF: (
        "The application set SO_PEEK_OFF, which only TCP honours; remove that option to have "
        "it accelerated."
    ),
    Reason.OOB: (
        "Urgent (out-of-band) data was used, which only TCP can deliver out of band; nothing to do."
    ),
    Reason.SPLICE: (
        "Bytes were read past recv, by splice or TCP_ZEROCOPY_RECEIVE, which see only TCP's "
        "queue; switch the application to plain reads to have it accelerated."
    ),
    Reason.RECV_FLAGS: (
        "The application receives with MSG_TRUNC, MSG_OOB or MSG_ERRQUEUE, which only TCP "
        "honours; nothing to do."
    ),
    Reason.REPAIR: (
        "The socket is in TCP_REPAIR mode (checkpoint and restore); nothing to do, new "
        "connections are not affected."
    ),
    Reason.SHORT: (
        "Connections of this port end before acceleration pays for its set-up; use "
        "keep-alive or a connection pool in the application to gain."
    ),
    Reason.STREAM: (
        "The connection is mostly a one-way stream, which TCP carries as fast; nothing to do, "
        "or raise container_max_burst, the bytes one end may redirect before the other answers."
    ),
    Reason.PEER_LEFT: (
        "The other end had to stay on TCP or went back to it; look at that end's own reason."
    ),
    Reason.NO_MEMORY: (
        "A map of the BPF object is full; narrow container_cgroups or the port rules, or load "
        "it with larger max_entries (module bpf_object)."
    ),
    Reason.BUSY: (
        "Another sockmap user, such as a service mesh or a security agent, owns the socket; "
        "exclude this port on one of the two sides."
    ),
    Reason.STARTING: (
        "Both ends are known and nothing has been redirected yet; it will be once bytes have "
        "gone both ways by TCP and were read."
    ),
    Reason.SENDFILE: (
        "The sender uses sendfile for large pieces, which TCP moves without a copy; nothing to do."
    ),
    Reason.NO_REGION: (
        "This machine has no shared memory region; attach one with colocated.tcp_sm.ivshmem_domain."
    ),
    Reason.NO_OFFER: (
        "Normal where the other end takes no part, as Ansible's own ssh does; if it is a machine "
        "of this region, its status names what it lacks, or the TCP option is lost on the way."
    ),
    Reason.OTHER_REGION: (
        "The other end is not in this machine's region: another hypervisor or trust domain, "
        "or its life ended meanwhile."
    ),
    Reason.SLOTS: (
        "All slots of the client's chunk are taken; give the machine a larger chunk or smaller "
        "rings."
    ),
    Reason.DEFER_ACCEPT: "The listener uses TCP_DEFER_ACCEPT, which needs the first bytes by TCP.",
    Reason.SAME_GUEST: "Both ends are in this machine; the sockmap channel is for these.",
    Reason.UNCONFIRMED: (
        "The other end did not confirm that it uses the ring; it was being changed, or gave up."
    ),
}


# For a record on TCP without a reason, which the programs should never write.
UNKNOWN_REASON = "unknown"


def reason_name(code: int) -> str | None:
    """The lower-case name of a reason code, ``None`` for 0, ``reason_<n>`` for unknown ones."""
    if code == Reason.NONE:
        return None
    try:
        return Reason(code).name.lower()
    except ValueError:
        return f"reason_{code}"


def explain(name: str | None) -> str:
    """One sentence for a reason's lower-case name (``None``: accelerated)."""
    if name == UNKNOWN_REASON:
        return "The connection is on TCP and no reason was recorded; please report this as a bug."
    try:
        return EXPLANATIONS[Reason[(name or "none").upper()]]
    except KeyError:
        return (
            f"Reason {name} is unknown to this version of the collection; update it to the "
            "version that loaded the BPF object."
        )


def channel_name(code: int) -> str:
    """The lower-case name of a channel; ``channel_<n>`` for unknown ones."""
    try:
        return Channel(code).name.lower()
    except ValueError:
        return f"channel_{code}"


def state_name(code: int) -> str:
    """The lower-case name of a TCP state; ``state_<n>`` for unknown ones."""
    try:
        return TcpState(code).name.lower()
    except ValueError:
        return f"state_{code}"


@dataclasses.dataclass(frozen=True)
class Field:
    """A member of a C struct: its name, the struct code of one element, its array length.

    ``code`` is a :mod:`struct` code for a scalar, or the name of a struct in
    :data:`STRUCTS`; ``count`` is 0 for a scalar.
    """

    name: str
    code: str
    count: int = 0


def _fields(code: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, code) for name in names)


# In the order of the header. Codes: B __u8, H __u16, I __u32, Q __u64.
STRUCTS: dict[str, tuple[Field, ...]] = {
    "tcp_sm_config": _fields(
        "I",
        "abi",
        "mode",
        "max_unread_bytes",
        "max_unread_msgs",
        "max_burst",
        "eager",
        "ports_included",
        "cidrs_included",
        "events",
        "reserved",
    ),
    "tcp_sm_cidr": (Field("prefixlen", "I"), Field("addr", "B", 16)),
    "tcp_sm_pair": _fields("I", "client_isn", "server_isn"),
    "tcp_sm_end": (Field("pair", "tcp_sm_pair"), Field("side", "I")),
    "tcp_sm_flow": _fields("Q", "bytes", "msgs", "read_bytes", "passed_msgs"),
    "tcp_sm_record": (
        *_fields("Q", "cookie", "peer_cookie", "cgroup", "opened_ns", "tcp_sent", "tcp_received"),
        *_fields("tcp_sm_flow", "tx", "rx"),
        Field("pair", "tcp_sm_pair"),
        Field("netns", "I"),
        *_fields("H", "family", "local_port", "remote_port"),
        *_fields("B", "side", "channel", "reason", "tcp_state", "event", "version"),
        Field("local_addr", "B", 16),
        Field("remote_addr", "B", 16),
    ),
    "tcp_sm_stats": (
        Field("opened", "Q", 3),
        *_fields(
            "Q",
            "closed",
            "redirected_bytes",
            "redirected_msgs",
            "passed_msgs",
            "left",
            "lost_events",
        ),
        Field("reasons", "Q", 64),
    ),
}

# The byte order of this machine without padding; the header has none either.
_ORDER = "<" if sys.byteorder == "little" else ">"


def struct_format(name: str) -> str:
    """The :mod:`struct` format of a C struct, byte arrays as one ``<n>s`` item."""
    return _ORDER + _codes(name)


def _codes(name: str) -> str:
    codes = []
    for field in STRUCTS[name]:
        code = _codes(field.code) if field.code in STRUCTS else field.code
        if field.count and code == "B":
            codes.append(f"{field.count}s")
        else:
            codes.append(code * (field.count or 1))
    return "".join(codes)


@functools.cache
def _compiled(name: str) -> struct.Struct:
    return struct.Struct(struct_format(name))


def struct_size(name: str) -> int:
    """The size of a C struct in bytes."""
    return _compiled(name).size


def unpack(name: str, data: bytes) -> dict[str, Any]:
    """Decode one struct into nested dicts; byte arrays stay ``bytes``, others become lists.

    Raises :class:`struct.error` when ``data`` has another length.
    """
    values = iter(_compiled(name).unpack(data))
    return _assemble(name, values)


def _assemble(name: str, values: Iterator[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in STRUCTS[name]:
        if field.code in STRUCTS:
            result[field.name] = _assemble(field.code, values)
        elif field.count and field.code != "B":
            result[field.name] = [next(values) for _index in range(field.count)]
        else:
            result[field.name] = next(values)
    return result


# What the container role's defaults say; `abi` and `reserved` are not settings.
DEFAULT_CONFIG: dict[str, int] = {
    "abi": ABI_VERSION,
    "mode": int(Mode.ON),
    "max_unread_bytes": 4194304,
    "max_unread_msgs": 16384,
    "max_burst": 262144,
    "eager": 0,
    "ports_included": 0,
    "cidrs_included": 0,
    "events": 0,
    "reserved": 0,
}
