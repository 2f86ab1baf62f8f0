# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is what a virtual machine lacks named, and only that?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import guest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.guest import (
    HANDSHAKE,
    RING,
    Device,
    Facts,
    Module,
    Signing,
    describe,
    parse_status,
)

# As kmod/ivshmem.c prints it.
STATUS = """\
chunk 1
epoch 7
slots 4
ring_size 131072
ready 1
closing 0
connections 2
slots_busy 3
slots_lingering 1
opened 1099511627776
aborted 0
programs 1
"""
DEVICE = Device(
    *("0000:01:00.0", "tcp_sm", 1 << 28, "alpha", "ivshmem-doorbell"), status=parse_status(STATUS)
)
MODULE = Module(True, "1.0.0", "AA", "AA", True, {"chunk": "-1"}, ("0.1.0-a",), "0.1.0-a")
GOOD = Facts(
    release="6.12.57+deb13-cloud-amd64",
    headers=True,
    headers_typed=True,
    commands=frozenset(guest.COMMANDS),
    module=MODULE,
    devices=(DEVICE,),
    objects={RING: "attached", HANDSHAKE: "attached"},
    mode=1,
)


def features(facts: Facts, part: str = "missing") -> list[str]:
    return [one["feature"] for one in describe(facts)[part]]


def with_status(**changes: Any) -> Facts:
    status = {**parse_status(STATUS), **changes}
    return replace(GOOD, devices=(replace(DEVICE, status=status),))


def with_signing(answer: str | None, certificate: str = "/root/mok.der") -> Facts:
    answer = f"{certificate} {answer}" if answer else answer
    return replace(GOOD, signing=Signing(True, certificate, answer))


def with_module(**changes: Any) -> Facts:
    return replace(GOOD, module=replace(MODULE, **changes))


def test_is_a_status_numbers_and_flags() -> None:
    found = parse_status(STATUS + "future 9\n\nodd\n")
    assert set(found) == {*guest.NUMBERS, *guest.FLAGS}
    assert (found["chunk"], found["opened"], found["ready"], found["closing"]) == (
        *(1, 1 << 40, True, False),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the status has no chunk, epoch"),
        (STATUS.replace("ready 1\n", ""), "the status has no ready"),
        (STATUS.replace("chunk 1", "chunk one"), "invalid literal"),
    ],
)
def test_is_a_foreign_status_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_status(text)


def test_is_nothing_missing_where_all_is_there() -> None:
    shown = describe(GOOD)
    assert shown["works"]
    assert (shown["missing"], shown["limits"], shown["build"]) == ([], [], [])
    assert shown["devices"][0]["region"] == "alpha"
    assert shown["devices"][0]["connections"] == 2
    assert shown["programs"] == {"ring": "attached", "handshake": "attached", "mode": "on"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(GOOD, release="6.6.13-amd64"), ["kernel_version"]),
        (replace(GOOD, btf=False), ["btf"]),
        (with_module(loaded=False), ["module"]),
        (with_module(typed=False), ["module_btf"]),
        (replace(GOOD, devices=()), ["device"]),
        (replace(GOOD, devices=(Device("0000:01:00.0"),)), ["device_unused"]),
        (with_status(closing=True), ["drained"]),
        (with_status(ready=False), ["not_ready"]),
        (replace(GOOD, objects={RING: "attached"}), ["handshake"]),
        (replace(GOOD, objects={RING: "attached", HANDSHAKE: "loaded"}), ["handshake"]),
        (replace(GOOD, mode=0), ["mode"]),
        (replace(GOOD, mode=2), ["mode"]),
        # One cause, one remedy.
        (replace(with_status(closing=True), mode=2), ["mode"]),
        (replace(with_status(closing=True), objects={}), ["drained", "handshake"]),
        # One of two is enough, as a machine is in one region.
        (replace(GOOD, devices=(DEVICE, Device("0000:02:00.0"))), []),
        (Facts("6.12.57"), ["module", "device", "handshake"]),
    ],
)
def test_is_what_keeps_connections_on_tcp_named(facts: Facts, expected: list[str]) -> None:
    assert features(facts) == expected
    assert describe(facts)["works"] == (expected == [])
    for one in describe(facts)["missing"]:
        assert one["why"].endswith(".")
        assert one["fix"].endswith(".")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(GOOD, objects={HANDSHAKE: "attached"}), ["ring"]),
        (with_module(on_disk="BB"), ["outdated"]),
        (with_module(on_disk=""), []),
    ],
)
def test_does_what_stops_nothing_stop_nothing(facts: Facts, expected: list[str]) -> None:
    assert features(facts, "limits") == expected
    assert describe(facts)["works"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(GOOD, release="6.1.0-40-amd64"), ["kernel_version"]),
        (replace(GOOD, headers=False), ["headers"]),
        (replace(GOOD, headers_typed=False), ["headers_btf"]),
        (replace(GOOD, commands=frozenset({"make", "gcc"})), ["dkms", "pahole"]),
        (with_signing("is not enrolled"), ["secure_boot"]),
        (with_signing("is already enrolled"), []),
    ],
)
def test_is_what_a_build_lacks_named(facts: Facts, expected: list[str]) -> None:
    assert features(facts, "build") == expected


@pytest.mark.parametrize(
    ("answer", "why", "fix"),
    [
        (None, "without the command mokutil", "package mokutil"),
        ("is not enrolled", "does not know the key", "mokutil --import /root/mok.der, restart"),
        ("is already in the enrollment request", "is not enrolled yet", "at its console"),
        ("", "by its certificate /root/mok.der.", "mokutil --import"),
        ("is blocked in dbx", "mokutil says: /root/mok.der is blocked in dbx.", "mokutil --import"),
    ],
)
def test_is_a_certificate_that_is_not_known_explained(
    answer: str | None, why: str, fix: str
) -> None:
    (found,) = describe(with_signing(answer))["build"]
    assert why in found["why"]
    assert fix in found["fix"]
    assert "generate_mok" not in found["fix"]


@pytest.mark.parametrize(
    ("answer", "trusted"),
    [
        ("is already enrolled", True),
        ("is already in db", True),
        ("is already in the built-in trusted keyring", True),
        ("is already in the enrollment request", False),
        ("is blocked in MokListX", False),
        ("is not enrolled", False),
    ],
)
def test_is_what_mokutil_says_understood(answer: str, trusted: bool) -> None:
    # Some kernels do not let it read their keys, which it says before.
    noise = "Failed to access kernel trusted keyring: Required key not available\n"
    for said in (f"/root/mok.der {answer}", f"{noise}/root/mok.der {answer}"):
        assert Signing(True, "/root/mok.der", said).trusted == trusted


def test_is_dkms_own_key_one_that_dkms_makes() -> None:
    (found,) = describe(with_signing("", guest.DKMS_CERTIFICATE))["build"]
    assert f"mokutil --import {guest.DKMS_CERTIFICATE} (dkms generate_mok" in found["fix"]


def test_does_the_kernels_last_word_about_a_device_come_through() -> None:
    silent = Device("0000:01:00.0", log="chunk 3 is not assigned to anybody")
    (found,) = describe(replace(GOOD, devices=(silent,)))["missing"]
    assert "It said: chunk 3 is not assigned to anybody." in found["why"]
    taken = replace(silent, driver="uio_pci_generic", log="")
    (found,) = describe(replace(GOOD, devices=(taken,)))["missing"]
    assert "driver uio_pci_generic has it" in found["why"]


def test_is_a_mode_of_the_future_shown_as_a_number() -> None:
    assert describe(replace(GOOD, mode=9))["programs"]["mode"] == "mode_9"
