# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the atomic instructions on shared memory still atomic in a running guest?

A kernel that boots with one CPU overwrites the lock prefixes of its own and its modules' code,
for nobody else could see its memory. Here the other machines do. So what is looked at is the
code in the guest's memory, not the module's file.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from ringlab.lab import Guest, Lab

# What changes words that both kernels change, and how many locked instructions it has at least.
CHANGERS = {"tcp_sm_slot_move": 1, "tcp_sm_slot_leave": 1, "tcp_sm_conn_notify": 2}
# What is left of a lock prefix that the kernel has overwritten.
UNLOCKED = re.compile(r"\bds (cmpxchg|bts|btr|xadd|or|and)")


def symbols() -> list[tuple[int, str]]:
    """The module's, by address."""
    lines = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    return sorted((int(w[0], 16), w[2]) for w in lines if w[-1] == "[tcp_sm]" and w[1] in "tT")


def code(guest: Guest, function: str, folder: Path) -> str:
    """The instructions of a function as they lie in the guest's memory."""
    table = guest.run(symbols)
    at = next(number for number, (_, name) in enumerate(table) if name == function)
    start, end = table[at][0], table[at + 1][0]
    dump = folder / function
    # QMP's addresses are signed, and the kernel's are in the upper half.
    guest.qmp("memsave", val=start - (1 << 64), size=end - start, filename=str(dump))
    disassemble = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn"]
    return subprocess.run(
        [*disassemble, str(dump)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("function", CHANGERS)
def test_locks_are_in_place(lab: Lab, tmp_path: Path, function: str) -> None:
    """Every atomic instruction of what changes shared words still has its lock prefix."""
    for guest in lab.guests:
        lines = code(guest, function, tmp_path).splitlines()
        assert not [line for line in lines if UNLOCKED.search(line)], guest.name
        assert sum("lock " in line for line in lines) >= CHANGERS[function], guest.name
