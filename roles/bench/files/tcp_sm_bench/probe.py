# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine says of itself: CPU time, interrupts, bytes of its network cards, rings.

The functions with `text` parse and do no I/O.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

MODULE = Path("/sys/module/tcp_sm/parameters")
_STATUS = "tcp_sm/status"


def busy_seconds(text: str, cpus: int) -> float:
    """CPU time that was not idle, from /proc/uptime. The kernel measures idle time by the clock,
    where processes are charged whole ticks."""
    uptime, idle = (float(value) for value in text.split())
    return uptime * cpus - idle


def counter(text: str, name: str) -> int:
    """A total of /proc/stat, such as ctxt."""
    for line in text.splitlines():
        words = line.split(None, 2)
        if words and words[0] == name:
            return int(words[1])
    return 0


def interrupts(text: str, device: str) -> int:
    """How often a device interrupted, from /proc/interrupts."""
    cpus = len(text.split("\n", 1)[0].split())
    lines = [line.split() for line in text.splitlines()[1:]]
    return sum(sum(map(int, words[1 : cpus + 1])) for words in lines if words[-1] == device)


def card_bytes(text: str) -> int:
    """Bytes received and sent by all network cards, from /proc/net/dev."""
    total = 0
    for line in text.splitlines()[2:]:
        name, values = line.split(":", 1)
        fields = values.split()
        if name.strip() != "lo":
            total += int(fields[0]) + int(fields[8])
    return total


def ring_connections(text: str) -> int:
    """Ends of connections that ever used a ring, from the module's status."""
    return next(
        int(words[1]) for words in map(str.split, text.splitlines()) if words[0] == "opened"
    )


def sample() -> dict[str, float]:
    """Totals since boot. `rings` is missing where the module drives no device."""
    stat = Path("/proc/stat").read_text()
    cpus = stat.count("\ncpu")
    taken: dict[str, float] = {
        "busy": busy_seconds(Path("/proc/uptime").read_text(), cpus),
        "context_switches": counter(stat, "ctxt"),
        "interrupts": counter(stat, "intr"),
        "doorbells": interrupts(Path("/proc/interrupts").read_text(), "tcp_sm"),
        "card_bytes": card_bytes(Path("/proc/net/dev").read_text()),
    }
    for device in Path("/sys/bus/pci/drivers/tcp_sm").glob("0*"):
        taken["rings"] = ring_connections((device / _STATUS).read_text())
    return taken


def accelerator(virtualization: str) -> str:
    """What runs a guest, from systemd-detect-virt's word: tcg, kvm or that word."""
    return {"qemu": "tcg"}.get(virtualization.strip(), virtualization.strip() or "unknown")


def describe() -> dict[str, str | int]:
    """This machine as a guest; `uuid` is what QEMU knows it by, empty if it is none."""
    uuid = virtualization = ""
    with suppress(OSError):
        uuid = Path("/sys/class/dmi/id/product_uuid").read_text().strip().lower()
    with suppress(OSError):
        words = ["systemd-detect-virt"]
        virtualization = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return {
        "uuid": uuid,
        "accelerator": accelerator(virtualization),
        "kernel": os.uname().release,
        "cpus": os.cpu_count() or 1,
    }


def find_qemu(uuid: str) -> int:
    """Pid of the QEMU that runs a machine, 0 where there is none on this one."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"-uuid" in words and words[words.index(b"-uuid") + 1].decode().lower() == uuid:
                return int(path.parent.name)
    return 0


def process_seconds(pid: int) -> float:
    """CPU time of a process' threads that live."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            total += int(path.read_text().split()[0])
    return total / 1e9


def set_parameter(name: str, value: int) -> int:
    """Sets a parameter of the module; returns what it was."""
    path = MODULE / name
    before = int(path.read_text())
    if before != value:
        path.write_text(str(value))
    return before
