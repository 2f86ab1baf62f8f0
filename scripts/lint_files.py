# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check what no other linter does: licence headers everywhere, line lengths of C and shell.

Looks at the files that git tracks. Exit code 1 with one line for each finding.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER_LINES = 8
COLUMNS = 100
MEASURED = {".c", ".h", ".sh"}
# Licence texts; data that has no comments; names of nothing but themselves.
BARE = {".json", ".txt", ".svg", ".png"}


def tracked() -> list[Path]:
    """Files that git tracks, relative to the root."""
    command = ["git", "ls-files", "-z"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in out.split("\0") if name and (ROOT / name).is_file()]


def header_problems(text: str, code: str) -> Iterator[str]:
    """What the first lines lack; `code` tells the licence that a folder has."""
    head = "\n".join(text.splitlines()[:HEADER_LINES])
    if f"SPDX-License-Identifier: {code}" not in head:
        yield f"the first {HEADER_LINES} lines lack SPDX-License-Identifier: {code}"


def line_problems(text: str) -> Iterator[str]:
    """Lines that are too wide, with tabs of eight columns, or end in blanks."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line.expandtabs(8)) > COLUMNS:
            yield f"line {number} is wider than {COLUMNS} columns"
        if line != line.rstrip():
            yield f"line {number} ends in blanks"


def problems(path: Path) -> Iterator[str]:
    """Everything that is wrong with one file."""
    data = (ROOT / path).read_bytes()
    if b"\0" in data or not data.strip():
        return
    text = data.decode()
    if path.parts[0] != "LICENSES" and not BARE.intersection(path.suffixes):
        yield from header_problems(text, "GPL-2.0" if path.parts[0] == "bpf" else "GPL-")
    if path.suffix in MEASURED:
        yield from line_problems(text)


def main() -> int:
    found = [f"{path}: {problem}" for path in tracked() for problem in problems(path)]
    print("\n".join(found) or "lint-files: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
