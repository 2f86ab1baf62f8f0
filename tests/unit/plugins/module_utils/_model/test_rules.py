# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do role variables become the right map entries, and are bad ones refused by name?"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import rules


def value_of(settings: dict[str, Any]) -> Any:
    (entry,) = rules.config_entries(settings)
    assert entry["key"] == 0
    return entry["value"]


def test_no_settings_give_the_defaults() -> None:
    assert value_of({}) == {
        "abi": 1,
        "mode": 1,
        "max_unread_bytes": 4194304,
        "max_unread_msgs": 16384,
        "max_burst": 262144,
        "eager": 0,
        "ports_included": 0,
        "cidrs_included": 0,
        "events": 0,
        "reserved": 0,
    }


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ({"mode": "on"}, "mode", 1),
        ({"mode": "pass"}, "mode", 0),
        ({"mode": "drain"}, "mode", 2),
        ({"mode": True}, "mode", 1),
        ({"max_unread_bytes": 4096}, "max_unread_bytes", 4096),
        ({"max_unread_bytes": "8192"}, "max_unread_bytes", 8192),
        ({"max_unread_msgs": 1048576}, "max_unread_msgs", 1048576),
        ({"max_burst": 0}, "max_burst", 0),
        ({"eager": True}, "eager", 1),
        ({"eager": "yes"}, "eager", 1),
        ({"events": "False"}, "events", 0),
        ({"ports_include": [80]}, "ports_included", 1),
        ({"ports_exclude": [80]}, "ports_included", 0),
        ({"cidrs_include": ["10.0.0.0/8"]}, "cidrs_included", 1),
        ({"cidrs_exclude": ["10.0.0.0/8"]}, "cidrs_included", 0),
        ({"cidrs_include": None}, "cidrs_included", 0),
    ],
)
def test_a_setting_reaches_its_field(settings: Any, field: Any, expected: Any) -> None:
    assert value_of(settings)[field] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "off"}, r"c_mode: 'off' is not valid: use 'on' .*'pass' .* or 'drain'"),
        ({"mode": False}, r"c_mode: False is not valid"),
        ({"max_unread_bytes": 4095}, r"c_max_unread_bytes: 4095 .* from 4096 to 1073741824"),
        ({"max_unread_bytes": 1 << 31}, r"c_max_unread_bytes: 2147483648 is not valid"),
        ({"max_unread_msgs": 0}, r"c_max_unread_msgs: 0 is not valid"),
        ({"max_unread_msgs": "many"}, r"c_max_unread_msgs: 'many' is not valid"),
        ({"max_burst": -1}, r"c_max_burst: -1 is not valid"),
        ({"max_burst": 1.5}, r"c_max_burst: 1.5 is not valid"),
        ({"max_burst": True}, r"c_max_burst: True is not valid"),
        ({"eager": "perhaps"}, r"c_eager: 'perhaps' is not valid: use true or false"),
        ({"max_brst": 1}, r"c_max_brst: 1 is not valid: use one of .*'max_burst'"),
        ({"ports_include": [0]}, r"c_ports_include: 0 is not valid"),
        ({"cidrs_exclude": ["x"]}, r"c_cidrs_exclude: 'x' is not valid"),
    ],
)
def test_a_bad_setting_is_named(settings: Any, message: Any) -> None:
    with pytest.raises(rules.RuleError, match=message):
        rules.config_entries(settings, "c_")


def test_ports_become_sorted_entries_without_repeats() -> None:
    assert rules.port_entries([8080, "443", 8080], [22]) == [
        {"key": 22, "value": 2},
        {"key": 443, "value": 1},
        {"key": 8080, "value": 1},
    ]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ([0], [], r"ports_include: 0 is not valid: a TCP server port is .* from 1 to 65535"),
        ([65536], [], r"ports_include: 65536"),
        ([], [-1], r"ports_exclude: -1"),
        (["http"], [], r"ports_include: 'http'"),
        (["٨٠"], [], r"ports_include: '٨٠'"),
        ([True], [], r"ports_include: True"),
        ([80.0], [], r"ports_include: 80.0"),
        ([None], [], r"ports_include: None"),
        ("80", [], r"ports_include: '80' is not valid: it must be a list of server ports"),
        (80, [], r"ports_include: 80 is not valid: it must be a list"),
        ({"80": 1}, [], r"ports_include: .* it must be a list"),
        ([80], [80], r"ports_exclude: 80 .* ports_include has this port too"),
    ],
)
def test_a_bad_port_is_named(include: Any, exclude: Any, message: Any) -> None:
    with pytest.raises(rules.RuleError, match=message):
        rules.port_entries(include, exclude)


@pytest.mark.parametrize(
    ("text", "addr", "prefixlen"),
    [
        ("10.0.0.0/8", "::ffff:a00:0", 104),
        ("10.1.2.3", "::ffff:a01:203", 128),
        ("10.1.2.3/32", "::ffff:a01:203", 128),
        ("0.0.0.0/0", "::ffff:0:0", 96),
        ("10.0.0.0/255.0.0.0", "::ffff:a00:0", 104),
        ("::/0", "::", 0),
        ("fd00::/8", "fd00::", 8),
        ("2001:DB8::1", "2001:db8::1", 128),
        ("::ffff:10.0.0.0/104", "::ffff:a00:0", 104),
    ],
)
def test_a_network_becomes_a_key(text: Any, addr: Any, prefixlen: Any) -> None:
    ((entry),) = rules.cidr_entries([text])
    # The text of v4-mapped addresses differs between Python versions; the bytes do not.
    assert ipaddress.IPv6Address(entry["key"]["addr"]) == ipaddress.IPv6Address(addr)
    assert entry["key"]["prefixlen"] == prefixlen
    assert entry["value"] == 1


def test_networks_of_both_lists_have_their_rule() -> None:
    entries = rules.cidr_entries(["10.0.0.0/8"], ["10.9.0.0/16", "10.9.0.0/16"])
    assert [(entry["key"]["prefixlen"], entry["value"]) for entry in entries] == [
        (104, 1),
        (112, 2),
    ]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["10.0.0.1/8"], [], r"'10.0.0.1/8' .* write 10.0.0.0/8 or 10.0.0.1 alone"),
        (["fd00::1/8"], [], r"bits are set beyond its length; write fd00::/8 or fd00::1 alone"),
        (["10.0.0.0/33"], [], r"cidrs_include: '10.0.0.0/33' .* ADDRESS/LENGTH"),
        (["300.1.1.1"], [], r"cidrs_include: '300.1.1.1'"),
        ([""], [], r"cidrs_include: ''"),
        (["fe80::1%eth0"], [], r"has no zone"),
        ([167772160], [], r"cidrs_include: 167772160 .* is text"),
        ("10.0.0.0/8", [], r"it must be a list of networks"),
        (["10.0.0.0/8"], ["::ffff:10.0.0.0/104"], r"cidrs_exclude: .* has this network too"),
    ],
)
def test_a_bad_network_is_named(include: Any, exclude: Any, message: Any) -> None:
    with pytest.raises(rules.RuleError, match=message):
        rules.cidr_entries(include, exclude)


@pytest.mark.parametrize(
    ("name", "key", "value", "shown"),
    [
        ("tcp_sm_config", 0, {"mode": 2, "eager": 1}, ("0", {"mode": "drain", "eager": 1})),
        ("tcp_sm_config", 0, {"mode": 9}, ("0", {"mode": 9})),
        ("tcp_sm_config", 0, "00ff", ("0", "00ff")),
        ("tcp_sm_ports", 22, 2, ("22", "exclude")),
        ("tcp_sm_ports", 22, 7, ("22", 7)),
        ("tcp_sm_ports", 22, [1], ("22", [1])),
        # As the module returns the key, and as the filter makes it.
        ("tcp_sm_cidrs", {"prefixlen": 104, "addr": "10.0.0.0"}, 1, ("10.0.0.0/8", "include")),
        ("tcp_sm_cidrs", {"prefixlen": 104, "addr": "::ffff:a00:0"}, 1, ("10.0.0.0/8", "include")),
        ("tcp_sm_cidrs", {"prefixlen": 8, "addr": "fd00::"}, 2, ("fd00::/8", "exclude")),
        ("tcp_sm_cidrs", {"prefixlen": 0, "addr": "::"}, 2, ("::/0", "exclude")),
        ("tcp_sm_cidrs", "10.0.0.0/8", 2, ("10.0.0.0/8", "exclude")),
        ("ports", 22, 2, ("22", 2)),
    ],
)
def test_differences_are_shown_in_words(name: Any, key: Any, value: Any, shown: Any) -> None:
    assert rules.in_words(name, key, value) == shown
