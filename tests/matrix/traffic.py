# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the container channel's traffic tests on another kernel, inside a guest.

Usage: traffic.py KERNEL JUNIT [PYTEST ARGUMENT...]
KERNEL is one of the lab's image, 6.12 say. JUNIT is where the results are written. The guest
has two processors, the source tree and pytest on a disk of their own, and no shared memory.
Exit code: pytest's, or 1 when the guest's kernel complained.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "ring"), str(ROOT / "build" / "collections")]

import pytest  # noqa: E402
from ringlab import build  # noqa: E402
from ringlab.guest import channel  # noqa: E402
from ringlab.lab import Guest  # noqa: E402

# What pytest is made of; all of it pure Python, so the guest's own version can run it.
SITE = (
    "_pytest", "pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "pytest_timeout",
)  # fmt: skip
# What the tests use of the source tree.
TREE = (
    "bpf", "build/bpf", "build/bpf-next/sockmap.bpf.o", "plugins", "tests/conftest.py",
    "tests/traffic", "pyproject.toml",
)  # fmt: skip
ENVIRONMENT = (
    ("PYTHONPATH", "/mnt/site"), ("HOME", "/tmp"), ("LANG", "C.UTF-8"),
    ("TCP_SM_TEST_SLOWNESS", "5"),
)  # fmt: skip
CPUS, MEMORY = "2", "2048"
DESCRIPTORS = 100_000
SECONDS = float(os.environ.get("TCP_SM_MATRIX_SECONDS", "3600"))


def copy(source: Path, target: Path) -> None:
    """A file or a folder, without what Python compiled."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def make_disk(disk: Path) -> None:
    """An ext4 image: site/ has pytest, tree/ the sources."""
    packages = Path(pytest.__file__).parent.parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in SITE:
            for path in (*packages.glob(package), *packages.glob(f"{package}.py"),
                         *packages.glob(f"{package}-*.dist-info")):  # fmt: skip
                copy(path, folder / "site" / path.name)
        for part in TREE:
            copy(ROOT / part, folder / "tree" / part)
        collection = folder / "tree/build/collections/ansible_collections/colocated/tcp_sm"
        collection.mkdir(parents=True)
        (collection / "plugins").symlink_to("../../../../../plugins")
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", name, str(disk), "64M"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def mount_sources() -> None:
    """In the guest: the disk of sources, and a place for pytest's output."""
    subprocess.run(["mount", "-o", "ro", "/dev/vdb", "/mnt"], check=True)
    open("/tmp/output", "w").close()


def run_pytest(junit: str, arguments: tuple[str, ...]) -> int:
    """In the guest: run pytest with its output in /tmp/output; its exit code."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with open("/tmp/output", "ab") as output:
        return subprocess.call(
            ["python3", "-m", "pytest", "-o", "timeout=1800", "--junit-xml", junit, *arguments],
            cwd="/mnt/tree",
            env=os.environ | dict(ENVIRONMENT),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def output_from(at: int) -> bytes:
    """In the guest: what pytest printed behind that position."""
    with open("/tmp/output", "rb") as file:
        file.seek(at)
        return file.read()


def boot(folder: Path, image: build.Image) -> Guest:
    """A guest of that kernel with the disk of sources."""
    make_disk(folder / "sources")
    build.make_initrd(image, None, folder / "initrd")
    guest = Guest("matrix", 1, folder)
    drive = f"if=none,id=sources,format=raw,readonly=on,file={folder / 'sources'}"
    devices = ["-drive", drive, "-device", "virtio-blk-pci,drive=sources"]
    guest.launch(guest.command(image, devices, CPUS, MEMORY))
    return guest


def follow(guest: Guest, arguments: tuple[str, ...]) -> int:
    """Run pytest in the guest, print what it prints; its exit code."""
    worker = guest.worker()
    worker.run(mount_sources)
    call = worker.later(run_pytest, "/tmp/junit.xml", arguments)
    deadline, at, done = time.monotonic() + SECONDS, 0, False
    while not done:
        done = call.done(1.0)
        text = worker.run(output_from, at)
        at += len(text)
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        if time.monotonic() > deadline:
            raise TimeoutError(f"pytest in the guest took longer than {SECONDS} s")
    return int(call.result())


def ended(*_: object) -> None:
    """SIGTERM: the guest must not outlive this program."""
    raise SystemExit(143)


def main() -> int:
    signal.signal(signal.SIGTERM, ended)
    version, junit, *arguments = sys.argv[1:]
    image = build.find_image(version)
    print(f"traffic tests on Linux {image.release}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tcp_sm_matrix_", dir="/dev/shm") as name:
        guest = boot(Path(name), image)
        try:
            guest.connect()
            # With two processors QEMU's emulator now and then trips over code that the kernel
            # patches while it starts (an int3 that nobody claims); that is not ours to judge.
            guest.trouble()
            code = follow(guest, tuple(arguments or ["tests/traffic"]))
            Path(junit).parent.mkdir(parents=True, exist_ok=True)
            Path(junit).write_text(guest.run(channel.read, "/tmp/junit.xml"))
            trouble = guest.trouble()
        finally:
            guest.kill()
    print("\n".join(trouble))
    return code or bool(trouble)


if __name__ == "__main__":
    sys.exit(main())
