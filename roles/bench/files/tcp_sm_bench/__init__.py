# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark of accelerated TCP against plain TCP, interleaved, on one machine.

model.py is pure (workloads, order of runs, statistics); stage.py makes and
removes cgroups and network namespaces; drive.py runs servers and clients.
"""
