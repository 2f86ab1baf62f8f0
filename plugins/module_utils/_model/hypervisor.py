# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a hypervisor is to share: the role's list of regions, checked as a whole and made explicit.

Private to this collection. What comes out is what the agent reads (agent/tcp_sm_agent/config.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .errors import InputError, TcpSmError
from .region import Declared, new_region
from .region_spec import RegionSpec, check_socket, parse_chunk, parse_mode, parse_vectors

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
    name none. A chunk for which no size is declared has none here: it keeps what it has, and a new
    one gets one of `parts` equal parts.

    Raises InputError that names the element and what is wrong with it: also where two contradict
    each other, chunks do not fit, or the agent would refuse what it is given.
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

    `domains`: machines that lose a region's device. `regions`: those that go as a whole.
    """
    paths = {region["path"] for region in wanted}
    domains = {(region["name"], owner) for region, owner in _owners(wanted)}
    return {
        "domains": [
            {"region": region["name"], "owner": owner}
            for region, owner in _owners(before)
            if (region["name"], owner) not in domains
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
    spec = _parse(raw)
    # Whether everything fits.
    spec.arrange(new_region(spec.name, spec.size, _IDENTITY, spec.host or ""))
    normal = {
        "name": spec.name,
        "path": spec.path,
        "size": spec.size,
        "parts": spec.parts,
        "socket": check_socket(str(raw.get("socket") or f"{run_dir}/{spec.name}.sock")),
        "chunks": [{"owner": one.owner, **_geometry(one)} for one in spec.chunks or ()],
        **{key: raw[key] for key in _PASSED if raw.get(key) is not None},
    }
    if spec.automatic:
        one = Declared("", spec.automatic.size, spec.automatic.ring_size)
        normal["automatic"] = {"count": spec.automatic.count, **_geometry(one)}
    # What the agent would refuse.
    for key in ("mode", "socket_mode"):
        if key in normal:
            parse_mode(normal[key], key)
    if "vectors" in normal:
        normal["vectors"] = parse_vectors(normal["vectors"])
    return normal


def _parse(raw: Mapping[str, Any]) -> RegionSpec:
    """With chunks for the machines, and sizes that are declared once for all."""
    # Looked at also where no machine has them.
    size, ring_size = (raw.get(key) or None for key in ("chunk_size", "ring_size"))
    common = parse_chunk({"owner": "any", "size": size, "ring_size": ring_size})
    chunks = [_chunk(one, common) for one in _list(raw, "vms")]
    owners = [one["owner"] for one in chunks]
    for owner in owners:
        if owners.count(owner) > 1:
            raise InputError(f"vms: {owner} is there twice")
    spec = RegionSpec.parse({**raw, "chunks": chunks})
    automatic = spec.automatic
    if automatic:
        automatic = replace(automatic, size=automatic.size or common.size)
    return replace(spec, automatic=automatic, parts=spec.parts or max(2, spec.count))


def _chunk(raw: Any, common: Declared) -> dict[str, Any]:
    """The chunk of a machine, as RegionSpec.parse takes it."""
    machine = dict(raw) if isinstance(raw, Mapping) else {"name": raw}
    _refuse_unknown(machine, _VM, "a machine")
    return {
        "owner": str(machine.get("name") or ""),
        "size": machine.get("chunk_size") or common.size or None,
        "ring_size": machine.get("ring_size") or common.ring_size,
    }


def _geometry(one: Declared) -> dict[str, int]:
    size = {"size": one.size} if one.size else {}
    return {**size, "ring_size": one.ring_size}


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
