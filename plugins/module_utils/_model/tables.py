# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text tables of connections and measurements, for playbooks and the report.

Private to this collection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import abi

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_GAP = "  "


def render(header: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A fixed-width table; ``right`` are the columns to align to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    aligned_right = set(right)
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if column in aligned_right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def byte_text(count: int) -> str:
    """A number of bytes in binary units: ``1536`` is ``1.5 KiB``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def connections_table(connections: Sequence[Mapping[str, Any]], limit: int = 0) -> str:
    """The connections of ``tcp_sm_info``: accelerated ones first, then by bytes.

    Below the table stand a summary and, for every reason that occurs, its
    explanation. ``limit`` rows are shown, all where it is 0.
    """
    if not connections:
        return "No connections in scope."
    ordered = sorted(connections, key=lambda one: (one["reason"] is not None, -one["bytes"]))
    shown = ordered[:limit] if limit else ordered
    table = render(
        ("CONNECTION", "CHANNEL", "BYTES", "MESSAGES", "REASON"),
        [_connection_row(one) for one in shown],
        right=(2, 3),
    )
    parts = [table]
    if len(shown) < len(ordered):
        parts.append(f"... and {len(ordered) - len(shown)} more")
    parts += ["", _summary(connections), *_legend(connections)]
    return "\n".join(parts)


def _connection_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{_end_text(one['client'])} -> {_end_text(one['server'])}",
        one["channel"],
        byte_text(one["bytes"]),
        str(one["messages"]),
        one["reason"] or "-",
    )


def _end_text(end: Mapping[str, Any]) -> str:
    addr = f"[{end['addr']}]" if ":" in end["addr"] else end["addr"]
    return f"{addr}:{end['port']}"


def _summary(connections: Sequence[Mapping[str, Any]]) -> str:
    channels = Counter(one["channel"] for one in connections)
    total: Counter[str] = Counter()
    for one in connections:
        total[one["channel"]] += one["bytes"]
    parts = [f"{channels[name]} by {name} ({byte_text(total[name])})" for name in sorted(channels)]
    noun = "connection" if len(connections) == 1 else "connections"
    return f"{len(connections)} {noun}: " + ", ".join(parts)


def _legend(connections: Sequence[Mapping[str, Any]]) -> list[str]:
    reasons = Counter(one["reason"] for one in connections if one["reason"])
    return [f"{reason} ({count}): {abi.explain(reason)}" for reason, count in reasons.most_common()]


def bench_table(results: Sequence[Mapping[str, Any]]) -> str:
    """The ``bench`` list of the report; ``ratio`` is above 1 where this beats TCP.

    Columns of what no workload has are left out.
    """
    if not results:
        return "No measurements."
    rows = [_bench_row(one) for one in results]
    header = [
        name
        for name in rows[0]
        if name not in _BENCH_OPTIONAL or any(row[name] != "-" for row in rows)
    ]
    cells = [[row[name] for name in header] for row in rows]
    return render(header, cells, right=range(3, len(header)))


_BENCH_OPTIONAL = ("HOST-CPU", "SPIN", "SPIN-RATIO", "NAIVE", "UNIX", "LOOPBACK")


def _bench_row(one: Mapping[str, Any]) -> dict[str, str]:
    return {
        "TOPOLOGY": topology_text(one),
        "WORKLOAD": one["workload"],
        "UNIT": one["unit"],
        "TCP": number_text(one["tcp"]),
        "OURS": number_text(one["ours"]),
        "RATIO": _ratio_text(one["ratio"]),
        "CI": _interval_text(one.get("ci")),
        "CPU": _ratio_text(one.get("cpu_ratio")),
        "HOST-CPU": _ratio_text(one.get("host_cpu_ratio")),
        "SPIN": number_text(one.get("spin")),
        "SPIN-RATIO": _ratio_text(one.get("spin_ratio")),
        "NAIVE": number_text(one.get("naive")),
        "UNIX": number_text(one.get("unix")),
        "LOOPBACK": number_text(one.get("loopback")),
        "RUNS": str(one["runs"]),
    }


def topology_text(one: Mapping[str, Any]) -> str:
    """A topology; that of virtual machines with what runs them, such as ``vm/tcg``."""
    guests = one.get("guests")
    return f"{one['topology']}/{guests['accelerator']}" if guests else str(one["topology"])


def _interval_text(interval: Sequence[float] | None) -> str:
    return "-".join(_ratio_text(bound) for bound in interval or ()) or "-"


def _ratio_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def number_text(value: float | None) -> str:
    """A measured number with three significant digits or none behind the point."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
