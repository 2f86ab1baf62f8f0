# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the roles' generated files and build the collection tarball.

Roles of an installed collection cannot read top-level folders, so the BPF objects, the runtime
package, the agent and the source of the kernel module are copied below roles/*/files (ignored by
git, present in the tarball). A package is one zip file, which Python imports as it is, and the
module's source one tar file: Ansible takes a second for each file.
Usage: build.py TARBALL
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROLES = ROOT / "roles"
UTILS = ROOT / "plugins" / "module_utils"
# What the agent shares with the modules.
AGENT_SHARED = {
    "_io": ("__init__", "lock", "process", "region", "region_state", "room", "temporary"),
    "_model": ("__init__", "errors", "ivshmem", "region", "region_spec", "spec"),
}
# The role that loads an object.
OBJECT_ROLES = {"sockmap": "host", "ring": "guest", "handshake": "guest"}
# What DKMS needs of kmod, and the headers that Kbuild looks for beside it.
MODULE_SOURCES = ("kmod/*.c", "kmod/*.h", "kmod/Kbuild", "kmod/Makefile", "bpf/tcp_sm*.h")
MODULE_CONF = "kmod/dkms.conf"
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
    """Path below roles -> content."""
    objects = sorted((ROOT / "build" / "bpf").glob("*.bpf.o"))
    if not objects:
        raise SystemExit("build: no objects in build/bpf; run `make bpf`")
    files = {}
    for path in objects:
        role = OBJECT_ROLES[path.name.partition(".")[0]]
        files[Path(role, "files", "bpf", path.name)] = path.read_bytes()
    files[Path("host/files/runtime/tcp_sm_runtime.zip")] = runtime_archive()
    files[Path("hypervisor/files/agent/tcp_sm_agent.zip")] = agent_archive()
    version, source = module_archive()
    files[Path("guest/files/module/version")] = f"{version}\n".encode()
    files[Path("guest/files/module/tcp_sm.tar")] = source
    return files


def runtime_archive() -> bytes:
    """The package tcp_sm_runtime as a zip file."""
    members = {
        "tcp_sm_runtime/__init__.py": RUNTIME_INIT.encode(),
        "tcp_sm_runtime/__main__.py": RUNTIME_MAIN.encode(),
    }
    for package in ("_io", "_model"):
        for path in sorted((UTILS / package).rglob("*.py")):
            members[f"tcp_sm_runtime/{path.relative_to(UTILS)}"] = path.read_bytes()
    return archive(members)


def agent_archive() -> bytes:
    """The package tcp_sm_agent as a zip file."""
    package = ROOT / "agent" / "tcp_sm_agent"
    members = {f"tcp_sm_agent/{path.name}": path.read_bytes() for path in package.glob("*.py")}
    for folder, names in AGENT_SHARED.items():
        for name in names:
            path = UTILS / folder / f"{name}.py"
            members[f"tcp_sm_agent/{folder}/{name}.py"] = path.read_bytes()
    return archive(members)


def module_archive() -> tuple[str, bytes]:
    """The kernel module's source as a tar file, and its version for DKMS: that of dkms.conf, and
    a digest that changes with any file."""
    paths = sorted(path for pattern in MODULE_SOURCES for path in ROOT.glob(pattern))
    # What a build beside the source generates is no source.
    members = {p.name: p.read_bytes() for p in paths if not p.name.endswith(".mod.c")}
    conf = (ROOT / MODULE_CONF).read_text()
    digest = hashlib.sha256(conf.encode())
    for name, data in members.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    found = re.search(r'^PACKAGE_VERSION="(.+)"$', conf, re.MULTILINE)
    if not found:
        raise SystemExit(f"build: {MODULE_CONF} has no PACKAGE_VERSION")
    version = f"{found[1]}-{digest.hexdigest()[:12]}"
    members["dkms.conf"] = conf.replace(found[0], f'PACKAGE_VERSION="{version}"').encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in sorted(members):
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            file.addfile(member, io.BytesIO(members[name]))
    return version, buffer.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    """A zip file; the same members give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(members):
            # ZipInfo's default time stamp is constant.
            file.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def fill_roles() -> None:
    """Make the roles' generated folders hold exactly the wanted files."""
    files = wanted_files()
    changed = [name for name, data in files.items() if copy_if_changed(data, ROLES / name)]
    # role/files/folder of each
    folders = {ROLES / Path(*name.parts[:3]) for name in files}
    present = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    stale = [path for path in present if path.relative_to(ROLES) not in files]
    for path in stale:
        path.unlink()
    print(f"build: roles: {len(changed)} files written, {len(stale)} removed")


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
    fill_roles()
    build_tarball(ROOT / tarball)


if __name__ == "__main__":
    main()
