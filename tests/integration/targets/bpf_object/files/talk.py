# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move into a cgroup, make one connection over loopback, print what an iterator says of it.

Usage: talk.py CGROUP_PROCS ITERATOR_PIN
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

TIMEOUT_SECONDS = 5


def main() -> None:
    procs, iterator = map(Path, sys.argv[1:])
    procs.write_text("0")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), TIMEOUT_SECONDS) as client,
    ):
        peer, _address = server.accept()
        with peer:
            client.sendall(b"hello")
            if peer.recv(5) != b"hello":
                raise SystemExit("the greeting did not arrive")
            print(iterator.read_bytes().hex())


if __name__ == "__main__":
    main()
