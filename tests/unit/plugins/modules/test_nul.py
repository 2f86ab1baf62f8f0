# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a NUL character, from YAML's "\\0", a message of every module and no traceback?"""

from __future__ import annotations

import importlib
from typing import Any

import pytest

MODULES = "ansible_collections.colocated.tcp_sm.plugins.modules"
ODD = "/a\0b"


@pytest.mark.parametrize(
    ("module", "option", "others"),
    [
        ("bpf_object", "path", {"name": "x", "state": "loaded"}),
        ("bpf_object", "bpffs", {"name": "x", "state": "absent"}),
        ("bpf_map", "path", {}),
        ("tcp_sm_info", "bpffs", {}),
        ("tcp_sm_info", "ring_name", {}),
        ("ivshmem_region", "path", {"name": "x", "size": "1M"}),
        ("ivshmem_chunk", "path", {"region": "x", "owner": "a", "size": "1M"}),
        ("ivshmem_domain", "server", {"domain": "a", "region": "x"}),
        ("ivshmem_guest", "bpffs", {}),
        ("ivshmem_guest", "certificate", {}),
    ],
)
def test_a_path_with_a_nul_is_refused(
    run_module: Any, module: str, option: str, others: dict[str, Any]
) -> None:
    answer = run_module(importlib.import_module(f"{MODULES}.{module}"), **others, **{option: ODD})
    assert answer["failed"]
    assert answer["msg"].startswith(f"{option}: '/a\\x00b' has a NUL character")
    assert "exception" not in answer


@pytest.mark.parametrize(
    "attach", [{"type": "cgroup", "program": "p", "cgroup": ODD}, {"type": "map", "program": "p\0"}]
)
def test_so_it_is_further_inside(run_module: Any, attach: dict[str, Any]) -> None:
    module = importlib.import_module(f"{MODULES}.bpf_object")
    answer = run_module(module, name="x", path="/x", attach=[{"map": "m", **attach}])
    assert "has a NUL character" in answer["msg"]
