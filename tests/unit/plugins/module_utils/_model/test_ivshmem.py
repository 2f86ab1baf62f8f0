# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a client of the IVSHMEM server hear everything once, in order, and nothing that hurts it?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import ivshmem
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.ivshmem import (
    Identity,
    Message,
    View,
    parse_identity,
)


def drain(view: View, peers: Mapping[int, int]) -> list[Message]:
    """Everything the client has to be told."""
    told = []
    while message := view.next(peers):
        view.sent(message)
        told.append(message)
    return told


def test_a_message_is_a_little_endian_64_bit_number() -> None:
    assert ivshmem.encode(-1) == b"\xff" * 8
    assert ivshmem.encode(258) == b"\x02\x01" + bytes(6)
    assert [ivshmem.decode(ivshmem.encode(value)) for value in (0, -1, 65535)] == [0, -1, 65535]


def test_a_client_hears_version_id_memory_then_the_others_then_itself() -> None:
    assert drain(View(1), {0: 2, 1: 2, 5: 1}) == [
        Message(ivshmem.PROTOCOL_VERSION),
        Message(1),
        Message(ivshmem.MEMORY, memory=True),
        Message(0, vector=0),
        Message(0, vector=1),
        Message(5, vector=0),
        Message(1, vector=0),
        Message(1, vector=1),
    ]


def test_a_client_hears_everything_only_once() -> None:
    view = View(1)
    drain(view, {0: 1, 1: 1})
    assert drain(view, {0: 1, 1: 1}) == []
    assert drain(view, {0: 1, 1: 1, 2: 1}) == [Message(2, vector=0)]


def test_a_client_is_never_told_of_a_leave() -> None:
    view = View(1)
    drain(view, {0: 1, 1: 1})
    assert drain(view, {1: 1}) == []
    assert drain(view, {0: 1, 1: 1}) == []


def test_what_was_not_sent_is_asked_for_again() -> None:
    view = View(1)
    assert view.next({}) == view.next({}) == Message(0)
    assert [message.value for message in drain(view, {})] == [0, 1, -1]


@pytest.mark.parametrize(
    ("arguments", "identity"),
    [
        (["qemu", "-name", "guest=web,debug-threads=on"], Identity("web")),
        (["qemu", "-name", "web"], Identity("web")),
        (["qemu", "-name", "web,process=x"], Identity("web")),
        (["qemu", "-name", "debug-threads=on,guest=web"], Identity("web")),
        (["qemu", "-name", "guest=a,,b"], Identity("a,b")),
        (["qemu", "--name", "guest=web"], Identity("web")),
        (["qemu", "-uuid", "AB-CD", "-name", "guest=web"], Identity("web", "ab-cd")),
        (["qemu", "-uuid", "ab-cd"], Identity("", "ab-cd")),
        (["qemu", "-name", "process=x"], Identity()),
        (["qemu", "-name"], Identity()),
        (["qemu"], Identity()),
        ([], Identity()),
    ],
)
def test_a_machine_is_known_by_its_command_line(arguments: list[str], identity: Identity) -> None:
    assert parse_identity(arguments) == identity


def test_a_machine_may_own_its_chunk_by_name_or_by_uuid() -> None:
    assert Identity("web", "ab-cd").names == ("web", "ab-cd")
    assert (str(Identity("web", "ab-cd")), str(Identity("", "ab-cd"))) == ("web", "ab-cd")
    assert str(Identity()) == "without a name"
