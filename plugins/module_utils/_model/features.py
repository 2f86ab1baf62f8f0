# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this kernel run the sockmap channel, and if not, what is missing and what helps?

Private to this collection. Pure decisions over :class:`Facts`, which
``_io/kernel.py`` gathers. What blocks goes to ``missing``; what only costs
speed or one socket feature goes to ``limits``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import vmlinux

MINIMUM = (6, 6)
SOCKMAP_LINK_SINCE = (6, 10)

# Capability numbers (include/uapi/linux/capability.h). CAP_SYS_ADMIN implies the others.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
CAP_SYS_ADMIN = 21

# Types that the programs need from the kernel's BTF, and what for.
TYPES: dict[tuple[int, str], str] = {
    (vmlinux.TYPEDEF, "btf_trace_sock_recv_length"): "counts what a receiver took",
    (vmlinux.FUNC, "bpf_iter_bpf_sk_storage_map"): "lists the connections",
    (vmlinux.FUNC, "bpf_cast_to_kern_ctx"): "reads sequence numbers of the handshake",
    (vmlinux.FUNC, "bpf_rdonly_cast"): "reads sequence numbers of the handshake",
}
PSOCK = (vmlinux.STRUCT, "sk_psock")
FIONREAD_FIELD = "msg_tot_len"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found on a machine; ``None`` is "could not be found out" and never blocks.

    ``programs``, ``maps`` and ``link`` hold an empty text where the kernel took
    the trivial one, its error text otherwise.
    """

    release: str
    version: str = ""
    signature: str = ""
    types: Mapping[tuple[int, str], vmlinux.Found] | None = None
    btf_error: str = ""
    cgroup2: str | None = None
    bpffs: str = "/sys/fs/bpf"
    bpffs_mounted: bool = False
    jit: int | None = None
    capabilities: int | None = None
    libbpf_error: str = ""
    lockdown: str = "none"
    programs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    maps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    link: str | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: its name, why it matters, what to do."""

    feature: str
    why: str
    fix: str


def assess(facts: Facts) -> dict[str, Any]:
    """``{kernel, ok, missing, limits}``; findings as ``{feature, why, fix}``."""
    missing = [found for check in _REQUIRED for found in check(facts)]
    limits = [found for check in _WANTED for found in check(facts)]
    return {
        "kernel": facts.release,
        "ok": not missing,
        "missing": [dataclasses.asdict(found) for found in missing],
        "limits": [dataclasses.asdict(found) for found in limits],
    }


# -- versions ---------------------------------------------------------------------------------


def kernel_version(
    release: str, version: str = "", signature: str = ""
) -> tuple[int, int, int | None] | None:
    """(major, minor, patch) of the stable kernel that a running one is built from.

    ``patch`` is ``None`` where the distribution does not say: its ``x.y.0-N``
    may hold any number of fixes. ``version`` is ``uname -v``, where older Debian
    kernels say it; ``signature`` is /proc/version_signature, where Ubuntu does
    (a lower bound, so it does not count). ``None`` for unreadable releases.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", release)
    if not match:
        return None
    major, minor, patch = int(match[1]), int(match[2]), int(match[3] or 0)
    debian = re.search(rf"Debian {major}\.{minor}\.(\d+)", version)
    if debian:
        return major, minor, int(debian[1])
    if signature or (patch == 0 and re.match(r"-\d", match[4])):
        return major, minor, None
    return major, minor, patch


@dataclasses.dataclass(frozen=True)
class KnownBug:
    """A bug of stable kernels from ``since`` that bites this use of sockmap.

    ``fixed`` are the first good versions of the series that got a fix; later
    series are good, earlier ones that are not named never got it.
    """

    title: str
    since: tuple[int, int]
    fixed: tuple[tuple[int, int, int], ...]
    effect: str

    def affects(self, version: tuple[int, int, int]) -> bool:
        """Whether a kernel has the bug."""
        if version[:2] < self.since or version >= max(self.fixed):
            return False
        return not any(version[:2] == fix[:2] and version >= fix for fix in self.fixed)


# What can hit kernels from 6.6 on with what these programs do: sk_msg redirect to ingress
# through a sockhash, deletion while a socket may be closing, attachment by link. Source of the
# first's versions: the kernel's own record of the CVE; of the second's: the stable changelog as
# Debian's package linux 6.11.6-1 repeats it. The many other sockmap fixes concern stream parsers,
# skb verdicts, AF_UNIX, corking, apply_bytes, push and pop, kTLS or replaced elements, none of
# which these programs use.
KNOWN_BUGS = (
    KnownBug(
        # CVE-2024-39500. sock_map_close finds itself as the saved close, warns and returns:
        # the socket is never closed, and its peer never gets a FIN.
        title="sock_map: avoid race between sock_map_close and sk_psock_put",
        since=(5, 13),
        fixed=((5, 15, 162), (6, 1, 95), (6, 6, 35), (6, 9, 6), (6, 10, 0)),
        effect="a socket that is closed while it leaves the sockmap is leaked and not closed",
    ),
    KnownBug(
        # Sockmap links came with 6.10 without a name in the table that fdinfo prints from.
        title="bpf: Add the missing BPF_LINK_TYPE invocation for sockmap",
        since=SOCKMAP_LINK_SINCE,
        fixed=((6, 11, 6), (6, 12, 0)),
        effect="reading the fdinfo of the verdict's link reads beyond a kernel table",
    ),
)


# -- what must be there -----------------------------------------------------------------------


def _version(facts: Facts) -> Iterator[Finding]:
    found = kernel_version(facts.release, facts.version, facts.signature)
    if found and found[:2] < MINIMUM:
        minimum = ".".join(map(str, MINIMUM))
        yield Finding(
            "kernel_version",
            f"Linux {facts.release} is older than {minimum}, the oldest these programs support.",
            f"Install a kernel of at least {minimum} (Debian 12: linux-image-amd64 from "
            "bookworm-backports) and restart.",
        )


def _bugs(facts: Facts) -> Iterator[Finding]:
    found = kernel_version(facts.release, facts.version, facts.signature)
    if found is None or found[2] is None:
        return
    version = (found[0], found[1], found[2])
    for bug in KNOWN_BUGS:
        if version[:2] >= MINIMUM and bug.affects(version):
            fixed = ", ".join(".".join(map(str, fix)) for fix in bug.fixed if fix[:2] >= MINIMUM)
            yield Finding(
                "known_kernel_bug",
                f"Linux {facts.release} has a known bug: {bug.effect} (fix: {bug.title}).",
                f"Install a kernel with the fix ({fixed} or later) and restart.",
            )


def _btf(facts: Facts) -> Iterator[Finding]:
    if facts.types is None:
        yield Finding(
            "btf",
            "The kernel's types cannot be read from /sys/kernel/btf/vmlinux"
            f" ({facts.btf_error or 'unknown error'}), and the programs are fitted to the "
            "kernel by them.",
            "Use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian, Ubuntu and "
            "Fedora are, and mount /sys.",
        )
        return
    for key, purpose in TYPES.items():
        if key not in facts.types:
            yield Finding(
                key[1].removeprefix("btf_trace_"),
                f"The kernel has no {key[1]}, by which a program {purpose}.",
                "Install a newer kernel of the distribution, or one with CONFIG_BPF_SYSCALL and "
                "CONFIG_BPF_EVENTS.",
            )


def _cgroup2(facts: Facts) -> Iterator[Finding]:
    if facts.cgroup2 is None:
        yield Finding(
            "cgroup2",
            "No cgroup2 file system is mounted, and the programs attach to its cgroups.",
            "Start the host with the unified or the hybrid hierarchy (without "
            "cgroup_no_v1 or systemd.legacy_systemd_cgroup_controller), or mount it: "
            "mount -t cgroup2 none /sys/fs/cgroup/unified.",
        )


def _bpffs(facts: Facts) -> Iterator[Finding]:
    if not facts.bpffs_mounted:
        yield Finding(
            "bpffs",
            f"No BPF file system is mounted at {facts.bpffs}, and programs are pinned there.",
            f"Mount it: mkdir -p {facts.bpffs} && mount -t bpf bpf {facts.bpffs}.",
        )


def _libbpf(facts: Facts) -> Iterator[Finding]:
    if facts.libbpf_error:
        yield Finding(
            "libbpf",
            f"libbpf.so.1, which loads the programs, cannot be used: {facts.libbpf_error}.",
            "Install libbpf 1.0 or newer (Debian, Ubuntu: libbpf1; Fedora: libbpf).",
        )


def missing_capabilities(effective: int | None) -> list[str]:
    """The names of needed capabilities that are not in the mask."""
    if effective is None or effective & 1 << CAP_SYS_ADMIN:
        return []
    return [name for name, number in CAPABILITIES.items() if not effective & 1 << number]


def _capabilities(facts: Facts) -> Iterator[Finding]:
    names = missing_capabilities(facts.capabilities)
    if names:
        yield Finding(
            "capabilities",
            f"The task runs without {', '.join(names)}, which the kernel asks for to load and "
            "attach programs.",
            "Use become: true; in a container, grant these capabilities.",
        )


def _lockdown(facts: Facts) -> Iterator[Finding]:
    if facts.lockdown == "confidentiality":
        yield Finding(
            "lockdown",
            "The kernel is locked down to `confidentiality`, where programs must not read "
            "kernel memory, as these do with sockets.",
            "Start it with lockdown=integrity, or without lockdown.",
        )


def _probes(facts: Facts) -> Iterator[Finding]:
    # Without the capabilities every probe fails, and would only repeat that.
    if missing_capabilities(facts.capabilities):
        return
    for kind, results in (("program", facts.programs), ("map", facts.maps)):
        for name, error in results.items():
            if error:
                yield Finding(
                    f"{kind}_{name}",
                    f"The kernel refused a trivial {kind} of type {name}: {error}.",
                    "Use a kernel with CONFIG_BPF_SYSCALL, CONFIG_BPF_EVENTS, CONFIG_CGROUP_BPF "
                    "and CONFIG_NET_SOCK_MSG, and let no security module deny bpf().",
                )


# -- what is better to have -------------------------------------------------------------------


def _jit(facts: Facts) -> Iterator[Finding]:
    if facts.jit == 0:
        yield Finding(
            "jit",
            "BPF programs are interpreted, not compiled, which makes connections slower.",
            "Switch the compiler on: sysctl net.core.bpf_jit_enable=1.",
        )


def _fionread(facts: Facts) -> Iterator[Finding]:
    psock = (facts.types or {}).get(PSOCK)
    if psock and FIONREAD_FIELD not in psock.members:
        yield Finding(
            "fionread",
            "ioctl(FIONREAD) of an accelerated socket does not count redirected bytes.",
            "Exclude the ports of programs that use it (container_ports_exclude), or use a "
            "kernel with the fix (6.12.75 or later of that series, or 7.0).",
        )


def _sockmap_link(facts: Facts) -> Iterator[Finding]:
    if facts.link and not missing_capabilities(facts.capabilities):
        since = ".".join(map(str, SOCKMAP_LINK_SINCE))
        yield Finding(
            "sockmap_link",
            f"The verdict cannot be attached by a link ({facts.link}), so its upgrade detaches "
            "the old program for a moment; connections then use TCP and lose nothing.",
            f"Nothing needs to be done; Linux {since} and later have it.",
        )


def _unknown_fixes(facts: Facts) -> Iterator[Finding]:
    found = kernel_version(facts.release, facts.version, facts.signature)
    if found is None or found[2] is not None or found[:2] < MINIMUM:
        return
    low = (found[0], found[1], 0)
    for bug in KNOWN_BUGS:
        if bug.affects(low):
            yield Finding(
                "unknown_fixes",
                f"Linux {facts.release} does not say which stable fixes it has. If it lacks "
                f"`{bug.title}`, {bug.effect}.",
                "Keep the distribution's kernel up to date, and look the fix up in its changelog.",
            )


_REQUIRED: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _version,
    _bugs,
    _btf,
    _cgroup2,
    _bpffs,
    _libbpf,
    _capabilities,
    _lockdown,
    _probes,
)
_WANTED: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _jit,
    _fionread,
    _sockmap_link,
    _unknown_fixes,
)
