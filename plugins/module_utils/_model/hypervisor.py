# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hypervisor is to share: the role's list of regions, checked as a whole and made explicit.

Private to this collection. What comes out is what the agent reads (agent/tcp_sm_agent/config.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import InputError, TcpSmError
from .region import RING_DEFAULT, Region, equal_share, new_region, put_automatic, put_chunk
from .region_spec import ChunkSpec, RegionSpec

# What a region of the list may have, and what of it goes to the agent as it is.
_PASSED = (
    *("host", "owner", "group", "mode", "allocate"),
    *("socket_owner", "socket_group", "socket_mode", "vectors"),
)
_KNOWN = {
    *("name", "path", "size", "vms", "parts", "chunk_size", "ring_size", "automatic", "socket"),
    *_PASSED,
}
_VM = {"name", "chunk_size", "ring_size"}
# As good as any: it is only for trying out whether everything fits.
_IDENTITY = bytes(15) + b"\1"


def normal_regions(
    raw: Any, run_dir: str, prefix: str = "hypervisor_regions", socket_owner: str = ""
) -> list[dict[str, Any]]:
    """Every region with its path, socket and chunks spelled out; `socket_owner` for those that
    name none.

    Raises InputError that names the element and what is wrong with it: also where two contradict
    each other, or chunks do not fit.
    """
    if not isinstance(raw, list):
        raise InputError(f"{prefix}: needs a list of regions, not {raw!r}")
    found = []
    for index, one in enumerate(raw):
        name = one.get("name") if isinstance(one, Mapping) else None
        at = f"{prefix}[{index}]" + (f" ({name})" if name else "")
        try:
            normal = _normal_region(one, run_dir)
        except TcpSmError as error:
            raise InputError(f"{at}: {error}") from None
        if socket_owner:
            normal.setdefault("socket_owner", socket_owner)
        found.append(normal)
    _refuse_twice(found, prefix)
    return found


def gone(before: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """What was applied and is not wanted any more, both as `normal_regions` gives them.

    `domains`: machines that lose a region's device. `chunks`: those to remove from regions that
    stay. `regions`: those that go as a whole.
    """
    paths = {region["path"] for region in wanted}
    domains = {(region["name"], owner) for region, owner in _owners(wanted)}
    chunks = {(region["path"], owner) for region, owner in _owners(wanted)}
    return {
        "domains": [
            {"region": region["name"], "owner": owner}
            for region, owner in _owners(before)
            if (region["name"], owner) not in domains
        ],
        "chunks": [
            {"region": region["name"], "path": region["path"], "owner": owner}
            for region, owner in _owners(before)
            if region["path"] in paths and (region["path"], owner) not in chunks
        ],
        "regions": [region for region in before if region["path"] not in paths],
    }


def _owners(regions: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each region with each of its machines."""
    for region in regions:
        for chunk in region["chunks"]:
            yield region, chunk["owner"]


def _normal_region(raw: Any, run_dir: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise InputError(f"needs a dictionary with name and size, not {raw!r}")
    _refuse_unknown(raw, _KNOWN, "a region")
    spec = RegionSpec.parse(raw)
    machines = [_normal_machine(one) for one in _list(raw, "vms")]
    automatic = spec.automatic.count if spec.automatic else 0
    share = equal_share(spec.size, _parts(raw, len(machines) + automatic))
    region = new_region(spec.name, spec.size, _IDENTITY, spec.host or "")
    plan = _Plan(region, raw, share)
    if spec.automatic:
        size = spec.automatic.size or plan.chunk_size
        plan.region = put_automatic(plan.region, automatic, size, spec.automatic.ring_size)
    chunks = [plan.chunk(machine) for machine in machines]
    normal = {
        "name": spec.name,
        "path": spec.path,
        "size": spec.size,
        "socket": str(raw.get("socket") or f"{run_dir}/{spec.name}.sock"),
        "chunks": chunks,
        **{key: raw[key] for key in _PASSED if raw.get(key) is not None},
    }
    if spec.automatic:
        ring_size = spec.automatic.ring_size
        normal["automatic"] = {"count": automatic, "size": size, "ring_size": ring_size}
    return normal


class _Plan:
    """Tries out whether everything fits."""

    def __init__(self, region: Region, raw: Mapping[str, Any], share: int) -> None:
        self.region, self.raw = region, raw
        self.chunk_size = self._spec("any", {}, share).size

    def _spec(self, owner: str, machine: Mapping[str, Any], default: int) -> ChunkSpec:
        size = machine.get("chunk_size") or self.raw.get("chunk_size") or default
        ring_size = machine.get("ring_size") or self.raw.get("ring_size") or RING_DEFAULT
        raw = {"region": self.region.name, "owner": owner, "size": size, "ring_size": ring_size}
        return ChunkSpec.parse(raw)

    def chunk(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk of one machine. Raises TcpSmError where it does not fit."""
        spec = self._spec(machine["name"], machine, self.chunk_size)
        if self.region.owned_by(spec.owner):
            raise InputError(f"vms: {spec.owner} is there twice")
        self.region = put_chunk(self.region, spec.owner, spec.size, spec.ring_size)
        return {"owner": spec.owner, "size": spec.size, "ring_size": spec.ring_size}


def _normal_machine(raw: Any) -> dict[str, Any]:
    machine = dict(raw) if isinstance(raw, Mapping) else {"name": raw}
    _refuse_unknown(machine, _VM, "a machine")
    machine["name"] = str(machine.get("name") or "")
    return machine


def _parts(raw: Mapping[str, Any], machines: int) -> int:
    """Into how many equal chunks the region is divided where no size is given."""
    parts = raw.get("parts")
    if parts is None:
        return max(2, machines)
    try:
        count = int(parts)
    except (TypeError, ValueError):
        count = 0
    if count < max(1, machines):
        raise InputError(
            f"parts: {parts!r} must be a number of at least {max(1, machines)}, for that many "
            "chunks are declared"
        )
    return count


def _refuse_twice(regions: list[dict[str, Any]], prefix: str) -> None:
    for what in ("name", "path", "socket"):
        values = [region[what] for region in regions]
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{prefix}: two regions have the {what} {value}")
    homes: dict[str, str] = {}
    for region in regions:
        for chunk in region["chunks"]:
            owner = chunk["owner"]
            if owner in homes:
                raise InputError(
                    f"{prefix}: {owner} is in {homes[owner]} and in {region['name']}; a machine "
                    "belongs to one region, which is its trust domain"
                )
            homes[owner] = region["name"]


def _refuse_unknown(raw: Mapping[str, Any], known: set[str], what: str) -> None:
    if extra := sorted(set(raw) - known):
        raise InputError(f"unknown {', '.join(extra)}; {what} has {', '.join(sorted(known))}")


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{key}: needs a list, not {value!r}")
    return value
