# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure logic: layouts, planners and parsers. Imports the standard library only.

Private to this collection: names and shapes may change between releases.
"""
