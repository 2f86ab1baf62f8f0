# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the Python side say what bpf/tcp_sm.h and the compiled object say?"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import abi

ROOT = Path(__file__).resolve().parents[5]
HEADER = ROOT / "bpf" / "tcp_sm.h"
OBJECT = ROOT / "build" / "bpf" / "sockmap.bpf.o"

ENUMS = {
    "tcp_sm_mode": ("TCP_SM_", abi.Mode),
    "tcp_sm_channel": ("TCP_SM_CH_", abi.Channel),
    "tcp_sm_reason": ("TCP_SM_R_", abi.Reason),
    "tcp_sm_rule": ("TCP_SM_RULE_", abi.Rule),
    "tcp_sm_side": ("TCP_SM_", abi.Side),
    "tcp_sm_event": ("TCP_SM_EV_", abi.Event),
}
CODES = {"__u8": "B", "__u16": "H", "__u32": "I", "__u64": "Q"}


def header_text() -> str:
    if not HEADER.exists():
        pytest.skip("SKIPPED: bpf/tcp_sm.h is not part of an installed collection")
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def header_body(declaration: str) -> str:
    match = re.search(rf"{declaration} \{{(.*?)\}};", header_text(), re.DOTALL)
    assert match, f"bpf/tcp_sm.h has no {declaration}"
    return match.group(1)


def header_enum(name: str) -> dict[str, int]:
    body = header_body(f"enum {name}")
    values, following = {}, 0
    for item in filter(None, (part.strip() for part in body.split(","))):
        member, _equals, number = (part.strip() for part in item.partition("="))
        following = int(number, 0) if number else following
        values[member] = following
        following += 1
    return values


def header_struct(name: str) -> tuple[abi.Field, ...]:
    body = header_body(f"struct {name}")
    fields = []
    for line in filter(None, (part.strip() for part in body.split(";"))):
        match = re.fullmatch(r"(?:struct )?(\w+)\s+(\w+)(?:\[(\d+)\])?", line)
        assert match, f"cannot read the member {line!r} of struct {name}"
        kind, member, count = match.groups()
        fields.append(abi.Field(member, CODES.get(kind, kind), int(count or 0)))
    return tuple(fields)


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_agrees_with_the_header(name: Any) -> None:
    prefix, python = ENUMS[name]
    values = header_enum(name)
    values.pop(f"{prefix}MAX", None)
    assert {member.removeprefix(prefix): value for member, value in values.items()} == {
        member.name: member.value for member in python
    }


def test_every_enum_of_the_header_is_compared() -> None:
    assert set(re.findall(r"enum (\w+) \{", header_text())) == set(ENUMS)


@pytest.mark.parametrize("name", abi.STRUCTS)
def test_a_struct_agrees_with_the_header(name: Any) -> None:
    assert header_struct(name) == abi.STRUCTS[name]


def test_every_struct_of_the_header_is_mirrored() -> None:
    assert set(re.findall(r"struct (\w+) \{", header_text())) == set(abi.STRUCTS)


def test_sizes_agree_with_the_assertions_of_the_header() -> None:
    sizes = dict(re.findall(r"TCP_SM_ASSERT\(struct (\w+), (\d+)\);", header_text()))
    assert sizes
    assert {name: abi.struct_size(name) for name in sizes} == {
        name: int(size) for name, size in sizes.items()
    }


def test_the_version_agrees_with_the_header() -> None:
    (number,) = re.findall(r"#define TCP_SM_ABI\s+(\d+)", header_text())
    assert int(number) == abi.ABI_VERSION


def test_the_reasons_fit_their_counters() -> None:
    field = {one.name: one for one in abi.STRUCTS["tcp_sm_stats"]}["reasons"]
    assert max(abi.Reason) < field.count


@pytest.fixture(scope="module", name="btf")
def compiled_types() -> list[dict[str, Any]]:
    """The BTF of the compiled object, as another program reads it."""
    if not OBJECT.exists():
        pytest.skip("SKIPPED: build/bpf/sockmap.bpf.o is missing; `make bpf` builds it")
    bpftool = shutil.which("bpftool", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if bpftool is None:
        pytest.skip("SKIPPED: bpftool is missing; `make setup` installs it")
    dump = subprocess.run(
        [bpftool, "-j", "btf", "dump", "file", str(OBJECT)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return json.loads(dump.stdout)["types"]


# Keys and values of maps. (Clang leaves a type out of BTF that no map or function signature
# names, so the record of the ring buffer is held against the header alone.)
COMPILED = ("tcp_sm_config", "tcp_sm_cidr", "tcp_sm_pair", "tcp_sm_end", "tcp_sm_stats")


@pytest.mark.parametrize("name", COMPILED)
def test_a_struct_agrees_with_the_compiled_object(btf: Any, name: Any) -> None:
    found = [one for one in btf if one["kind"] == "STRUCT" and one["name"] == name]
    assert len(found) == 1, f"struct {name} is {len(found)} times in the object"
    assert found[0]["size"] == abi.struct_size(name)
    members = {member["name"]: member["bits_offset"] // 8 for member in found[0]["members"]}
    assert members == offsets(name)


def offsets(name: str) -> dict[str, int]:
    result, position = {}, 0
    for field in abi.STRUCTS[name]:
        size = (
            abi.struct_size(field.code)
            if field.code in abi.STRUCTS
            else struct.calcsize(f"={field.code}")
        )
        result[field.name] = position
        position += size * (field.count or 1)
    return result


@pytest.mark.parametrize("reason", abi.Reason)
def test_a_reason_has_one_readable_sentence_of_its_own(reason: Any) -> None:
    text = abi.EXPLANATIONS[reason]
    assert text[0].isupper()
    assert text.endswith(".")
    assert ". " not in text
    assert 40 <= len(text) <= 200
    assert list(abi.EXPLANATIONS.values()).count(text) == 1
    assert abi.explain(abi.reason_name(reason)) == text


def test_the_variables_that_explanations_name_exist() -> None:
    defaults = yaml.safe_load((ROOT / "roles" / "container" / "defaults" / "main.yml").read_text())
    named = re.findall(r"container_\w+", " ".join(abi.EXPLANATIONS.values()))
    assert named
    assert set(named) <= set(defaults)


def test_names_are_lower_case_and_unknown_codes_stay_visible() -> None:
    assert abi.reason_name(0) is None
    assert abi.reason_name(1) == "no_local_peer"
    assert abi.reason_name(63) == "reason_63"
    assert "update" in abi.explain("reason_63")
    assert "bug" in abi.explain(abi.UNKNOWN_REASON)
    assert [abi.channel_name(code) for code in range(4)] == ["tcp", "sockmap", "ring", "channel_3"]
    assert (abi.state_name(1), abi.state_name(99)) == ("established", "state_99")


def test_unpack_nests_structs_and_keeps_byte_arrays() -> None:
    end = struct.pack("=III", 7, 8, 1)
    assert abi.unpack("tcp_sm_end", end) == {"pair": {"client_isn": 7, "server_isn": 8}, "side": 1}
    cidr = struct.pack("=I16s", 104, bytes(range(16)))
    assert abi.unpack("tcp_sm_cidr", cidr) == {"prefixlen": 104, "addr": bytes(range(16))}
    with pytest.raises(struct.error):
        abi.unpack("tcp_sm_end", end[:-1])
