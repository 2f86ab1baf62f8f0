# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Objects in the real kernel: recognised, replaced, re-attached, refused."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import engine
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import Result
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.libbpf import Bpf
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.live import sockmap_attach_types
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.maps import apply_map
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup_path
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    ForeignError,
    InputError,
    KernelError,
    MissingError,
    TcpSmError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    MapSpec,
    ObjectSpec,
    parse_attach,
)

pytestmark = pytest.mark.root

Apply = Callable[..., Result]


@pytest.fixture
def apply(tmp_path: Path) -> Apply:
    """engine.apply under a lock of this test's own."""

    def run(spec: ObjectSpec, check: bool = False, **options: Any) -> Result:
        return engine.apply(spec, check, lock_path=str(tmp_path / "lock"), **options)

    return run


def ids(result: Result, kind: str) -> dict[str, int]:
    return {item.get("program") or item["name"]: item["id"] for item in result.object[kind]}


def pins(spec: ObjectSpec) -> set[str]:
    top = Path(spec.bpffs)
    return {str(path) for folder in top.iterdir() if folder.is_dir() for path in folder.rglob("*")}


def attach(*items: dict[str, str]) -> Any:
    return parse_attach(list(items))


def test_is_a_loaded_object_recognised(spec: ObjectSpec, apply: Apply) -> None:
    first = apply(spec)
    assert first.changed
    assert first.before["state"] == "absent"
    again = apply(spec)
    assert not again.changed
    assert again.before == again.after == first.after
    assert again.object == first.object
    assert first.object["sha256"] == hashlib.sha256(Path(spec.path).read_bytes()).hexdigest()


def test_does_check_mode_say_what_then_happens(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    for wanted in (
        spec,
        replace(spec, path=objects["two"]),
        replace(spec, path=objects["two"], attach=spec.attach[:1]),
        replace(spec, path=objects["two"], state="loaded"),
        replace(spec, state="absent"),
    ):
        saved = pins(spec)
        predicted = apply(wanted, check=True)
        assert pins(spec) == saved
        done = apply(wanted)
        assert predicted.changed
        assert done.changed
        assert (predicted.before, predicted.after) == (done.before, done.after)
        assert not apply(wanted, check=True).changed


def test_does_an_upgrade_keep_entries_and_links(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str], tmp_path: Path
) -> None:
    old = apply(spec)
    ports = MapSpec(f"{spec.bpffs}/unit/maps/ports", ({"key": 80, "value": 7},))
    apply_map(ports, lock_path=str(tmp_path / "lock"))
    new = apply(replace(spec, path=objects["two"]))
    assert not set(ids(old, "programs").values()) & set(ids(new, "programs").values())
    changed = {name for name, one in ids(new, "maps").items() if ids(old, "maps")[name] != one}
    assert changed == {".rodata"}
    # The tracing link is the one that the kernel cannot update.
    moved = {name for name, one in ids(new, "links").items() if ids(old, "links")[name] != one}
    assert moved == {"count_receives"}
    read = apply_map(replace(ports, entries=()), lock_path=str(tmp_path / "lock"))
    assert read.entries == [{"key": 80, "value": 7}]
    bpf = Bpf()
    for link in new.object["links"]:
        fd = bpf.obj_get(link["pin"])
        assert bpf.link_info(fd).prog_id == ids(new, "programs")[link["program"]]
        os.close(fd)


def test_are_maps_that_do_not_fit_only_replaced_when_told(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    old = apply(spec)
    wider = replace(spec, path=objects["wider"])
    with pytest.raises(InputError) as error:
        apply(wider)
    assert "map limits_map: its value size is 28, the object needs 32" in str(error.value)
    assert "Set replace_maps=true" in str(error.value)
    assert apply(spec).object == old.object
    new = apply(replace(wider, replace_maps=True))
    assert new.after["maps"]["limits_map"].endswith("(replaced)")
    assert ids(new, "maps")["ports"] == ids(old, "maps")["ports"]
    assert not apply(wider).changed


def test_does_another_size_of_a_map_count(spec: ObjectSpec, apply: Apply) -> None:
    larger = replace(spec, max_entries={"ports": 128})
    apply(larger)
    with pytest.raises(InputError, match="map ports: its max entries is 128, the object needs 64"):
        apply(spec)
    assert not apply(larger).changed
    with pytest.raises(InputError, match=r"max_entries: .* has no map 'nope'; it has counts_map"):
        apply(replace(spec, max_entries={"nope": 1}))


def test_do_only_the_named_links_change(spec: ObjectSpec, apply: Apply, cgroup: str) -> None:
    first = apply(spec)
    both = attach(
        {"program": "pass_messages", "type": "map", "map": "sockets"},
        {"program": "count_events", "type": "cgroup", "cgroup": f"{cgroup}/a.b"},
        {"program": "count_events", "type": "cgroup", "cgroup": f"{cgroup}/c"},
    )
    second = apply(replace(spec, attach=both))
    assert ids(first, "programs") == ids(second, "programs")
    old = {link["pin"]: link["id"] for link in first.object["links"]}
    new = {link["pin"]: link["id"] for link in second.object["links"]}
    kept = set(old) & set(new)
    assert len(kept) == 2
    assert {pin: old[pin] for pin in kept} == {pin: new[pin] for pin in kept}
    assert sorted(link["target"] for link in second.object["links"]) == sorted(
        ["map sockets", f"cgroup {cgroup}/a.b", f"cgroup {cgroup}/c"]
    )


def test_does_loaded_detach_everything_and_keep_the_programs(
    spec: ObjectSpec, apply: Apply
) -> None:
    first = apply(spec)
    second = apply(replace(spec, state="loaded"))
    assert second.object["links"] == []
    assert second.object["programs"] == first.object["programs"]
    assert not apply(replace(spec, state="loaded")).changed


def test_is_a_cgroup_that_was_made_anew_attached_again(
    spec: ObjectSpec, apply: Apply, cgroup: str
) -> None:
    first = apply(spec)
    folder = Path(cgroup_path(f"{cgroup}/a.b"))
    folder.rmdir()
    folder.mkdir()
    second = apply(spec)
    assert second.changed
    key = next(key for key in second.before["links"] if "@" in key)
    assert second.before["links"][key] == f"cgroup {cgroup}/a.b (cgroup was deleted)"
    assert ids(first, "links")["count_events"] != ids(second, "links")["count_events"]
    assert not apply(spec).changed


def test_is_a_kernel_without_links_to_maps_served(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 6.10, imitated by refusing just this link; the rest is real."""
    create = Bpf.link_create

    def refuse(self: Bpf, prog: int, target: int, kind: int, walk: int | None = None) -> int:
        if kind == sockmap_attach_types("sk_msg")[0]:
            raise OSError(22, os.strerror(22))
        return create(self, prog, target, kind, walk)

    monkeypatch.setattr(Bpf, "link_create", refuse)

    def attached() -> int:
        bpf = Bpf()
        fd = bpf.obj_get(f"{spec.bpffs}/unit/maps/sockets")
        found = bpf.prog_attached(fd, 7)
        os.close(fd)
        return found

    first = apply(spec)
    (link,) = (link for link in first.object["links"] if link["type"] == "map")
    assert (link["id"], link["pin"], link["target"]) == (None, None, "map sockets")
    assert attached() == ids(first, "programs")["pass_messages"]
    assert not apply(spec).changed
    second = apply(replace(spec, path=objects["two"]))
    assert attached() == ids(second, "programs")["pass_messages"]
    apply(replace(spec, path=objects["two"], state="loaded"))
    assert attached() == 0
    apply(spec)
    fd = Bpf().obj_get(f"{spec.bpffs}/unit/maps/sockets")
    assert apply(replace(spec, state="absent")).changed
    assert Bpf().prog_attached(fd, 7) == 0
    os.close(fd)


def test_does_a_failed_attachment_put_everything_back(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str], cgroup: str
) -> None:
    old = apply(spec)
    # An iterator over socket storage cannot walk a hash map.
    bad = replace(
        spec,
        path=objects["two"],
        attach=(
            *spec.attach[:2],
            *attach({"program": "dump_sockets", "type": "iter", "map": "ports"}),
        ),
    )
    with pytest.raises(KernelError) as error:
        apply(bad)
    assert "Cannot attach program dump_sockets to iter ports: Invalid argument" in str(error.value)
    assert "Everything was put back." in str(error.value)
    assert apply(spec).object == old.object
    assert not apply(spec).changed


def test_does_the_verifiers_last_word_come_back(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    bad = replace(spec, path=objects["rejected"], attach=())
    for check in (True, False):
        with pytest.raises(KernelError) as error:
            apply(bad, check=check)
        assert f"into Linux {platform.release()}: Permission denied" in str(error.value)
        assert "invalid mem access 'map_value_or_null'" in str(error.value)
        assert "processed " in error.value.log.splitlines()[-1]
        assert pins(spec) == set()


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        (
            "future map",
            [
                "map 'future': failed to create",
                "The kernel does not support maps of type number 200",
            ],
        ),
        (
            "no tracepoint",
            ["type ID of 'no_such_tracepoint'", "The kernel lacks a function, tracepoint or type"],
        ),
    ],
)
def test_is_what_the_kernel_lacks_named(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str], name: str, messages: list[str]
) -> None:
    for check in (True, False):
        with pytest.raises(KernelError) as error:
            apply(replace(spec, path=objects[name], attach=()), check=check)
        for message in (*messages, f"into Linux {platform.release()}", "Nothing was changed."):
            assert message in str(error.value)
        assert "programs of type" not in str(error.value)
    assert pins(spec) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not an object", "is not an ELF file"),
        ("truncated", "is truncated: it needs at least"),
        ("/bin/true", "is an ELF file for machine"),
    ],
)
def test_is_a_foreign_file_refused(
    spec: ObjectSpec, apply: Apply, tmp_path: Path, content: Any, message: str
) -> None:
    saved = apply(spec).object
    bad = tmp_path / "bad.o"
    if content == "truncated":
        whole = Path(spec.path).read_bytes()
        bad.write_bytes(whole[: len(whole) // 2])
    else:
        bad.write_bytes(Path(content).read_bytes() if isinstance(content, str) else content)
    with pytest.raises(InputError) as error:
        apply(replace(spec, path=str(bad)))
    assert message in str(error.value)
    assert apply(spec).object == saved


def test_is_a_file_damaged_inside_refused_by_libbpf(
    spec: ObjectSpec, apply: Apply, tmp_path: Path
) -> None:
    whole = bytearray(Path(spec.path).read_bytes())
    start = whole.index(b"\x9f\xeb")
    whole[start : start + 8] = b"\xff" * 8
    bad = tmp_path / "bad.o"
    bad.write_bytes(bytes(whole))
    with pytest.raises(TcpSmError, match=f"Cannot open BPF object {bad}: .*libbpf: "):
        apply(replace(spec, path=str(bad)))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"sha256": "0" * 64}, InputError, "its sha256 is [0-9a-f]{64}, expected 0{64}"),
        ({"path": "/nonexistent.o"}, MissingError, "there is no such file"),
        ({"path": "/etc"}, InputError, "Cannot read /etc: Is a directory"),
        (
            {"attach": attach({"program": "nope", "type": "tracing"})},
            InputError,
            "has no program 'nope'; it has count_events, count_receives",
        ),
        (
            {"attach": attach({"program": "dump_sockets", "type": "iter", "map": "nope"})},
            InputError,
            "has no map 'nope' for program dump_sockets; it has counts_map",
        ),
        (
            {"attach": attach({"program": "count_events", "type": "cgroup", "cgroup": "/no/such"})},
            InputError,
            "Cannot attach to cgroup /no/such: .* does not exist",
        ),
    ],
)
def test_is_bad_input_refused_with_nothing_changed(
    spec: ObjectSpec, apply: Apply, change: dict[str, Any], kind: type[TcpSmError], message: str
) -> None:
    apply(spec)
    saved = apply(spec).object
    with pytest.raises(kind, match=message):
        apply(replace(spec, **change))
    assert apply(spec).object == saved


def test_is_a_missing_cgroup_left_out_at_boot(spec: ObjectSpec, apply: Apply) -> None:
    late = attach({"program": "count_events", "type": "cgroup", "cgroup": "/no/such"})
    result = apply(replace(spec, attach=spec.attach + late), skip_missing_cgroups=True)
    assert len(result.object["links"]) == len(spec.attach)
    assert len(result.warnings) == 1
    assert "/no/such does not exist" in result.warnings[0]


def test_are_missing_things_a_warning_before_the_first_run(
    spec: ObjectSpec, apply: Apply, tmp_path: Path
) -> None:
    for missing in (
        replace(spec, path="/nonexistent.o"),
        replace(spec, bpffs=str(tmp_path / "none")),
        replace(spec, bpffs=str(tmp_path)),
    ):
        predicted = apply(missing, check=True)
        assert predicted.changed
        assert len(predicted.warnings) == 1
        assert sorted(predicted.after["links"].values()) == sorted(predicted_links(spec))
        with pytest.raises(MissingError):
            apply(missing)
    # Without a bpffs the kernel has still judged the object.
    assert predicted.object["programs"]
    assert not apply(replace(spec, bpffs=str(tmp_path), state="absent")).changed


def predicted_links(spec: ObjectSpec) -> list[str]:
    return [item.target for item in spec.attach]


@pytest.mark.parametrize("where", ["program as map", "map as program", "folder", "renamed", "file"])
def test_are_foreign_pins_not_touched(spec: ObjectSpec, apply: Apply, where: str) -> None:
    apply(spec)
    top = Path(spec.bpffs) / "unit"
    if where == "program as map":
        (top / "maps" / "x").hardlink_to(top / "progs" / "count_events")
    elif where == "map as program":
        (top / "progs" / "ports").hardlink_to(top / "maps" / "ports")
    elif where == "folder":
        (top / "mine").mkdir()
    elif where == "renamed":
        (top / "progs" / "mine").hardlink_to(top / "progs" / "count_events")
    else:
        (top / "stray").hardlink_to(top / "maps" / "ports")
    saved = pins(spec)
    for state in ("attached", "loaded", "absent"):
        with pytest.raises(ForeignError) as error:
            apply(replace(spec, state=state))
        assert "was not pinned by this collection" in str(error.value)
        assert "Nothing was changed." in str(error.value)
        assert pins(spec) == saved


def test_is_a_pin_in_the_folders_place_not_touched(spec: ObjectSpec, apply: Apply) -> None:
    apply(spec)
    foreign = Path(spec.bpffs) / "other"
    foreign.hardlink_to(f"{spec.bpffs}/unit/maps/ports")
    for state in ("attached", "absent"):
        with pytest.raises(ForeignError, match="it is not a folder"):
            apply(replace(spec, name="other", state=state))
        assert foreign.exists()


def test_is_an_object_of_mixed_pins_loaded_anew(spec: ObjectSpec, apply: Apply) -> None:
    """A map's pin was replaced by one of another load: tags alone would not show it."""
    apply(spec)
    apply(replace(spec, name="second", attach=()))
    pin = Path(spec.bpffs) / "unit" / "maps" / "ports"
    pin.unlink()
    pin.hardlink_to(f"{spec.bpffs}/second/maps/ports")
    assert apply(spec).changed
    assert not apply(spec).changed


def test_does_removal_leave_nothing(spec: ObjectSpec, apply: Apply) -> None:
    loaded = apply(spec)
    removed = apply(replace(spec, state="absent"))
    assert removed.changed
    assert pins(spec) == set()
    assert not apply(replace(spec, state="absent")).changed
    gone = subprocess.run(["bpftool", "-j", "link"], check=True, capture_output=True, text=True)
    for link in loaded.object["links"]:
        assert f'"id":{link["id"]},' not in gone.stdout


def test_are_no_descriptors_left_open(
    spec: ObjectSpec, apply: Apply, objects: dict[str, str]
) -> None:
    apply(spec)
    before = os.listdir("/proc/self/fd")
    for wanted in (
        replace(spec, path=objects["two"]),
        spec,
        replace(spec, state="loaded"),
        replace(spec, sha256="0" * 64),
        replace(spec, path=objects["rejected"], replace_maps=True, attach=()),
        replace(spec, state="absent"),
    ):
        try:
            apply(wanted)
        except TcpSmError:
            continue
    assert os.listdir("/proc/self/fd") == before
