# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an errno of bpf(2) to what a person can do about it."""

from __future__ import annotations

import errno


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
