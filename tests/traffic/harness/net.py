# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces, veth pairs and rules that exist for one test."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_SERIAL = itertools.count()


def command(*words: str, stdin: str | None = None) -> str:
    """Run a tool and return what it printed; RuntimeError has its words and its complaint."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A named network namespace with its loopback up."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def run(self, *words: str, stdin: str | None = None) -> str:
        """Run a tool inside, without the private /sys of `ip netns exec`."""
        return command("nsenter", f"--net={self.path}", *words, stdin=stdin)

    def sysctl(self, key: str, value: int | str) -> None:
        """Set a per-namespace sysctl such as net.ipv4.tcp_syncookies."""
        # /proc/sys/net shows the namespace of the process that opens it.
        path = "/proc/sys/" + key.replace(".", "/")
        self.run("sh", "-c", f"echo '{value}' > {path}")

    def rules(self, text: str) -> None:
        """Load nftables rules."""
        self.run("nft", "-f", "-", stdin=text)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Make namespaces; remove them, their links and their rules at the end."""
    made: list[Namespace] = []
    try:
        for _ in range(count):
            one = Namespace(f"tcpsm-{os.getpid()}-{next(_SERIAL)}")
            command("ip", "netns", "add", one.name)
            made.append(one)
            one.run("ip", "link", "set", "lo", "up")
        yield made
    finally:
        for one in made:
            command("ip", "netns", "del", one.name)


def join(left: Namespace, right: Namespace, left_net: str, right_net: str) -> tuple[str, str]:
    """Join two namespaces by a veth pair with the given addresses; return the link names.

    Addresses are with prefix length, IPv4 or IPv6.
    """
    serial = next(_SERIAL)
    names = (f"v{serial}l", f"v{serial}r")
    left.run("ip", "link", "add", names[0], "type", "veth",
             "peer", "name", names[1], "netns", right.name)  # fmt: skip
    for space, name, net in ((left, names[0], left_net), (right, names[1], right_net)):
        nodad = ["nodad"] if ":" in net else []
        space.run("ip", "addr", "add", net, "dev", name, *nodad)
        space.run("ip", "link", "set", name, "up")
    return names


def spread(space: Namespace, link: str) -> None:
    """Have RPS hand the packets of a link to every CPU."""
    mask = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
    # sysfs shows the links of the namespace it was mounted in, so mount one.
    script = f"mount -t sysfs none /sys && echo {mask} > /sys/class/net/{link}/queues/rx-0/rps_cpus"
    space.run("unshare", "--mount", "sh", "-c", script)
