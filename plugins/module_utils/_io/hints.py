# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an errno of bpf(2) to what a person can do about it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator

# The first libbpf that finds struct_ops types of modules.
OPS_LIBBPF = (1, 4)
NO_FUNCTION = re.compile(r"extern \(func ksym\) '(\w+)': not found")
NO_OPS = re.compile(r"struct (?:bpf_struct_ops_)?(\w+) is not found in kernel BTF")


def hint(error: OSError) -> str:
    """What to do about an errno."""
    return {
        errno.EPERM: "Run as root with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN; "
        "some kernels forbid a program type altogether.",
        errno.ENOMEM: "The kernel is short of memory for maps: lower max_entries.",
        errno.E2BIG: "A map or program is larger than the kernel allows: lower max_entries.",
        errno.ESRCH: "The kernel lacks a function, tracepoint or type that a program names: use "
        "the kernel that the object is for.",
        errno.EBUSY: "Another program is attached there: detach it first.",
    }.get(error.errno or 0, "")


def lacking(messages: Iterable[str], version: tuple[int, int]) -> Iterator[str]:
    """What libbpf of this version could not find in the kernel and its modules, and where that
    comes from."""
    text = "\n".join(messages)
    functions = sorted(set(NO_FUNCTION.findall(text)))
    if functions:
        yield (
            f"Neither the kernel nor a loaded module has the function {', '.join(functions)}: "
            f"load the module that the object is for. {TYPED}"
        )
    types = sorted(set(NO_OPS.findall(text)))
    if types:
        yield (
            f"Neither the kernel nor a loaded module has the struct_ops type {', '.join(types)}: "
            f"load the module that the object is for. {TYPED}"
        )
        if version < OPS_LIBBPF:
            yield (
                f"libbpf {dotted(version)} does not look into modules: install "
                f"{dotted(OPS_LIBBPF)} or newer."
            )


TYPED = "It must be built with type information, for which its build needs pahole."


def dotted(version: Iterable[int]) -> str:
    """A version as people write it."""
    return ".".join(map(str, version))
