# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""python3 -m tcp_sm_agent"""

from .cli import main

raise SystemExit(main())
