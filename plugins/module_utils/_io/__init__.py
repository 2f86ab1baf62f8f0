# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What touches the machine: libbpf, bpffs, cgroups, locks.

Private to this collection: names and shapes may change between releases.
"""
