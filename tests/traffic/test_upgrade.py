# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the collection's own loader attach, upgrade and remove under load, losing nothing?

What module bpf_object calls is called here, while connections that the first version
accelerated go on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import kernel
from harness.channel import OBJECT, ROOT, Channel, Config, wait_for
from harness.scene import Stage
from test_change import finish, fresh, loads, more

sys.path.insert(0, str(ROOT / "plugins"))
from module_utils._io import engine
from module_utils._model.spec import ObjectSpec

NEXT = ROOT / "build" / "bpf-next" / "sockmap.bpf.o"
ITERATORS = ("tcp_sm_dump", "tcp_sm_evict")


@dataclass
class Product:
    """The object as the collection manages it."""

    channel: Channel
    stage: Stage
    bpffs: Path
    lock: Path

    def apply(self, state: str = "attached", path: Path = OBJECT, attached: bool = True) -> Any:
        """Do what module bpf_object does; attached=False leaves the cgroup out."""
        cgroup = "/" + "/".join(self.channel.cgroup.parts[-2:])
        attach = [
            {"program": "tcp_sm_recv", "type": "tracing"},
            *({"program": name, "type": "iter", "map": "tcp_sm_socks"} for name in ITERATORS),
            {"program": "tcp_sm_verdict", "type": "map", "map": "tcp_sm_sockhash"},
        ]
        if attached:
            attach.append({"program": "tcp_sm_sockops", "type": "cgroup", "cgroup": cgroup})
        spec = ObjectSpec.parse(
            {
                "name": "product", "path": str(path), "state": state, "bpffs": str(self.bpffs),
                "attach": attach if state == "attached" else [],
            }
        )  # fmt: skip
        result = engine.apply(spec, lock_path=str(self.lock))
        self.channel.close()
        return result


@pytest.fixture
def product(bpffs: Path, cgroups: tuple[Path, Path], tmp_path: Path) -> Iterator[Product]:
    """The collection's loader on a cgroup of its own; nothing is left afterwards."""
    top = cgroups[0].parent / "product"
    top.mkdir()
    channel = Channel(bpffs / "product", top)
    made = Product(channel, Stage(channel, top, cgroups[1]), bpffs, tmp_path / "lock")
    made.apply()
    channel.configure(Config())
    yield made
    made.apply("absent")
    assert not (bpffs / "product").exists()
    top.rmdir()


@pytest.fixture
def next_version() -> Path:
    """The same source with another constant: other programs, the same maps."""
    assert NEXT.exists(), f"{NEXT} is missing; `make traffic` builds it"
    return NEXT


def ids(product: Product) -> dict[str, int]:
    return {
        name: kernel.map_id(product.channel.map(name))
        for name in ("tcp_sm_sockhash", "tcp_sm_conns")
    }


def test_upgrade_under_load(
    product: Product, start: Callable[..., Any], next_version: Path
) -> None:
    channel = product.channel
    with product.stage.place() as place:
        running = loads(start, place)
        more(channel, 500)
        maps = ids(product)
        for path in (next_version, OBJECT, next_version):
            assert product.apply(path=path).changed
            assert ids(product) == maps, "the maps were replaced"
            # Live connections go on by TCP; new ones are accelerated by the new version.
            running += loads(start, place)
            more(channel, 300)
        assert not product.apply(path=next_version).changed
        finish(running)


def test_cgroup_is_dropped_and_added_under_load(
    product: Product, start: Callable[..., Any]
) -> None:
    channel = product.channel
    with product.stage.place() as place:
        running = loads(start, place)
        more(channel, 300)
        for attached in (False, True):
            assert product.apply(attached=attached).changed
            fresh(start, place)
        running += loads(start, place)
        more(channel, 300)
        finish(running)


def test_removal_under_load(product: Product, start: Callable[..., Any]) -> None:
    with product.stage.place() as place:
        running = loads(start, place)
        more(product.channel, 500)
        maps = ids(product)
        assert product.apply("absent").changed
        fresh(start, place)
        finish(running)
    for name, number in maps.items():
        wait_for(f"map {name} is freed", lambda n=number: not kernel.map_exists(n))
