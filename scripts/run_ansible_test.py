# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible-test on a copy of the collection at the path that it insists on.

Usage: run_ansible_test.py units|sanity|integration [ARGUMENT...]
Each command has a copy of its own, so that they can run side by side. Copies and
ansible-test's home (virtual environments, caches) stay below build/ansible-test; JUnit files go
to build/test/junit.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "build" / "ansible-test"
JUNIT = ROOT / "build" / "test" / "junit"
# What ansible-test knows how to check; ruff and mypy look after the rest of the repository.
PARTS = (
    "galaxy.yml",
    "README.md",
    "CHANGELOG.md",
    "meta",
    "plugins",
    "roles",
    "playbooks",
    "tests/unit/plugins",
    "tests/integration",
    "tests/sanity",
    "tests/config.yml",
    "tests/conftest.py",
)
# ansible-test fetches this file from its own site; pip itself can do the same work.
GET_PIP = """\
import subprocess
import sys

wanted = [arg for arg in sys.argv[1:] if arg not in ("--no-setuptools", "--no-wheel")]
subprocess.check_call([sys.executable, "-m", "ensurepip", "--default-pip"])
subprocess.check_call([sys.executable, "-m", "pip", "install", *wanted])
"""


def copy_tree(tree: Path) -> None:
    """Make tree a fresh copy of PARTS: what git tracks or would track, and roles' files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    generated = (path for path in (ROOT / "roles").glob("*/files/**/*") if path.is_file())
    names = {name for name in listed if name} | {str(p.relative_to(ROOT)) for p in generated}
    shutil.rmtree(tree, ignore_errors=True)
    for name in sorted(names):
        source, target = ROOT / name, tree / name
        if source.is_file() and source.suffix != ".pyc":
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # Without a repository of its own, ansible-test would ask the outer one, which ignores build/.
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)


def link_dependencies(collections: Path) -> None:
    """Put the collections that `make setup` unpacked beside the copy."""
    for path in (ROOT / "build" / "collections" / "ansible_collections").iterdir():
        link = collections / path.name
        if path.is_dir() and path.name != "colocated" and not link.exists():
            link.symlink_to(path)


def offer_get_pip(home: Path) -> None:
    """Place GET_PIP where ansible-test caches its download."""
    spec = importlib.util.find_spec("ansible_test._internal.python_requirements")
    if spec is None or spec.origin is None:
        raise SystemExit("ansible-test: not found in .venv; run `make setup`")
    text = Path(spec.origin).read_text()
    for version in set(re.findall(r"pip='(\d[\d.]*)'", text)):
        cache = home / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(GET_PIP)


def environment(home: Path) -> dict[str, str]:
    """A PATH without version managers' shims, and a home of its own."""
    binaries = [ROOT / ".venv" / "bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "PYTHON"))}
    return keep | {"HOME": str(home), "PATH": ":".join(map(str, binaries))}


def collect_junit(command: str, tree: Path) -> None:
    """Copy ansible-test's JUnit files, named after the command."""
    JUNIT.mkdir(parents=True, exist_ok=True)
    for old in JUNIT.glob(f"{command}-*.xml"):
        old.unlink()
    for index, path in enumerate(sorted((tree / "tests" / "output" / "junit").glob("*.xml"))):
        ET.parse(path)  # a truncated file should fail here and not in the summary
        shutil.copy(path, JUNIT / f"{command}-{index}.xml")


def main() -> int:
    command, *arguments = sys.argv[1:]
    options = {
        "units": ["--local", "--python", "default"],
        "sanity": ["--local", "--python", "default", "--junit"],
        "integration": ["--local", "--python", "default", "--allow-unsupported"],
    }[command]
    home = BASE / "home"
    collections = BASE / command / "ansible_collections"
    tree = collections / "colocated" / "tcp_sm"
    copy_tree(tree)
    link_dependencies(collections)
    offer_get_pip(home)
    run = ["ansible-test", command, *options, "--color", "no", *arguments]
    print(f"ansible-test: {' '.join(run[1:])}", flush=True)
    done = subprocess.run(run, cwd=tree, env=environment(home), stdin=subprocess.DEVNULL)
    collect_junit(command, tree)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
