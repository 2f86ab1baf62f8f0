# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do libbpf's words become what a person can do?"""

from __future__ import annotations

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.hints import lacking

# As libbpf 1.1, 1.3 and 1.5 print them.
FUNCTION = "libbpf: extern (func ksym) 'tcp_sm_offer': not found in kernel or module BTFs"
TYPE = "libbpf: struct_ops init_kern: struct tcp_sm_ops is not found in kernel BTF"
WRAPPER = (
    "libbpf: struct_ops init_kern: struct bpf_struct_ops_tcp_sm_ops is not found in kernel BTF"
)


@pytest.mark.parametrize(
    ("messages", "version", "expected"),
    [
        ([], (1, 1), []),
        (["libbpf: failed to load object 'x'"], (1, 1), []),
        ([FUNCTION, FUNCTION], (1, 1), ["function tcp_sm_offer: load the module"]),
        ([TYPE], (1, 5), ["struct_ops type tcp_sm_ops: load the module"]),
        ([WRAPPER], (1, 5), ["struct_ops type tcp_sm_ops: load the module"]),
        (
            [TYPE],
            (1, 3),
            ["struct_ops type tcp_sm_ops", "libbpf 1.3 does not look into modules: install 1.4"],
        ),
        ([FUNCTION, TYPE], (1, 4), ["function tcp_sm_offer", "struct_ops type tcp_sm_ops"]),
    ],
)
def test_is_what_a_module_would_bring_named(
    messages: list[str], version: tuple[int, int], expected: list[str]
) -> None:
    found = list(lacking(messages, version))
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text
