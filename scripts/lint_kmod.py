# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at the guests' module: checkpatch, sparse, and every supported kernel's compiler.

Usage: lint_kmod.py
The module is compiled in the tree of the lab's image (`make guest-image`), whose headers are
those kernels'. sparse runs where a kernel's headers have what its build needs for that: Debian's
of 7.3 lack it. checkpatch comes out of Debian's package of the kernel's source, and is kept in
build/cache/checkpatch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "ring"), str(ROOT / "build" / "collections")]

from ringlab import build  # noqa: E402

KERNELS = ("6.12", "7.3")
NO_CHECKER = "checker-valid.sh: No such file"
CHECKPATCH = ROOT / "build" / "cache" / "checkpatch"
# Only what checkpatch.pl reads; tar stops when it has found all of it.
FETCH = """
set -e
package=$(apt-cache depends linux-source | sed -n 's/.*Depends: //p' | head -1)
apt-get download -q "$package"
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO "./usr/src/$package.tar.xz" | xz -dc |
	tar -x --occurrence=1 --strip-components=2 "$package/scripts/checkpatch.pl" \\
		"$package/scripts/const_structs.checkpatch" "$package/scripts/spelling.txt"
"""


def fetch_checkpatch() -> Path:
    """checkpatch.pl and the files beside it."""
    if not CHECKPATCH.exists():
        CHECKPATCH.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CHECKPATCH.parent) as name:
            done = subprocess.run(
                ["sh", "-c", FETCH], cwd=name, capture_output=True, text=True, check=False
            )
            if not Path(name, "spelling.txt").exists():
                raise SystemExit(f"lint-kmod: cannot fetch checkpatch: {done.stderr.strip()}")
            for package in Path(name).glob("*.deb"):
                package.unlink()
            shutil.copytree(name, CHECKPATCH)
    return CHECKPATCH / "checkpatch.pl"


def check_style() -> bool:
    """checkpatch, as kmod/Makefile has it; on a copy, since it leaves a file where it runs."""
    tool = f"CHECKPATCH=perl {fetch_checkpatch()} -q"
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "kmod", name, dirs_exist_ok=True)
        done = subprocess.run(["make", "-s", "checkpatch", tool], cwd=name, check=False)
    return not done.returncode


def report(kernel: str, text: str, failed: bool) -> bool:
    """Show what was said of the module's own files; True: nothing."""
    lines = [line for line in text.splitlines() if "warning:" in line or "error:" in line]
    for line in lines or ([text] if failed else []):
        print(f"{kernel}: {line}", file=sys.stderr)
    return not lines and not failed


def check_kernel(kernel: str) -> bool:
    """The compiler's opinion and, where that can be had, that of sparse."""
    image, sparse = build.find_image(kernel), shutil.which("sparse")
    if not sparse:
        raise SystemExit("lint-kmod: sparse is missing; run `make setup`")
    checker = ("C=2", "CHECK=/tmp/kmod/sparse", "CF=-D__CHECK_ENDIAN__")
    done = build.compile_module(image, *checker, tools=(Path(sparse),))
    said = done.stderr.decode()
    looked = NO_CHECKER not in said
    if not looked:
        done = build.compile_module(image)
        said = done.stderr.decode()
    good = report(kernel, said, bool(done.returncode))
    by = "compiler and sparse have" if looked else "the compiler has"
    print(f"{kernel}: {by} {'nothing' if good else 'something'} to say", flush=True)
    return good


def main() -> int:
    os.environ["LC_ALL"] = "C"
    good = [check_style(), *(check_kernel(kernel) for kernel in KERNELS)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
