# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the roles' generated files and build the collection tarball.

Roles of an installed collection cannot read top-level folders, so the BPF objects and the
runtime package are copied below roles/host/files (ignored by git, present in the tarball). The
package is one zip file, which Python imports as it is: Ansible takes a second for each file.
Usage: build.py TARBALL
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "roles" / "host" / "files"
RUNTIME_INIT = '''# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's loader without Ansible, for restoring at boot."""
'''
RUNTIME_MAIN = '''# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""python3 -m tcp_sm_runtime"""

from ._io.runtime import main

raise SystemExit(main())
'''


def copy_if_changed(source: bytes, target: Path) -> bool:
    """Write only what differs, so that a second build leaves every time stamp alone."""
    if target.is_file() and target.read_bytes() == source:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source)
    return True


def wanted_files() -> dict[Path, bytes]:
    """Path below roles/host/files -> content."""
    objects = sorted((ROOT / "build" / "bpf").glob("*.bpf.o"))
    if not objects:
        raise SystemExit("build: no objects in build/bpf; run `make bpf`")
    files = {Path("bpf") / path.name: path.read_bytes() for path in objects}
    files[Path("runtime") / "tcp_sm_runtime.zip"] = runtime_archive()
    return files


def runtime_archive() -> bytes:
    """The package tcp_sm_runtime as a zip file; the same sources give the same bytes."""
    utils = ROOT / "plugins" / "module_utils"
    members = {
        "tcp_sm_runtime/__init__.py": RUNTIME_INIT.encode(),
        "tcp_sm_runtime/__main__.py": RUNTIME_MAIN.encode(),
    }
    for package in ("_io", "_model"):
        for path in sorted((utils / package).rglob("*.py")):
            members[f"tcp_sm_runtime/{path.relative_to(utils)}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            # ZipInfo's default time stamp is constant.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def fill_role() -> bool:
    """Make roles/host/files hold exactly the wanted files; True when anything changed."""
    files = wanted_files()
    changed = [name for name, data in files.items() if copy_if_changed(data, FILES / name)]
    present = [p for p in FILES.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    stale = [path for path in present if path.relative_to(FILES) not in files]
    for path in stale:
        path.unlink()
    print(f"build: roles/host/files: {len(changed)} written, {len(stale)} removed")
    return bool(changed or stale)


def newest_source() -> float:
    """Modification time of the newest file that goes into the tarball."""
    tops = ("meta", "plugins", "roles", "playbooks", "inventories", "docs", "LICENSES")
    files = [p for top in tops for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts]
    files += [p for p in ROOT.iterdir() if p.suffix in {".md", ".yml"}]
    return max(path.stat().st_mtime for path in files)


def build_tarball(tarball: Path) -> None:
    """Run ansible-galaxy unless the tarball is newer than all that goes into it."""
    if tarball.exists() and tarball.stat().st_mtime > newest_source():
        print(f"build: {tarball} is up to date")
        return
    galaxy = shutil.which("ansible-galaxy", path=str(Path(sys.executable).parent))
    if galaxy is None:
        raise SystemExit("build: ansible-galaxy is not in .venv; run `make setup`")
    command = [galaxy, "collection", "build", "--force", "--output-path", str(tarball.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not tarball.exists():
        raise SystemExit(f"build: ansible-galaxy failed:\n{done.stdout}{done.stderr}")
    print(f"build: {tarball}, {tarball.stat().st_size >> 10} KiB")


def main() -> None:
    (tarball,) = sys.argv[1:]
    fill_role()
    build_tarball(ROOT / tarball)


if __name__ == "__main__":
    main()
