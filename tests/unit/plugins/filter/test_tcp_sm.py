# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the filters give Ansible what the modules take, and errors it can show?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.colocated.tcp_sm.plugins.filter import regions
from ansible_collections.colocated.tcp_sm.plugins.filter.tcp_sm import FilterModule

FILTERS = FilterModule().filters()


def test_the_filters_make_entries() -> None:
    (entry,) = FILTERS["tcp_sm_config_entry"]({"mode": "pass", "ports_include": [80]})
    assert (entry["value"]["mode"], entry["value"]["ports_included"]) == (0, 1)
    assert FILTERS["tcp_sm_port_entries"]([80], [22]) == [
        {"key": 22, "value": 2},
        {"key": 80, "value": 1},
    ]
    assert FILTERS["tcp_sm_cidr_entries"]([], ["::1"]) == [
        {"key": {"prefixlen": 128, "addr": "::1"}, "value": 2}
    ]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("tcp_sm_config_entry", ({"mode": "off"},), "container_mode: 'off' is not valid"),
        ("tcp_sm_config_entry", ("on",), "must be a dictionary of settings .* not str"),
        ("tcp_sm_port_entries", ([99999],), "container_ports_include: 99999"),
        ("tcp_sm_port_entries", ([], ["x"], "my_"), "my_ports_exclude: 'x'"),
        ("tcp_sm_cidr_entries", (["10.0.0.1/8"],), "container_cidrs_include: '10.0.0.1/8'"),
    ],
)
def test_errors_name_filter_and_role_variable(name: Any, args: Any, message: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=f"colocated.tcp_sm.{name}: .*{message}"):
        FILTERS[name](*args)


def test_the_tables_take_what_the_modules_return() -> None:
    end = {"addr": "::1", "port": 80}
    one = {"channel": "tcp", "reason": "busy", "bytes": 1, "messages": 1}
    text = FILTERS["tcp_sm_connections_table"]([{**one, "client": end, "server": end}] * 3, "2")
    assert "[::1]:80 -> [::1]:80" in text
    assert "... and 1 more" in text
    assert FILTERS["tcp_sm_bench_table"]([]) == "No measurements."


@pytest.mark.parametrize("name", ["tcp_sm_connections_table", "tcp_sm_bench_table"])
def test_the_tables_say_what_they_cannot_read(name: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=f"{name}: the input must be a list"):
        FILTERS[name]({"connections": []})
    with pytest.raises(AnsibleFilterError, match=f"{name}: an element of the input has no '"):
        FILTERS[name]([{}])


@pytest.mark.parametrize(("output", "shown"), [("yaml", "a\nb"), ("json", ["a", "b"])])
def test_text_is_shown_as_the_output_can_have_it(
    monkeypatch: pytest.MonkeyPatch, output: Any, shown: Any
) -> None:
    monkeypatch.setenv("ANSIBLE_CALLBACK_RESULT_FORMAT", output)
    assert FILTERS["tcp_sm_shown"]("a\nb") == shown
    with pytest.raises(AnsibleFilterError, match="the input must be text, not list"):
        FILTERS["tcp_sm_shown"]([])


def test_the_list_across_machines_says_what_it_cannot_read() -> None:
    across = FILTERS["tcp_sm_connections_across"]
    assert across([[], []]) == []
    unreadable: list[Any] = [{}, [{}], [[{}]]]
    for wrong in unreadable:
        with pytest.raises(AnsibleFilterError, match="tcp_sm_connections_across: "):
            across(wrong)


def test_every_filter_has_documentation_and_only_they() -> None:
    folder = Path(__file__).parents[4] / "plugins" / "filter"
    pages = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    assert set(pages) == set(FILTERS) | set(regions.FilterModule().filters())
    for name, page in pages.items():
        assert page["DOCUMENTATION"]["name"] == name
        assert {"EXAMPLES", "RETURN"} <= set(page)
