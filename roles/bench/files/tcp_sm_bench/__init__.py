# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark of accelerated TCP against plain TCP, interleaved.

model.py is pure (workloads, order of runs, statistics), and so is tools.py (the programs of the
workloads); drive.py runs one workload, arm against arm, on a ground: stage.py makes cgroups and
network namespaces of one machine, guests.py uses two virtual machines. machine.py starts
programs, probe.py reads what a machine counts, agent.py offers both to remote.py elsewhere.
"""
