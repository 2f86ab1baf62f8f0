# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters about regions of shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.hypervisor import (
    gone,
    normal_regions,
)


def tcp_sm_regions(
    regions: Any,
    run_dir: str = "/run/tcp_sm",
    prefix: str = "hypervisor_regions",
    socket_owner: str = "",
) -> list[dict[str, Any]]:
    """See ``tcp_sm_regions.yml``."""
    try:
        return normal_regions(regions, run_dir, prefix, socket_owner)
    except TcpSmError as error:
        raise AnsibleFilterError(f"colocated.tcp_sm.tcp_sm_regions: {error}") from error


def tcp_sm_regions_gone(before: Any, wanted: Any) -> dict[str, Any]:
    """See ``tcp_sm_regions_gone.yml``."""
    try:
        return gone(before, wanted)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            "colocated.tcp_sm.tcp_sm_regions_gone: both lists must be as the filter tcp_sm_regions "
            f"gives them: {error!r}."
        ) from error


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "tcp_sm_regions": tcp_sm_regions,
            "tcp_sm_regions_gone": tcp_sm_regions_gone,
        }
