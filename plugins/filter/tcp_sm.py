# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the collection: role variables to map entries, results to text tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible import constants
from ansible.errors import AnsibleFilterError
from ansible.plugins.loader import callback_loader
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import (
    connections,
    rules,
    tables,
)


def _checked(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``; a refused value becomes the error Ansible shows."""
    try:
        return function(*args)
    except rules.RuleError as error:
        raise AnsibleFilterError(f"colocated.tcp_sm.{name}: {error}") from error


def config_entry(settings: Any, prefix: str = "container_") -> list[rules.Entry]:
    """See ``tcp_sm_config_entry.yml``."""
    if not isinstance(settings, Mapping):
        raise AnsibleFilterError(
            "colocated.tcp_sm.tcp_sm_config_entry: the input must be a dictionary of "
            f"settings such as mode and max_burst, not {type(settings).__name__}."
        )
    return _checked("tcp_sm_config_entry", rules.config_entries, settings, prefix)


def port_entries(include: Any, exclude: Any = (), prefix: str = "container_") -> list[rules.Entry]:
    """See ``tcp_sm_port_entries.yml``."""
    return _checked("tcp_sm_port_entries", rules.port_entries, include, exclude, prefix)


def cidr_entries(include: Any, exclude: Any = (), prefix: str = "container_") -> list[rules.Entry]:
    """See ``tcp_sm_cidr_entries.yml``."""
    return _checked("tcp_sm_cidr_entries", rules.cidr_entries, include, exclude, prefix)


def _rows(name: str, value: Any) -> list[Mapping[str, Any]]:
    """``value`` as a list of dictionaries, or the error Ansible shows."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise AnsibleFilterError(
            f"colocated.tcp_sm.{name}: the input must be a list of dictionaries, "
            f"not {type(value).__name__}."
        )
    return value


def connections_across(machines: Any) -> list[dict[str, Any]]:
    """See ``tcp_sm_connections_across.yml``."""
    name = "tcp_sm_connections_across"
    if not isinstance(machines, list):
        raise AnsibleFilterError(f"colocated.tcp_sm.{name}: the input must be a list of lists.")
    return _formed(name, connections.across, [_rows(name, one) for one in machines])


def connections_table(found: Any, limit: int = 0) -> Any:
    """See ``tcp_sm_connections_table.yml``."""
    rows = _rows("tcp_sm_connections_table", found)
    return _formed("tcp_sm_connections_table", tables.connections_table, rows, int(limit))


def bench_table(results: Any) -> Any:
    """See ``tcp_sm_bench_table.yml``."""
    return _formed("tcp_sm_bench_table", tables.bench_table, _rows("tcp_sm_bench_table", results))


def shown(text: Any) -> str | list[str]:
    """See ``tcp_sm_shown.yml``."""
    if not isinstance(text, str):
        raise AnsibleFilterError(
            f"colocated.tcp_sm.tcp_sm_shown: the input must be text, not {type(text).__name__}."
        )
    callback_loader.get("default", class_only=True)  # its settings are known from then on
    output = constants.config.get_config_value(
        "result_format", plugin_type="callback", plugin_name="default"
    )
    return text if output == "yaml" else text.splitlines()


def _formed(name: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except KeyError as error:
        raise AnsibleFilterError(
            f"colocated.tcp_sm.{name}: an element of the input has no {error}; give the list "
            "as tcp_sm_info or the report has it."
        ) from error


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "tcp_sm_config_entry": config_entry,
            "tcp_sm_port_entries": port_entries,
            "tcp_sm_cidr_entries": cidr_entries,
            "tcp_sm_connections_across": connections_across,
            "tcp_sm_connections_table": connections_table,
            "tcp_sm_bench_table": bench_table,
            "tcp_sm_shown": shown,
        }
