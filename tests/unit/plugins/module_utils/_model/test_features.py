# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does preflight name exactly what is missing, and block for nothing else?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import features, vmlinux

PSOCK = {features.PSOCK: vmlinux.Found(9, frozenset({"msg_tot_len"}))}
TYPES = {**{key: vmlinux.Found(1) for key in features.TYPES}, **PSOCK}
GOOD = features.Facts(
    release="6.18.3-amd64",
    types=TYPES,
    cgroup2="/sys/fs/cgroup",
    bpffs_mounted=True,
    jit=1,
    capabilities=(1 << 41) - 1,
    programs={"sock_ops": "", "sk_msg": "", "tp_btf": "", "iter": ""},
    maps={"sockhash": "", "ringbuf": ""},
    link="",
)


def names(findings: list[dict[str, str]]) -> list[str]:
    return [one["feature"] for one in findings]


def test_a_host_that_has_everything_lacks_nothing() -> None:
    assert features.assess(GOOD) == {
        "kernel": "6.18.3-amd64",
        "ok": True,
        "missing": [],
        "limits": [],
    }


ALL_CAPABILITIES = 1 << 12 | 1 << 38 | 1 << 39


@pytest.mark.parametrize(
    ("change", "feature", "words"),
    [
        ({"release": "6.1.0-28-amd64"}, "kernel_version", ("6.1.0-28-amd64", "6.6")),
        ({"release": "5.15.0-91-generic"}, "kernel_version", ("6.6",)),
        ({"release": "6.6.30"}, "known_kernel_bug", ("leaked", "6.6.35")),
        ({"release": "6.11.2-arch1-1"}, "known_kernel_bug", ("fdinfo", "6.11.6")),
        ({"types": None, "btf_error": "No such file"}, "btf", ("No such file", "CONFIG_DEBUG")),
        (
            {"types": {k: v for k, v in TYPES.items() if k[0] != vmlinux.TYPEDEF}},
            "sock_recv_length",
            ("btf_trace_sock_recv_length",),
        ),
        ({"cgroup2": None}, "cgroup2", ("mount -t cgroup2",)),
        ({"bpffs_mounted": False, "bpffs": "/b"}, "bpffs", ("mount -t bpf bpf /b",)),
        ({"libbpf_error": "libbpf.so.1: cannot open"}, "libbpf", ("cannot open", "libbpf1")),
        ({"capabilities": 0}, "capabilities", ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")),
        (
            {"capabilities": ALL_CAPABILITIES & ~(1 << 38)},
            "capabilities",
            ("without CAP_PERFMON,",),
        ),
        ({"lockdown": "confidentiality"}, "lockdown", ("integrity",)),
        ({"programs": {"sk_msg": "Invalid argument (EINVAL)"}}, "program_sk_msg", ("EINVAL",)),
        ({"maps": {"sockhash": "Invalid argument (EINVAL)"}}, "map_sockhash", ("EINVAL",)),
    ],
)
def test_what_is_missing_is_named_with_reason_and_remedy(
    change: dict[str, Any], feature: str, words: tuple[str, ...]
) -> None:
    result = features.assess(dataclasses.replace(GOOD, **change))
    assert not result["ok"]
    assert names(result["missing"]) == [feature]
    (found,) = result["missing"]
    for word in words:
        assert word in found["why"] + found["fix"]
    assert found["why"].endswith(".")
    assert found["fix"].endswith(".")


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"jit": 0}, "jit"),
        ({"types": {**TYPES, features.PSOCK: vmlinux.Found(9)}}, "fionread"),
        ({"link": "Invalid argument (EINVAL)"}, "sockmap_link"),
        ({"release": "6.8.0-51-generic", "signature": "Ubuntu 6.8.0 6.8.12"}, "unknown_fixes"),
    ],
)
def test_a_restriction_is_told_and_stops_nothing(change: dict[str, Any], feature: str) -> None:
    result = features.assess(dataclasses.replace(GOOD, **change))
    assert result["ok"]
    assert names(result["limits"]) == [feature]


@pytest.mark.parametrize(
    "change",
    [
        {"jit": None},
        {"capabilities": None},
        {"capabilities": 1 << 21},
        {"capabilities": ALL_CAPABILITIES},
        {"lockdown": "integrity"},
        {"programs": {}, "maps": {}, "link": None},
        {"release": "custom"},
        {"release": "7.3.4+deb14-amd64"},
        {"release": "6.12.0-55.9.1.el10_0.x86_64"},
    ],
)
def test_what_could_not_be_found_out_blocks_nothing(change: dict[str, Any]) -> None:
    assert features.assess(dataclasses.replace(GOOD, **change))["ok"]


def test_without_capabilities_refused_probes_are_not_repeated() -> None:
    refused = dict.fromkeys(GOOD.programs, "Operation not permitted (EPERM)")
    poor = dataclasses.replace(
        GOOD, capabilities=0, programs=refused, maps={"sockhash": "x"}, link="x"
    )
    result = features.assess(poor)
    assert (names(result["missing"]), result["limits"]) == (["capabilities"], [])


def test_everything_missing_is_named_at_once() -> None:
    bare = features.Facts(release="5.10.0", btf_error="none", libbpf_error="none", capabilities=0)
    assert names(features.assess(bare)["missing"]) == [
        "kernel_version",
        "btf",
        "cgroup2",
        "bpffs",
        "libbpf",
        "capabilities",
    ]


@pytest.mark.parametrize(
    ("release", "version", "signature", "expected"),
    [
        ("6.12.57+deb13-amd64", "#1 SMP Debian 6.12.57-1 (2025-11-05)", "", (6, 12, 57)),
        ("6.1.0-28-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024)", "", (6, 1, 119)),
        ("6.10.11+bpo-amd64", "", "", (6, 10, 11)),
        ("6.8.0-51-generic", "#52-Ubuntu SMP", "Ubuntu 6.8.0-51.52-generic 6.8.12", (6, 8, None)),
        ("6.12.0-55.9.1.el10_0.x86_64", "#1 SMP", "", (6, 12, None)),
        ("6.12.0-160000.5-default", "#1 SMP", "", (6, 12, None)),
        ("6.11.5-300.fc41.x86_64", "#1 SMP", "", (6, 11, 5)),
        ("6.18.44-fc-v595", "#1 SMP PREEMPT_DYNAMIC @0", "", (6, 18, 44)),
        ("6.6.0", "", "", (6, 6, 0)),
        ("6.17.0-rc3+", "", "", (6, 17, 0)),
        ("7.3", "", "", (7, 3, 0)),
        ("unreadable", "", "", None),
    ],
)
def test_a_release_gives_its_stable_version_or_admits_not_to(
    release: str, version: str, signature: str, expected: tuple[int, int, int | None] | None
) -> None:
    assert features.kernel_version(release, version, signature) == expected


LEAK, FDINFO = features.KNOWN_BUGS


@pytest.mark.parametrize(
    ("bug", "version", "expected"),
    [
        (LEAK, (4, 19, 300), False),
        (LEAK, (6, 1, 94), True),
        (LEAK, (6, 1, 95), False),
        (LEAK, (6, 6, 34), True),
        (LEAK, (6, 6, 35), False),
        (LEAK, (6, 6, 120), False),
        (LEAK, (6, 7, 9), True),
        (LEAK, (6, 9, 5), True),
        (LEAK, (6, 9, 6), False),
        (LEAK, (6, 10, 0), False),
        (FDINFO, (6, 9, 12), False),
        (FDINFO, (6, 10, 14), True),
        (FDINFO, (6, 11, 5), True),
        (FDINFO, (6, 11, 6), False),
        (FDINFO, (6, 12, 0), False),
        (FDINFO, (7, 3, 0), False),
    ],
)
def test_a_known_bug_affects_just_the_kernels_without_its_fix(
    bug: features.KnownBug, version: tuple[int, int, int], expected: bool
) -> None:
    assert bug.affects(version) is expected


def test_debian_12_and_13_and_their_backports_pass() -> None:
    for release in ("6.12.57+deb13-amd64", "6.12.57+bpo-amd64", "7.3.4+deb13-amd64"):
        assert features.assess(dataclasses.replace(GOOD, release=release))["ok"], release
