# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Without Ansible: bring back after a reboot what the roles declared.

The host role installs this package on the target as `tcp_sm_runtime`, for
`python3 -m tcp_sm_runtime restore`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from .._model.declaration import Declaration, parse_declaration
from .._model.errors import InputError, TcpSmError
from .engine import apply
from .maps import apply_map
from .mounts import on_bpffs

DECLARATION = "/etc/tcp_sm/declaration.json"
EXIT_OK, EXIT_FAILED = 0, 1
# EX_TEMPFAIL of sysexits.h: what exists was attached, a cgroup is still missing. Try again.
EXIT_INCOMPLETE = 75


def restore(path: str) -> list[str]:
    """Apply the declaration at `path`; the attachments that were left out because their cgroups
    do not exist yet. Raises TcpSmError."""
    declaration = _read(path)
    _mount(declaration.object.bpffs)
    spec = declaration.object
    if spec.state == "attached" and declaration.maps:
        # The maps come between loading and attaching: no socket sees them empty. An object that
        # is attached already stays so: loading it would detach it for a moment.
        if not _is_loaded(declaration):
            apply(replace(spec, state="loaded", attach=()))
        _write_maps(declaration)
    warnings = apply(spec, skip_missing_cgroups=True).warnings
    if spec.state == "loaded":
        _write_maps(declaration)
    return warnings


def _read(path: str) -> Declaration:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"Cannot read the declaration {path}: {error.strerror}. Apply the role "
            "colocated.tcp_sm.container or colocated.tcp_sm.guest to write it."
        ) from error
    return parse_declaration(text, path)


def _is_loaded(declaration: Declaration) -> bool:
    return os.path.isdir(os.path.join(declaration.object.bpffs, declaration.object.name))


def _write_maps(declaration: Declaration) -> None:
    for spec in declaration.maps:
        apply_map(spec)


def _mount(path: str) -> None:
    """Mount a bpffs, which systemd does on /sys/fs/bpf and nobody does elsewhere."""
    if os.path.isdir(path) and on_bpffs(path):
        return
    os.makedirs(path, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "bpf", "-o", "mode=0700", "bpf", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TcpSmError(f"Cannot mount a bpffs on {path}: {done.stderr.strip()}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tcp_sm_runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("restore", help="apply the declaration")
    command.add_argument(
        "--declaration", default=DECLARATION, metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        left_out = restore(options.declaration)
    except TcpSmError as error:
        sys.stderr.write(f"tcp_sm: {error}\n")
        return EXIT_FAILED
    for line in left_out:
        sys.stderr.write(f"tcp_sm: left out for now: {line}\n")
    return EXIT_INCOMPLETE if left_out else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
