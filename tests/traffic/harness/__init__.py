# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the traffic tests share: the channel, processes, networks, scenes and streams."""
