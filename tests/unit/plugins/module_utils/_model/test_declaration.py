# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read back at boot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.declaration import (
    parse_declaration,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError

GOOD: dict[str, Any] = {
    "name": "tcp_sm",
    "path": "/usr/local/lib/tcp_sm/bpf/sockmap.bpf.o",
    "sha256": "",
    "bpffs": "/run/bpf",
    "attach": [{"program": "p", "type": "cgroup", "cgroup": "/"}],
    "maps": [{"name": "ports", "state": "exact", "entries": [{"key": 80, "value": 2}]}],
}


def test_is_what_the_roles_write_understood() -> None:
    found = parse_declaration(json.dumps(GOOD), "d.json")
    assert found.object.state == "attached"
    assert [one.target for one in found.object.attach] == ["cgroup /"]
    (ports,) = found.maps
    assert (ports.path, ports.state) == ("/run/bpf/tcp_sm/maps/ports", "exact")
    assert ports.entries == ({"key": 80, "value": 2},)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "d.json is not valid JSON"),
        ("{", "d.json is not valid JSON"),
        ("[]", "d.json: it is not a dictionary"),
        (json.dumps({**GOOD, "name": "a.b"}), "d.json: name: 'a.b' must be"),
        (json.dumps({**GOOD, "mode": "on"}), "the declaration: unknown mode; known are attach"),
        (json.dumps({**GOOD, "maps": "all"}), "maps is not a list"),
        (json.dumps({**GOOD, "maps": [{"state": "exact"}]}), "maps[0]: needs the name of a map"),
        (json.dumps({**GOOD, "maps": [{"name": "x", "path": "/y"}]}), "maps[0]: unknown path"),
    ],
)
def test_is_a_damaged_declaration_refused_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_declaration(text, "d.json")
    assert message in str(error.value)
    assert "Apply the role (colocated.tcp_sm.container or guest) again" in str(error.value)
