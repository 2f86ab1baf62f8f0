# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest boots from: the lab's image, the module built against it, an initial ram disk.

The image is the one that role `lab_vm` makes, build/cache/guest-*. The module is compiled in
that image's tree, which has headers, compiler and pahole, and kept by the hash of its source.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / "build" / "ring"
GUEST = Path(__file__).parent / "guest"
OBJECTS = tuple(ROOT / "build" / "bpf" / f"{name}.bpf.o" for name in ("ring", "handshake"))


@dataclass(frozen=True)
class Image:
    """One kernel of the lab's image."""

    disk: Path
    kernel: Path
    initrd: Path
    release: str


def find_image(version: str) -> Image:
    """The newest image of the lab. version: 6.12, say."""
    images = sorted((ROOT / "build" / "cache").glob("guest-*/root.raw"), key=os.path.getmtime)
    if not images:
        raise FileNotFoundError(
            "no guest image in build/cache; `make demo` or role lab_vm builds it"
        )
    folder = images[-1].parent / version
    release = (folder / "release").read_text().strip()
    return Image(images[-1], folder / "vmlinux", folder / "initrd", release)


def sources() -> list[Path]:
    """What the module is made of."""
    kmod, bpf = ROOT / "kmod", ROOT / "bpf"
    found = [*kmod.glob("*.[ch]"), kmod / "Makefile", kmod / "Kbuild", *bpf.glob("tcp_sm*.h")]
    return sorted(found)


SCRIPT = """
set -e
mount -o ro,loop "$DISK" "$ROOT"
mount -t tmpfs none "$ROOT/tmp"
mount -t proc none "$ROOT/proc"
mkdir "$ROOT/tmp/kmod"
cp "$@" "$ROOT/tmp/kmod/"
chroot "$ROOT" make -s -C /tmp/kmod "KERNEL=$RELEASE" $VARIABLES modules >&2
chroot "$ROOT" strip -g /tmp/kmod/tcp_sm.ko
cat "$ROOT/tmp/kmod/tcp_sm.ko"
"""


def compile_module(
    image: Image, *variables: str, tools: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run `make VARIABLE=... modules` in the image's tree, /tmp/kmod, where the tools lie too.

    Standard output has the module, standard error what make and compiler said.
    """
    with tempfile.TemporaryDirectory() as root:
        command = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", *map(str, (*sources(), *tools))]
        settings = {
            "DISK": str(image.disk), "ROOT": root, "RELEASE": image.release,
            "VARIABLES": " ".join(variables),
        }  # fmt: skip
        return subprocess.run(command, env=os.environ | settings, capture_output=True, check=False)


def build_module(image: Image, faults: bool = True) -> Path:
    """tcp_sm.ko for that kernel; faults: with the parameter of the same name."""
    digest = hashlib.sha256(f"{image.release} {faults} {image.disk}".encode())
    for path in sources():
        digest.update(path.name.encode() + path.read_bytes())
    made = CACHE / f"tcp_sm-{digest.hexdigest()[:16]}.ko"
    if made.exists():
        return made
    CACHE.mkdir(parents=True, exist_ok=True)
    done = compile_module(image, f"FAULTS={'y' if faults else 'n'}")
    if done.returncode or not done.stdout.startswith(b"\x7fELF"):
        raise RuntimeError(f"the module does not build:\n{done.stderr.decode()}")
    part = made.with_suffix(".part")
    part.write_bytes(done.stdout)
    part.rename(made)
    return made


INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs none /dev
$bb mount -t proc none /proc
for module in /modules/*.ko; do $bb insmod "$module"; done
until [ -b /dev/vda ]; do $bb usleep 10000; done
$bb mount -t ext4 -o ro,noatime /dev/vda /root
for place in tmp run var/tmp; do $bb mount -t tmpfs none /root/$place; done
$bb cp -a /ring /root/run/ring
for place in dev proc; do $bb mount --move /$place /root/$place; done
$bb mount -t sysfs none /root/sys
$bb mount -t cgroup2 none /root/sys/fs/cgroup
$bb mount -t bpf none /root/sys/fs/bpf
for word in $($bb cat /root/proc/cmdline); do
	case $word in ring=*) number=${word#ring=} ;; esac
done
$bb ip link set lo up
echo 0 >/root/proc/sys/net/ipv6/conf/eth0/accept_dad
$bb ip address add 10.9.0.$number/24 dev eth0
$bb ip link set eth0 up
$bb ip -6 address add fd00:9::$number/64 dev eth0
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/run/ring PYTHONDONTWRITEBYTECODE=1
exec $bb switch_root /root /usr/bin/python3 -m guest
"""


def guest_files(module: Path | None) -> dict[str, bytes]:
    """What lies in the guest's /run/ring: name -> content. None: a guest without the channel."""
    files = {}
    if module:
        files = {path.name: path.read_bytes() for path in OBJECTS}
        files["tcp_sm.ko"] = module.read_bytes()
    files |= {f"guest/{path.name}": path.read_bytes() for path in GUEST.glob("*.py")}
    return files


def make_initrd(image: Image, module: Path | None, target: Path) -> None:
    """The lab's initial ram disk, with another init and our files behind it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        (tree / "init").write_text(INIT)
        (tree / "init").chmod(0o755)
        for name, content in guest_files(module).items():
            path = tree / "ring" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        paths = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
        done = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            cwd=tree,
            input="\n".join(paths).encode(),
            capture_output=True,
            check=True,
        )
    lab = image.initrd.read_bytes()
    target.write_bytes(lab + b"\0" * (-len(lab) % 512) + done.stdout)
