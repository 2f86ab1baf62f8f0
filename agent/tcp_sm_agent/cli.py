# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import sys

from ._io.region import Making, create_region
from ._io.region_state import fresh_region
from ._model.errors import InputError, TcpSmError
from ._model.region import RING_DEFAULT, size_text
from ._model.region_spec import RegionSpec, parse_mode, parse_vectors
from .config import CONFIG, CONTROL, RUN_FOLDER, Access, Config, Serving, read_config
from .daemon import daemonize, notify, remove_pidfile, running, send, write_pidfile
from .service import Service
from .status import ask, read_files, table

PIDFILE = f"{RUN_FOLDER}/agent.pid"
EXIT_OK, EXIT_FAILED = 0, 1
# As init scripts have it.
EXIT_NOT_RUNNING = 3


def create(options: argparse.Namespace) -> int:
    """Make a region with chunks, without Ansible."""
    if os.path.lexists(options.path):
        raise InputError(f"Cannot create region {options.path}: something is there already.")
    geometry = {"size": options.chunk_size, "ring_size": options.ring_size}
    spec = RegionSpec.parse(
        {
            "name": options.name or os.path.basename(options.path),
            "path": os.path.abspath(options.path),
            "size": options.size,
            "chunks": [{"owner": owner, **geometry} for owner in options.owner],
            "automatic": {"count": options.automatic, **geometry},
        }
    )
    region = fresh_region(spec)
    create_region(spec.path, region, Making(parse_mode(options.mode)))
    for chunk in region.used:
        sys.stdout.write(
            f"chunk {chunk.index}: {chunk.owner or 'automatic'}, {size_text(chunk.size)} at "
            f"{size_text(chunk.offset)}, {chunk.slots} slots of 2 x {size_text(chunk.ring_size)}\n"
        )
    return EXIT_OK


def run(options: argparse.Namespace) -> int:
    """Serve, in the foreground or as a daemon."""
    config = _config(options)
    if options.daemon and running(options.pidfile):
        sys.stdout.write("running already\n")
        return EXIT_OK
    ready = daemonize(options.log) if options.daemon else _ready
    # systemd's journal has times of its own.
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format=f"{stamp}%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    _raise_file_limit()
    reread = None if options.region else (lambda: read_config(options.config))
    service = Service(config, reread, ready, lambda: notify("WATCHDOG=1"))
    try:
        if options.daemon:
            write_pidfile(options.pidfile)
        service.run(strict=bool(options.region))
    except TcpSmError as error:
        logging.getLogger("tcp_sm_agent").error("%s", error)
        return EXIT_FAILED
    finally:
        remove_pidfile(options.pidfile)
    return EXIT_OK


def _config(options: argparse.Namespace) -> Config:
    if not options.region:
        return read_config(options.config)
    if not options.socket:
        raise InputError("--region needs --socket")
    name = os.path.basename(options.region)
    access = Access(parse_mode(options.mode))
    vectors = parse_vectors(options.vectors)
    serving = Serving(name, options.region, options.socket, vectors, access)
    return Config((serving,), options.control, options.metrics)


def _ready() -> None:
    notify("READY=1")


def _raise_file_limit() -> None:
    """Each machine takes three descriptors and each chunk one or more."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check(options: argparse.Namespace) -> int:
    """Read the configuration and do nothing."""
    config = read_config(options.config)
    sys.stdout.write(f"{options.config}: {len(config.regions)} regions\n")
    return EXIT_OK


def status(options: argparse.Namespace) -> int:
    """What the agent says; without one, what the regions' files say."""
    try:
        answer, code = ask(options.control), EXIT_OK
    except (OSError, ValueError):
        named = dict.fromkeys(options.region or (), -1)
        answer, code = read_files(named or _configured(options.config)), EXIT_NOT_RUNNING
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in table(answer))
    return code


def _configured(path: str) -> dict[str, int]:
    """Paths of the regions in the configuration with their owners, none where it cannot be read."""
    try:
        return {serving.path: serving.access.uid for serving in read_config(path).regions}
    except TcpSmError:
        return {}


def stop(options: argparse.Namespace) -> int:
    """Stop the daemon."""
    done = send(options.pidfile, signal.SIGTERM)
    sys.stdout.write("stopped\n" if done else "not running\n")
    return EXIT_OK


def reload(options: argparse.Namespace) -> int:
    """Have the daemon read its configuration again."""
    if not send(options.pidfile, signal.SIGHUP):
        raise TcpSmError(f"Cannot reload: no agent runs (by {options.pidfile}). Start it.")
    return EXIT_OK


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(prog="tcp_sm_agent", description="serves regions to QEMU")
    commands = top.add_subparsers(dest="command", required=True)

    one = commands.add_parser("run", help="serve")
    one.add_argument("--config", default=CONFIG, metavar="FILE", help="default: %(default)s")
    one.add_argument("--daemon", action="store_true", help="in the background")
    one.add_argument("--pidfile", default=PIDFILE, metavar="FILE")
    one.add_argument("--log", default="", metavar="FILE", help="of the daemon")
    one.add_argument("--verbose", action="store_true")
    alone = one.add_argument_group("one region without a configuration")
    alone.add_argument("--region", metavar="FILE")
    alone.add_argument("--socket", metavar="PATH")
    alone.add_argument("--vectors", type=int, default=1, help="interrupts of each machine")
    alone.add_argument("--mode", default="600", help="of the socket")
    alone.add_argument("--control", default="", metavar="PATH", help="socket for `status`")
    alone.add_argument("--metrics", default="", metavar="FILE")
    one.set_defaults(call=run)

    one = commands.add_parser("status", help="what is going on")
    one.add_argument("--json", action="store_true")
    one.add_argument("--control", default=CONTROL, metavar="PATH")
    one.add_argument("--config", default=CONFIG, metavar="FILE")
    one.add_argument("--region", action="append", metavar="FILE", help="without an agent; repeat")
    one.set_defaults(call=status)

    one = commands.add_parser("check", help="check the configuration")
    one.add_argument("--config", default=CONFIG, metavar="FILE")
    one.set_defaults(call=check)

    for name, call in (("stop", stop), ("reload", reload)):
        one = commands.add_parser(name, help=f"{name} the daemon")
        one.add_argument("--pidfile", default=PIDFILE, metavar="FILE")
        one.set_defaults(call=call)

    one = commands.add_parser("create", help="make a region file")
    one.add_argument("--path", required=True)
    one.add_argument("--size", required=True, help="a power of two, such as 256M")
    one.add_argument("--name", help="default: the file's name")
    one.add_argument("--owner", action="append", default=[], help="a machine; repeat")
    one.add_argument("--automatic", type=int, default=0, help="chunks for any machine")
    one.add_argument("--chunk-size", help="default: equal parts")
    one.add_argument("--ring-size", default=str(RING_DEFAULT), help="of one direction")
    one.add_argument("--mode", default="600")
    one.set_defaults(call=create)
    return top


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 with the reason on stderr; 3 from `status` without an agent."""
    options = parser().parse_args(arguments)
    try:
        return int(options.call(options))
    except TcpSmError as error:
        sys.stderr.write(f"tcp_sm_agent: {error}\n")
        return EXIT_FAILED
