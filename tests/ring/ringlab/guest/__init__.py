# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs inside a guest: process 1, the sockets of the scenarios, the channel's controls.

Copied into the guest as a package of its own, so it needs nothing but Python and libbpf.
The tests import it as well, for the names; both sides then speak of the same functions.
"""
