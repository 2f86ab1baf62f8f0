# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused of the options of every module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def refuse_nul(module: AnsibleModule) -> None:
    """Fail for a NUL character: Python raises ValueError wherever the kernel or libc gets one."""
    for option, value in module.params.items():
        if _has_nul(value):
            module.fail_json(
                msg=f"{option}: {value!r} has a NUL character, which no path and no name can have. "
                "Leave it out. Nothing was changed."
            )


def _has_nul(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _has_nul([*value.keys(), *value.values()])
    if isinstance(value, str):
        return "\0" in value
    return isinstance(value, Iterable) and any(_has_nul(one) for one in value)
