# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the benchmark: plan, up, run, down. Results are JSON on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .drive import RunError, Settings, run_workload
from .model import ARMS, QUICK, TOPOLOGIES, all_workloads, port_of, select
from .stage import Stage, StageError


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
        for topology in args.topology or TOPOLOGIES
        for workload in select(names)
    ]


def _run(args: argparse.Namespace) -> object:
    stage = Stage(args.name)
    settings = Settings(args.arm or list(ARMS), args.runs, args.seconds, args.load_tool)
    return [
        run_workload(stage, topology, workload, settings)
        for topology in args.topology or TOPOLOGIES
        for workload in select(args.workload)
    ]


def _up(args: argparse.Namespace) -> object:
    stage = Stage(args.name)
    stage.up()
    return {"root": str(stage.root)}


def _down(args: argparse.Namespace) -> object:
    Stage(args.name).down()
    return {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tcp_sm_bench", description=__doc__)
    parser.add_argument(
        "--name",
        default="tcp_sm_bench",
        help="of the cgroup, the namespaces and the directory in /run",
    )
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
            action.add_argument("--load-tool", type=Path, required=True)
    return parser


def main() -> int:
    """Exit status 1 and a message when the stage or a server fails."""
    args = _parser().parse_args()
    try:
        print(json.dumps(args.function(args)))
    except (StageError, RunError, ValueError, OSError) as error:
        print(f"tcp_sm_bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
