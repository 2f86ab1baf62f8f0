# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ring channel's tests run on: two guests, their region, and a way to talk to them."""
