# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hypervisor's agent: serves regions of shared memory to virtual machines.

    cli.py      the command line
    config.py   what the agent is to do, from a file
    service.py  the event loop: descriptors, timers, signals
    server.py   one region: who gets which chunk, who died, who is woken
    client.py   one connected machine: what it is sent
    status.py   what is going on, as data, a table and Prometheus metrics

`_model` and `_io` are the collection's, shared with its modules. The agent keeps no state: what it
has to know after a restart stands in the region's superblock and chunk table.
"""

from pathlib import Path

# An installed agent has them inside its archive; in the source tree they lie with the modules.
_SHARED = Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
if _SHARED.is_dir():
    __path__.append(str(_SHARED))
