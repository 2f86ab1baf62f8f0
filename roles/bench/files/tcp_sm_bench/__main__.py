# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the benchmark: plan, up, run, down. Results are JSON on standard output.

With --guests (a JSON object, see guests.py), up, run and down are for topology vm and touch this
machine only as far as it is one of those named there; without, for the other topologies.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import guests
from .drive import Ground, Settings, run_workload
from .model import ARMS, HOST, QUICK, TOPOLOGIES, VM, all_workloads, port_of, select
from .remote import RemoteError
from .stage import HostGround, Stage, StageError
from .tools import RunError


def _plan(args: argparse.Namespace) -> object:
    names = args.workload or (
        QUICK if args.profile == "quick" else [w.name for w in all_workloads()]
    )
    return [
        {
            "topology": topology,
            "workload": workload.name,
            "ports": {arm: port_of(workload, arm) for arm in ARMS},
        }
        for topology in args.topology or HOST
        for workload in select(names)
        if topology in workload.places
    ]


@contextmanager
def _ground(args: argparse.Namespace, topology: str) -> Iterator[Ground]:
    if topology == VM:
        with guests.GuestGround(_guests(args)) as ground:
            yield ground
    elif args.load_tool:
        yield HostGround(Stage(args.name), topology, str(args.load_tool))
    else:
        raise ValueError(f"topology {topology} needs --load-tool")


def _guests(args: argparse.Namespace) -> guests.Plan:
    if not args.guests:
        raise ValueError(f"topology {VM} needs --guests")
    return guests.parse_plan(json.loads(args.guests))


def _run(args: argparse.Namespace) -> object:
    settings = Settings(args.arm or list(ARMS), args.runs, args.seconds)
    results = []
    for topology in args.topology or HOST:
        with _ground(args, topology) as ground:
            results += [
                run_workload(ground, workload, settings)
                for workload in select(args.workload)
                if topology in workload.places
            ]
    return results


def _up(args: argparse.Namespace) -> object:
    if args.guests:
        guests.up(_guests(args))
    else:
        Stage(args.name).up()
    return {}


def _down(args: argparse.Namespace) -> object:
    if args.guests:
        guests.down(_guests(args))
    else:
        Stage(args.name).down()
    return {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tcp_sm_bench", description=__doc__)
    parser.add_argument(
        "--name",
        default="tcp_sm_bench",
        help="of the cgroup, the namespaces and the directory in /run",
    )
    parser.add_argument("--guests", metavar="JSON", help="who takes part in topology vm")
    actions = parser.add_subparsers(required=True)
    for name, function in (("plan", _plan), ("run", _run), ("up", _up), ("down", _down)):
        action = actions.add_parser(name)
        action.set_defaults(function=function)
        if name in ("plan", "run"):
            action.add_argument("--topology", action="append", choices=TOPOLOGIES)
            action.add_argument("--workload", action="append", required=name == "run")
        if name == "plan":
            action.add_argument("--profile", choices=("full", "quick"), default="full")
        if name == "run":
            action.add_argument("--arm", action="append", choices=ARMS)
            action.add_argument("--runs", type=int, default=5)
            action.add_argument("--seconds", type=float, default=0.4)
            action.add_argument("--load-tool", type=Path)
    return parser


def main() -> int:
    """Exit status 1 and a message when a machine, the stage or a server fails."""
    args = _parser().parse_args()
    try:
        print(json.dumps(args.function(args)))
    except (StageError, RemoteError, RunError, ValueError, OSError) as error:
        print(f"tcp_sm_bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
