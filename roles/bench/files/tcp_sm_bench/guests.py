# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two virtual machines as the ends of topology `vm`.

The driver talks to an agent in each by a session that lives as long as a workload, so that a run
costs two short messages and no login. Nothing of it uses the connections that are measured.
"""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from .drive import RUN_TIMEOUT, Run
from .model import LOOPBACK, OURS, SPIN, VM, Workload, port_of
from .remote import LOAD_TOOL, PATIENCE, Login, Remote, compile_load_tool, install, remove
from .tools import TOOLS, RunError, Where

_COUNTS = ("doorbells", "interrupts", "context_switches", "card_bytes")


@dataclass(frozen=True)
class Plan:
    """Who takes part.

    address: the server's, as the client reaches it. host: the hypervisor. spin_us: of the arm
    that spins. directory: for the benchmark's files, on each.
    """

    server: Login
    client: Login
    host: Login
    address: str
    directory: str
    spin_us: int

    @property
    def logins(self) -> list[Login]:
        return [self.server, self.client, self.host]


def parse_plan(value: dict[str, Any]) -> Plan:
    """From the JSON object that the role gives; ValueError names what is wrong."""
    try:
        server, client, host = (Login(**value[side]) for side in ("server", "client", "host"))
        rest = value["address"], value["directory"], int(value["spin_us"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"guests: not a description of guests: {error!r}") from error
    if server.name == client.name:
        raise ValueError(f"guests: {server.name} cannot be both ends; name two machines")
    return Plan(server, client, host, *rest)


def up(plan: Plan) -> None:
    """Copies the benchmark to all machines. The hypervisor compiles the load generator: a guest
    without KVM would take long."""
    load_tool = compile_load_tool(plan.host, plan.directory)
    for login in plan.logins:
        install(login, plan.directory, load_tool)


def down(plan: Plan) -> None:
    """Removes what `up` left."""
    for login in plan.logins:
        remove(login, plan.directory)


class GuestGround(AbstractContextManager["GuestGround"]):
    """Topology `vm`: the agents of both guests and of the hypervisor."""

    topology = VM

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._spin: int | None = None
        self._spun: dict[Remote, int] = {}
        self._qemus: list[int] = []
        self.facts: dict[str, object] = {}

    def __enter__(self) -> GuestGround:
        with ExitStack() as stack:
            # All start at once: under emulation Python takes a second to do so.
            self.server, self.client, self.host = (
                stack.enter_context(Remote(login, self.plan.directory))
                for login in self.plan.logins
            )
            described = [guest.call("describe") for guest in (self.server, self.client)]
            self._qemus = self._find_qemus([one["uuid"] for one in described])
            self.facts = {
                "guests": {name: described[0][name] for name in ("accelerator", "kernel", "cpus")}
            }
            stack.callback(self._restore)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def where(self, arm: str, workload: Workload) -> Where:
        directory = f"{self.plan.directory}/{workload.name}-{arm}"
        address = "127.0.0.1" if arm == LOOPBACK else self.plan.address
        port = port_of(workload, arm)
        load_tool = f"{self.plan.directory}/tcp_sm_bench/{LOAD_TOOL}"
        return Where(workload, False, address, port, directory, load_tool)

    def start(self, arm: str, where: Where) -> int:
        server = TOOLS[where.workload.tool].server(where)
        files = {name: base64.b64encode(data).decode() for name, data in server.files.items()}
        return int(
            self.server.call("start", server.words, where.directory, files, where.listens_at)
        )

    def stop(self, arm: str, server: int) -> None:
        self.server.call("stop", server)

    def run(self, arm: str, words: list[str]) -> Run:
        self._set_spin(self.plan.spin_us if arm == SPIN else 0)
        peer = None if arm == LOOPBACK else self.server
        here = self.server if arm == LOOPBACK else self.client
        host_before = self._host_seconds()
        peer_before = peer.call("sample") if peer else {}
        out, before, after = here.call(
            "measured_run", words, RUN_TIMEOUT, timeout=RUN_TIMEOUT + PATIENCE
        )
        peer_after = peer.call("sample") if peer else {}
        host_after = self._host_seconds()
        ends = [difference(before, after)] + ([difference(peer_before, peer_after)] if peer else [])
        check_channel(arm, [end.get("rings") for end in ends])
        host_cpu = None if host_before is None or not host_after else host_after - host_before
        counts = {name: sum(end[name] for end in ends) for name in _COUNTS}
        counts["rings"] = ends[0].get("rings", 0)
        return Run(out, sum(end["busy"] for end in ends), host_cpu, counts)

    def _find_qemus(self, uuids: list[str]) -> list[int]:
        """Pids of both guests' QEMU on the hypervisor, or none."""
        found = [self.host.call("find_qemu", uuid or "?") for uuid in uuids]
        return found if all(found) else []

    def _host_seconds(self) -> float | None:
        if not self._qemus:
            return None
        return float(sum(self.host.call("process_seconds", pid) for pid in self._qemus))

    def _set_spin(self, microseconds: int) -> None:
        if self._spin == microseconds:
            return
        for guest in (self.server, self.client):
            before = guest.call("set_parameter", "spin_us", microseconds)
            self._spun.setdefault(guest, before)
        self._spin = microseconds

    def _restore(self) -> None:
        for guest, value in self._spun.items():
            guest.call("set_parameter", "spin_us", value)


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """By name, of what both have."""
    return {name: value - before[name] for name, value in after.items() if name in before}


def check_channel(arm: str, rings: list[float | None]) -> None:
    """RunError unless every end used rings, or none, as the arm should. None: no device."""
    wanted = arm in (OURS, SPIN)
    if wanted and not all(rings):
        raise RunError(
            "no connection went through a ring; playbooks/status.yml tells why each is on TCP"
        )
    if not wanted and any(rings):
        raise RunError("a connection that should be plain TCP went through a ring")
