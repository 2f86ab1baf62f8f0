# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the traffic tests share: the channel, processes, networks, scenes and streams."""

import os

# Multiplies every time limit, for machines that are slower by as much (an emulated one).
SLOWNESS = float(os.environ.get("TCP_SM_TEST_SLOWNESS", "1"))
