# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is what the user wants understood, or refused in plain words?"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    Attach,
    MapSpec,
    ObjectSpec,
    escape,
    unescape,
)

GOOD: dict[str, Any] = {"name": "x", "path": "/x.o"}


def test_are_defaults_those_of_the_module() -> None:
    spec = ObjectSpec.parse(GOOD)
    assert (spec.state, spec.bpffs, spec.lock_timeout) == ("attached", "/sys/fs/bpf", 30)
    assert spec.attach == ()
    assert spec.max_entries == {}
    assert not spec.replace_maps


def test_is_absent_content_without_a_file() -> None:
    assert ObjectSpec.parse({"name": "x", "state": "absent"}).path == ""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"name": ""}, "name: '' must be 1 to 64"),
        ({"name": "a.b"}, "name: 'a.b' must be"),
        ({"name": "a/b"}, "name: 'a/b' must be"),
        ({"name": "x" * 65}, "must be 1 to 64"),
        ({"state": "present"}, "state: 'present' must be one of attached, loaded, absent"),
        ({"path": ""}, "path: an object file is needed for state=attached"),
        ({"sha256": "abc"}, "sha256: 'abc' is not 64 hexadecimal digits"),
        ({"lock_timeout": -1}, "lock_timeout: -1 must not be negative"),
        ({"max_entries": {"m": 0}}, "max_entries: 0 of map m must be 1 to 4294967295"),
        ({"max_entries": {"m": float("inf")}}, "max_entries: inf of map m is not a number"),
        ({"max_entries": {"m": "many"}}, "max_entries: 'many' of map m is not a number"),
        ({"attach": ["p"]}, "attach[0]: needs a dictionary"),
        ({"attach": [{"type": "tracing"}]}, "attach[0]: needs a program"),
        ({"attach": [{"program": "p"}]}, "attach[0]: type '' must be one of cgroup, map"),
        ({"attach": [{"program": "p", "type": "xdp"}]}, "attach[0]: type 'xdp' must be"),
        ({"attach": [{"program": "p", "type": "map"}]}, "type map needs the name of a map"),
        ({"attach": [{"program": "p", "type": "cgroup"}]}, "type cgroup needs a cgroup"),
        ({"attach": [{"type": "struct_ops"}]}, "type struct_ops needs the name of a map"),
        (
            {"attach": [{"program": "p", "type": "struct_ops", "map": "m"}]},
            "type struct_ops takes a map, which names its programs itself",
        ),
        (
            {"attach": [{"type": "struct_ops", "map": "m"}] * 2},
            "attach[1]: map m is attached to struct_ops twice",
        ),
        (
            {"attach": [{"program": "p", "type": "cgroup", "cgroup": "a/../b"}]},
            "cgroup 'a/../b' must not contain '..'",
        ),
        (
            {"attach": [{"program": "p", "type": "cgroup", "cgroup": "/" + "x" * 300}]},
            "is too long for a pin name",
        ),
        (
            {"attach": [{"program": "p", "type": "cgroup", "cgroup": c} for c in ("a/", "/a")]},
            "attach[1]: program p is attached to cgroup /a twice",
        ),
        (
            {"attach": [{"program": "p", "type": "map", "map": m} for m in ("a", "b")]},
            "attach[1]: program p already attaches to map a; only cgroups can be several",
        ),
    ],
)
def test_is_bad_input_refused_in_plain_words(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        ObjectSpec.parse({**GOOD, **raw})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "normal", "pin"),
    [
        ("/", "/", "p@%2F"),
        ("a", "/a", "p@%2Fa"),
        ("//a/./b.scope/", "/a/b.scope", "p@%2Fa%2Fb%2Escope"),
        ("/50%", "/50%", "p@%2F50%25"),
        ("/é", "/é", "p@%2F%C3%A9"),
    ],
)
def test_are_cgroups_normalised_and_pinned_by_a_name_that_bpffs_takes(
    given: str, normal: str, pin: str
) -> None:
    raw = {"program": "p", "type": "cgroup", "cgroup": given}
    (one,) = ObjectSpec.parse({**GOOD, "attach": [raw]}).attach
    assert (one.cgroup, one.key) == (normal, pin)
    assert unescape(pin.partition("@")[2]) == normal


def test_does_escaping_leave_nothing_that_bpffs_refuses() -> None:
    text = "".join(map(chr, range(1, 256))) + "日本"
    assert not set(escape(text)) & set("./\0")
    assert unescape(escape(text)) == text


@pytest.mark.parametrize(
    ("one", "key", "target"),
    [
        (Attach("p", "tracing"), "p", "tracing"),
        (Attach("p", "iter", map="m"), "p", "iter m"),
        (Attach("p", "iter"), "p", "iter"),
        (Attach("p", "map", map="m"), "p", "map m"),
        (Attach("p", "cgroup", cgroup="/"), "p@%2F", "cgroup /"),
    ],
)
def test_has_every_attachment_a_pin_and_a_target(one: Attach, key: str, target: str) -> None:
    assert (one.key, one.target) == (key, target)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"path": "maps/x"}, "path: 'maps/x' must be the absolute path of a pinned map"),
        ({"state": "gone"}, "state: 'gone' must be one of present, absent, exact"),
        ({"entries": [{"value": 1}]}, "entries[0]: needs a key"),
        ({"entries": [{"key": 1}]}, "entries[0]: needs a value for state=present"),
        ({"entries": [5]}, "entries[0]: needs a key"),
        ({"entries": [{"key": 1, "value": 1, "ttl": 1}]}, "entries[0]: unknown ttl"),
    ],
)
def test_are_bad_entries_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        MapSpec.parse({"path": "/m", **raw})
    assert message in str(error.value)


def test_does_deleting_need_no_value() -> None:
    spec = MapSpec.parse({"path": "/m", "state": "absent", "entries": [{"key": 0}]})
    assert spec.entries == ({"key": 0},)


def test_is_a_struct_ops_map_pinned_by_its_name() -> None:
    raw = {"type": "struct_ops", "map": "m"}
    (one,) = ObjectSpec.parse({**GOOD, "attach": [raw]}).attach
    assert (one.key, one.attached, one.target, str(one)) == ("m", "m", "struct_ops", "map m")
