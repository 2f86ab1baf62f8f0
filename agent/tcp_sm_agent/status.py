# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is going on: as data, as a table, as Prometheus metrics."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ._io.region import RegionFile
from ._model.errors import TcpSmError
from ._model.region import Chunk, Region, size_text
from .client import Machine
from .server import RegionServer

TIMEOUT_SECONDS = 5.0


def describe_server(server: RegionServer) -> dict[str, Any]:
    """One region as the agent sees it."""
    region = server.file.read()
    data = describe_region(server.file, region, server.machines)
    for chunk in data["chunks"]:
        chunk["machine"] = _machine(server, chunk["index"])
    return {
        **data,
        "replaced": not server.file.is_current(),
        "counters": asdict(server.counters),
        "refusals": list(server.refusals),
    }


def describe_region(
    file: RegionFile, region: Region, living: dict[int, Machine] | None = None
) -> dict[str, Any]:
    """One region as its file says. The identity is a secret among its machines."""
    chunks = [_chunk(file, region, chunk, living or {}) for chunk in region.used]
    return {
        "name": region.name,
        "path": file.path,
        "size": region.size,
        "host": region.host,
        "fingerprint": hashlib.sha256(region.id).hexdigest()[:16],
        "chunks": chunks,
    }


def _chunk(
    file: RegionFile, region: Region, chunk: Chunk, living: dict[int, Machine]
) -> dict[str, Any]:
    header = file.header(chunk)
    return {
        **chunk.describe(),
        "state": chunk.state.name.lower(),
        "epoch": chunk.epoch,
        # Its module has taken the chunk in this life.
        "module": header.started and header.epoch == chunk.epoch,
        # Every peer has let go of its former lives.
        "settled": file.is_settled(region, chunk.index, living),
        "machine": None,
    }


def _machine(server: RegionServer, index: int) -> dict[str, Any] | None:
    machine = server.machines.get(index)
    if machine is None:
        return None
    return {
        "pid": machine.process.pid,
        "name": machine.process.identity.name,
        "uuid": machine.process.identity.uuid,
        "connected": machine.sock is not None,
        # False: it can be neither woken nor wake others; polling and the watch remain.
        "doorbell": machine.doorbell,
    }


def ask(control: str) -> dict[str, Any]:
    """The status of the agent that listens at `control`. Raises OSError when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT_SECONDS)
        sock.connect(control)
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    answer: dict[str, Any] = json.loads(data)
    return answer


def read_files(paths: dict[str, int]) -> dict[str, Any]:
    """The same without an agent, from the regions' files; with the user whose they may be."""
    regions = []
    for path, owner in paths.items():
        try:
            with RegionFile(path, read_only=True, owners=[owner]) as file:
                regions.append({**describe_region(file, file.read()), "error": None})
        except TcpSmError as error:
            regions.append({"name": os.path.basename(path), "path": path, "error": str(error)})
    return {"agent": None, "regions": regions}


def table(status: dict[str, Any]) -> Iterator[str]:
    """For people, a line at a time."""
    agent = status["agent"]
    yield f"agent: pid {agent['pid']}, since {agent['since']}" if agent else "agent: not running"
    for region in status["regions"]:
        yield ""
        if region.get("error"):
            yield f"region {region['name']}: {region['error']}"
            continue
        yield f"region {region['name']}: {region['path']}, {size_text(region['size'])}"
        yield from _chunk_lines(region["chunks"])
        for refusal in region.get("refusals", []):
            yield f"  refused {refusal['count']} times: {refusal['who']}: {refusal['reason']}"


def _chunk_lines(chunks: list[dict[str, Any]]) -> Iterator[str]:
    row = "  {:>5}  {:<24} {:<9} {:>10}  {:>8} {:>6} {:>9}  {}"
    yield row.format("chunk", "owner", "state", "epoch", "size", "slots", "ring", "machine")
    for chunk in chunks:
        yield row.format(
            chunk["index"],
            chunk["owner"] or "(automatic)",
            chunk["state"],
            chunk["epoch"],
            size_text(chunk["size"]),
            chunk["slots"],
            size_text(chunk["ring_size"]),
            _machine_text(chunk),
        ).rstrip()


def _machine_text(chunk: dict[str, Any]) -> str:
    machine = chunk["machine"]
    if machine is None:
        return "-"
    parts = [f"pid {machine['pid']}"]
    parts.append("connected" if machine["connected"] else "not connected")
    if not machine["doorbell"]:
        parts.append("no doorbell")
    parts.append("module runs" if chunk["module"] else "no module")
    return ", ".join(parts)


# name -> (type, help)
METRICS = {
    "tcp_sm_agent_start_time_seconds": ("gauge", "When the agent started."),
    "tcp_sm_agent_updated_seconds": ("gauge", "When these metrics were written."),
    "tcp_sm_region_size_bytes": ("gauge", "Size of the region."),
    "tcp_sm_region_error": ("gauge", "1: the region cannot be served; see the agent's log."),
    "tcp_sm_region_chunks": ("gauge", "Chunks by state."),
    "tcp_sm_region_machines": ("gauge", "Machines that run, by whether they are connected."),
    "tcp_sm_region_machines_without_doorbell": (
        "gauge",
        "Machines that cannot be interrupted: plain devices, or lost at a restart.",
    ),
    "tcp_sm_region_events_total": ("counter", "What happened since the agent's start."),
    "tcp_sm_chunk_slots": ("gauge", "Connections that the chunk has room for."),
    "tcp_sm_chunk_module": ("gauge", "1: the owner's module has taken the chunk."),
}


def metrics(status: dict[str, Any]) -> str:
    """Prometheus's text format."""
    samples = list(_samples(status))
    lines = []
    for name, (kind, text) in METRICS.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value}" for sample, labels, value in samples if sample == name]
    return "\n".join(lines) + "\n"


def _samples(status: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    yield "tcp_sm_agent_start_time_seconds", "", status["agent"]["started"]
    yield "tcp_sm_agent_updated_seconds", "", round(time.time(), 3)
    for region in status["regions"]:
        name = region["name"]
        yield "tcp_sm_region_error", _labels(region=name), int(bool(region["error"]))
        if not region["error"]:
            yield "tcp_sm_region_size_bytes", _labels(region=name), region["size"]
            yield from _region_samples(name, region)


def _region_samples(name: str, region: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    chunks = region["chunks"]
    for state in ("free", "assigned", "dead"):
        count = sum(chunk["state"] == state for chunk in chunks)
        yield "tcp_sm_region_chunks", _labels(region=name, state=state), count
    machines = [chunk["machine"] for chunk in chunks if chunk["machine"]]
    for connected in (True, False):
        count = sum(machine["connected"] is connected for machine in machines)
        label = _labels(region=name, connected=str(connected).lower())
        yield "tcp_sm_region_machines", label, count
    deaf = sum(not machine["doorbell"] for machine in machines)
    yield "tcp_sm_region_machines_without_doorbell", _labels(region=name), deaf
    for event, count in region["counters"].items():
        yield "tcp_sm_region_events_total", _labels(region=name, event=event), count
    for chunk in chunks:
        label = _labels(region=name, chunk=str(chunk["index"]), owner=chunk["owner"])
        yield "tcp_sm_chunk_slots", label, chunk["slots"]
        yield "tcp_sm_chunk_module", label, int(chunk["module"])


def _labels(**labels: str) -> str:
    escaped = (
        f'{key}="' + value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") + '"'
        for key, value in labels.items()
    )
    return "{" + ",".join(escaped) + "}"


def write_metrics(path: str, text: str) -> None:
    """Replace the file as a whole. Raises OSError."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.replace(temporary, path)
