# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what an operator writes to entries of the maps that steer acceleration.

Private to this collection. Every value is checked here, before anything on
the machine is touched; an error names the variable, the value and what is
allowed. Entries have the shape module ``bpf_map`` takes: ``{key, value}``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from .abi import DEFAULT_CONFIG, Mode, Rule

Entry = dict[str, Any]
Network = ipaddress.IPv6Network

# Inclusive. The upper limits keep one hostile or mistyped variable from letting
# every connection of a host queue memory without bound.
LIMITS: dict[str, tuple[int, int]] = {
    "max_unread_bytes": (4096, 1 << 30),
    "max_unread_msgs": (1, 1 << 20),
    "max_burst": (0, 1 << 30),
}
FLAGS = ("eager", "events")
LISTS = ("ports_include", "ports_exclude", "cidrs_include", "cidrs_exclude")
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_V4_MAPPED_BITS = 96
_KINDS = (Rule.INCLUDE, Rule.EXCLUDE)


class RuleError(ValueError):
    """A setting that cannot be applied; its text names variable, value and what is allowed."""

    def __init__(self, variable: str, value: object, allowed: str) -> None:
        super().__init__(f"{variable}: {value!r} is not valid: {allowed}.")
        self.variable = variable


def config_entries(settings: Mapping[str, Any], prefix: str = "") -> list[Entry]:
    """The one entry of map ``tcp_sm_config``.

    ``settings`` may hold ``mode``, ``max_unread_bytes``, ``max_unread_msgs``,
    ``max_burst``, ``eager``, ``events`` and the rule lists (``ports_include``,
    ``cidrs_include``, ...); what is absent keeps its default. ``prefix`` goes
    before the names in errors. Raises :class:`RuleError`.
    """
    known = {"mode", *LIMITS, *FLAGS, *LISTS}
    for name in settings:
        if name not in known:
            raise RuleError(prefix + str(name), settings[name], f"use one of {sorted(known)}")
    value = dict(DEFAULT_CONFIG)
    if "mode" in settings:
        value["mode"] = parse_mode(settings["mode"], prefix + "mode")
    for name, (low, high) in LIMITS.items():
        if name in settings:
            value[name] = parse_int(settings[name], low, high, prefix + name)
    for name in FLAGS:
        if name in settings:
            value[name] = int(parse_flag(settings[name], prefix + name))
    ports = port_entries(
        settings.get("ports_include", ()), settings.get("ports_exclude", ()), prefix
    )
    cidrs = cidr_entries(
        settings.get("cidrs_include", ()), settings.get("cidrs_exclude", ()), prefix
    )
    value["ports_included"] = int(_has_include(ports))
    value["cidrs_included"] = int(_has_include(cidrs))
    return [{"key": 0, "value": value}]


def _has_include(entries: Iterable[Entry]) -> bool:
    return any(entry["value"] == Rule.INCLUDE for entry in entries)


def port_entries(include: Any, exclude: Any = (), prefix: str = "") -> list[Entry]:
    """The entries of map ``tcp_sm_ports``, by rising port; raises :class:`RuleError`."""
    names = (prefix + "ports_include", prefix + "ports_exclude")
    rules: dict[int, Rule] = {}
    for name, values, rule in zip(names, (include, exclude), _KINDS, strict=True):
        for value in _as_list(values, name, "server ports"):
            port = parse_int(value, 1, 65535, name, "a TCP server port")
            if rules.setdefault(port, rule) != rule:
                raise RuleError(name, value, f"{names[0]} has this port too; keep one of them")
    return [{"key": port, "value": int(rule)} for port, rule in sorted(rules.items())]


def cidr_entries(include: Any, exclude: Any = (), prefix: str = "") -> list[Entry]:
    """The entries of map ``tcp_sm_cidrs``, IPv4 as v4-mapped IPv6; raises :class:`RuleError`.

    A key is ``{prefixlen, addr}`` with ``addr`` as IPv6 text.
    """
    names = (prefix + "cidrs_include", prefix + "cidrs_exclude")
    rules: dict[Network, Rule] = {}
    for name, values, rule in zip(names, (include, exclude), _KINDS, strict=True):
        for value in _as_list(values, name, "networks"):
            network = parse_cidr(value, name)
            if rules.setdefault(network, rule) != rule:
                raise RuleError(name, value, f"{names[0]} has this network too; keep one of them")
    return [
        {
            "key": {"prefixlen": network.prefixlen, "addr": str(network.network_address)},
            "value": int(rule),
        }
        for network, rule in sorted(rules.items())
    ]


def _as_list(values: Any, name: str, what: str) -> list[Any]:
    if values is None:
        return []
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise RuleError(name, values, f"it must be a list of {what}, such as {_EXAMPLES[what]}")
    return list(values)


_EXAMPLES = {"server ports": "[6379, 8080]", "networks": "['10.88.0.0/16', 'fd00::/8']"}


def parse_mode(value: Any, name: str) -> int:
    """The number of a mode's name; YAML's ``on`` arrives as ``True`` and counts as ``on``."""
    # YAML 1.1 reads a bare `on` as true. `off` is no mode: it would hide the
    # difference between `pass` (loaded, idle) and removing the programs.
    if value is True:
        return int(Mode.ON)
    if isinstance(value, str) and value.upper() in Mode.__members__:
        return int(Mode[value.upper()])
    raise RuleError(
        name,
        value,
        "use 'on' (accelerate), 'pass' (leave everything on TCP) or 'drain' (as pass, and live "
        "connections go back to TCP for good)",
    )


def parse_int(value: Any, low: int, high: int, name: str, what: str = "") -> int:
    """An integer from ``low`` to ``high``; text of digits counts, as ``-e`` gives it."""
    allowed = f"{what or 'the value'} is a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise RuleError(name, value, allowed)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or not low <= value <= high:
        raise RuleError(name, value, allowed)
    return value


def parse_flag(value: Any, name: str) -> bool:
    """A boolean as Ansible users write it."""
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise RuleError(name, value, "use true or false")


def parse_cidr(value: Any, name: str) -> Network:
    """An IPv4 or IPv6 network, or a single address, as an IPv6 network."""
    if not isinstance(value, str):
        raise RuleError(name, value, "a network is text such as '10.88.0.0/16' or 'fd00::/8'")
    if "%" in value:
        raise RuleError(name, value, "a network has no zone; leave out '%' and what follows it")
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise RuleError(
            name, value, "a network is ADDRESS/LENGTH, such as '10.88.0.0/16' or 'fd00::/8'"
        ) from None
    address = value.partition("/")[0]
    if ipaddress.ip_address(address) != network.network_address:
        raise RuleError(
            name, value, f"bits are set beyond its length; write {network} or {address} alone"
        )
    if isinstance(network, ipaddress.IPv4Network):
        mapped = f"::ffff:{network.network_address}/{network.prefixlen + _V4_MAPPED_BITS}"
        return ipaddress.IPv6Network(mapped)
    return network


def in_words(name: str, key: Any, value: Any) -> tuple[str, Any]:
    """Key and value of map ``name`` as a person would write them, for differences that are shown.

    Modes and rules are words, and keys of ``tcp_sm_cidrs`` networks. What is of another map, or has
    no word, stays as it is.
    """
    if name == "tcp_sm_config" and isinstance(value, Mapping) and "mode" in value:
        value = {**value, "mode": _word(Mode, value["mode"])}
    elif name in ("tcp_sm_ports", "tcp_sm_cidrs"):
        value = _word(Rule, value)
    return (_network_text(key) if name == "tcp_sm_cidrs" else str(key)), value


def _word(kind: type[Mode | Rule], number: Any) -> Any:
    return kind(number).name.lower() if number in list(kind) else number


def _network_text(key: Any) -> str:
    """A key as ``cidr_entries`` makes it, or as the module returns it."""
    try:
        address = ipaddress.ip_address(key["addr"])
        length = int(key["prefixlen"])
    except (KeyError, TypeError, ValueError):
        return str(key)
    mapped = address if address.version == 4 else address.ipv4_mapped
    if mapped and length >= _V4_MAPPED_BITS:
        return f"{mapped}/{length - _V4_MAPPED_BITS}"
    return f"{address}/{length}"
