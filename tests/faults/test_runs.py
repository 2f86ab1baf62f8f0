# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""What happens to runs: checked first, repeated, removed, at once, killed?"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup_path
from installation import ROOT, FirstRuns, Installation, ansible, bpftool, changes, wait

LOCK = Path("/run/lock/colocated.tcp_sm.lock")
RESTORE_SECONDS = 60
# A busy kernel detaches and frees programs some time after their last pin is gone.
BACKGROUND = 60.0
OBJECT = ROOT / "roles" / "host" / "files" / "bpf" / "sockmap.bpf.o"


def test_does_check_mode_before_the_first_run_predict_and_change_nothing(first: FirstRuns) -> None:
    assert first.predicted > 0
    assert first.after_check == first.nothing
    assert not first.mounted_by_check


def test_does_a_second_run_change_nothing(first: FirstRuns, applied: Installation) -> None:
    assert first.changed > 0
    assert changes(applied, "site", container_ports_exclude=[22]) == 0
    assert applied.snapshot() == first.applied


def test_does_check_mode_show_live_against_wanted(applied: Installation) -> None:
    before = applied.snapshot()
    checked = applied.play("site", "--check", "--diff", container_mode="pass")
    assert re.search(r"^-.*mode.*\n\+.*mode", checked.stdout, re.MULTILINE), checked.stdout
    assert applied.snapshot() == before


def test_does_a_run_that_waits_in_vain_name_the_holder(applied: Installation) -> None:
    before = applied.snapshot()
    with LOCK.open("w+", encoding="ascii") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(f"{os.getpid()}\n")
        held.flush()
        done = applied.play("site", container_mode="pass", host_lock_timeout=1)
    assert done.returncode != 0, done.stdout
    message = (
        rf"Another run holds {LOCK} \(pid {os.getpid()}:.*after 1 seconds.*Nothing was changed"
    )
    assert re.search(message, done.stdout), done.stdout
    assert applied.snapshot() == before


def test_do_two_runs_at_once_both_succeed(applied: Installation) -> None:
    before = applied.snapshot()
    runs = [applied.start("site", container_ports_exclude=[22, 23]) for _ in range(2)]
    for done in [wait(run) for run in runs]:
        assert done.returncode == 0, done.stdout
    after = applied.snapshot()
    assert len(after[0]["content of tcp_sm_ports"]) == 2
    assert after[2] == before[2]
    assert {k: v for k, v in after[0].items() if "content" not in k} == {
        k: v for k, v in before[0].items() if "content" not in k
    }


def test_does_a_module_say_that_bpffs_is_missing(applied: Installation, tmp_path: Path) -> None:
    before = applied.snapshot()
    options = {
        "name": applied.name,
        "path": str(applied.object_file),
        "state": "loaded",
        "bpffs": str(tmp_path),
    }
    command = ["ansible", "localhost", "-m", "colocated.tcp_sm.bpf_object"]
    done = wait(ansible([*command, "-a", json.dumps(options)]))
    assert done.returncode != 0, done.stdout
    assert re.search(rf"{tmp_path}.*no bpffs is mounted there.*mount -t bpf", done.stdout)
    assert applied.snapshot() == before


def restore(installation: Installation, declaration: Path) -> subprocess.Popen[str]:
    """Start what a reboot starts: the runtime without Ansible."""
    command = [sys.executable, "-m", "tcp_sm_runtime", "restore", "--declaration"]
    archive = installation.home / "lib" / "tcp_sm_runtime.zip"
    return subprocess.Popen(
        [*command, str(declaration)],
        env=os.environ | {"PYTHONPATH": str(archive)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def other_version(folder: Path) -> Path:
    """The object with one constant changed, compiled: other tags, the same maps."""
    shutil.copytree(ROOT / "bpf", folder / "bpf")
    profile = folder / "bpf" / "sockmap" / "profile.h"
    text = profile.read_text(encoding="utf-8")
    changed = re.sub(r"(#define HOPELESS_AT) \d+", r"\1 11", text)
    assert changed != text
    profile.write_text(changed, encoding="utf-8")
    target = folder / "other.bpf.o"
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Ibpf", "-Ibpf/include", "-idirafter"]
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(
        ["clang", *flags, headers, "-c", "bpf/sockmap.bpf.c", "-o", str(target)],
        cwd=folder,
        check=True,
    )
    subprocess.run(["llvm-strip", "-g", str(target)], check=True)
    return target


def attached_program(installation: Installation) -> int:
    """The program that the cgroup runs, which must be exactly one."""
    (entry,) = bpftool("cgroup", "show", cgroup_path(installation.cgroup))
    return int(entry["id"])


def test_does_a_kill_in_the_middle_of_an_upgrade_leave_one_version(
    applied: Installation, tmp_path: Path
) -> None:
    """kill -9 at twelve moments between two versions; then a run puts everything right."""
    wanted = json.loads(applied.declaration.read_text(encoding="utf-8"))
    versions = []
    for number, path in enumerate((str(other_version(tmp_path)), wanted["path"])):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(wanted | {"path": path, "sha256": ""}), encoding="utf-8")
        versions.append(file)
    start = time.monotonic()
    run = restore(applied, versions[0])
    output, _ = run.communicate(timeout=RESTORE_SECONDS)
    assert run.returncode == 0, output
    duration = time.monotonic() - start
    folders = {"progs": 5, "maps": 10, "links": 5}
    for moment in range(12):
        run = restore(applied, versions[(moment + 1) % 2])
        try:
            run.wait(duration * (moment + 1) / 12)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
        run.communicate()
        # The set of pins is whole, and what runs is one of the programs pinned or replaced by it.
        for folder, least in folders.items():
            assert len(list((applied.pins / folder).iterdir())) >= least, (moment, folder)
        assert attached_program(applied)
    run = restore(applied, versions[1])
    output, _ = run.communicate(timeout=RESTORE_SECONDS)
    assert run.returncode == 0, output
    assert attached_program(applied) == applied.pinned()[f"{applied.name}/progs/tcp_sm_sockops"]
    assert not list(applied.bpffs.glob("*%new"))


def test_does_an_upgrade_put_another_version_in_place(
    applied: Installation, tmp_path: Path
) -> None:
    """With another object, with the same once more, and back again."""
    before = applied.snapshot()
    for path in (other_version(tmp_path), OBJECT):
        program = attached_program(applied)
        options = {"host_object_src": str(path), "container_ports_exclude": [22, 23]}
        assert changes(applied, "site", **options) > 0
        assert applied.object_file.read_bytes() == path.read_bytes()
        assert attached_program(applied) not in (program, 0)
        assert changes(applied, "site", **options) == 0
        after = applied.snapshot()
        for name in ("tcp_sm_ports", "tcp_sm_config"):
            assert after[0][f"content of {name}"] == before[0][f"content of {name}"]


def test_does_a_reboot_bring_everything_back(applied: Installation) -> None:
    """What is pinned ends, as at a reboot. Unmounting alone does not do: a program that started
    meanwhile in a mount namespace of its own still has bpffs there."""
    before = applied.snapshot()
    for entry in applied.bpffs.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    subprocess.run(["umount", str(applied.bpffs)], check=True)
    deadline = time.monotonic() + BACKGROUND
    while bpftool("cgroup", "show", cgroup_path(applied.cgroup)):
        assert time.monotonic() < deadline, "the program is still attached"
        time.sleep(0.05)
    run = restore(applied, applied.declaration)
    output, _ = run.communicate(timeout=RESTORE_SECONDS)
    assert run.returncode == 0, output
    after = applied.snapshot()
    assert sorted(after[0]) == sorted(before[0])
    assert after[1] == before[1]
    for name in ("tcp_sm_ports", "tcp_sm_cidrs", "tcp_sm_config"):
        assert after[0][f"content of {name}"] == before[0][f"content of {name}"]
    assert attached_program(applied)


def test_does_removal_do_what_it_predicted_and_leave_nothing(
    first: FirstRuns, applied: Installation
) -> None:
    """The last test of this folder: afterwards nothing is applied."""
    assert first.removed == 0
    programs = {number for path, number in applied.pinned().items() if "/progs/" in path}
    assert changes(applied, "remove", "--check") == changes(applied, "remove")
    deadline = time.monotonic() + BACKGROUND
    while applied.snapshot() != first.nothing and time.monotonic() < deadline:
        time.sleep(0.1)
    assert applied.snapshot() == first.nothing
    assert not os.path.ismount(applied.bpffs)
    while programs & {entry["id"] for entry in bpftool("prog", "show")}:
        assert time.monotonic() < deadline, "programs are still loaded"
        time.sleep(0.1)
    assert changes(applied, "remove") == 0
