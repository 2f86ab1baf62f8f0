# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""What happens to runs: checked first, repeated, at once, killed, on top of another version?"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from pathlib import Path

from installation import Installation, ansible, bpftool, recap, wait

LOCK = Path("/run/lock/colocated.tcp_sm.lock")
RESTORE_SECONDS = 30


def test_does_check_mode_agree_with_what_then_happens(fresh: Installation) -> None:
    before = fresh.snapshot()
    checked = fresh.play("site", "--check", "--diff")
    assert checked.returncode == 0, checked.stdout
    assert recap(checked)["changed"] > 0
    assert fresh.snapshot() == before
    assert not os.path.ismount(fresh.bpffs)

    first = fresh.play("site")
    assert first.returncode == 0, first.stdout
    assert recap(first)["changed"] > 0
    applied = fresh.snapshot()
    assert applied[2], "nothing is attached to the cgroup"

    for words in (["--check"], []):
        again = fresh.play("site", *words)
        assert again.returncode == 0, again.stdout
        assert recap(again)["changed"] == 0, again.stdout
    assert fresh.snapshot() == applied

    narrowed = fresh.play("site", "--check", "--diff", container_mode="pass")
    assert re.search(r'"?mode"?: 1', narrowed.stdout), narrowed.stdout
    assert recap(narrowed)["changed"] > 0
    assert fresh.snapshot() == applied


def test_does_removal_without_an_installation_change_nothing(fresh: Installation) -> None:
    done = fresh.play("remove")
    assert done.returncode == 0, done.stdout
    assert recap(done)["changed"] == 0, done.stdout


def test_does_removal_leave_nothing(fresh: Installation) -> None:
    assert fresh.play("site").returncode == 0
    programs = {number for path, number in fresh.pinned().items() if path.startswith("progs/")}
    checked = fresh.play("remove", "--check")
    assert checked.returncode == 0, checked.stdout
    assert recap(checked)["changed"] > 0
    done = fresh.play("remove")
    assert done.returncode == 0, done.stdout
    assert not fresh.files()
    assert not fresh.pins.exists()
    assert not os.path.ismount(fresh.bpffs)
    deadline = time.monotonic() + 10  # the kernel frees programs in the background
    while programs & {entry["id"] for entry in bpftool("prog", "show")}:
        assert time.monotonic() < deadline, "programs are still loaded"
        time.sleep(0.1)
    again = fresh.play("remove")
    assert again.returncode == 0, again.stdout
    assert recap(again)["changed"] == 0, again.stdout


def test_does_a_second_run_wait_and_name_the_holder(applied: Installation) -> None:
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


def test_do_two_runs_at_once_both_succeed(fresh: Installation) -> None:
    runs = [fresh.start("site", container_ports_exclude=[22]) for _ in range(2)]
    for done in [wait(run) for run in runs]:
        assert done.returncode == 0, done.stdout
    again = fresh.play("site", container_ports_exclude=[22])
    assert recap(again)["changed"] == 0, again.stdout


def test_is_bpffs_mounted_where_there_is_none(fresh: Installation) -> None:
    """In a mount namespace without any bpffs: mounted for the run, and again by hand."""
    script = "umount -a -t bpf; exec " + '"$@"'
    private = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
    done = wait(fresh.start("site", prefix=private))
    assert done.returncode == 0, done.stdout
    # The mount was in that namespace only, so here nothing is loaded any more.
    assert not fresh.pinned()


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


def test_is_a_file_in_place_of_bpffs_refused(fresh: Installation) -> None:
    fresh.bpffs.write_text("", encoding="ascii")
    done = fresh.play("site")
    assert done.returncode != 0, done.stdout
    assert not fresh.files()
    assert fresh.bpffs.is_file()
    fresh.bpffs.unlink()


def test_are_pins_of_another_version_refused(fresh: Installation) -> None:
    """A map of the same name with other fields: nothing is changed, and the way out is named."""
    assert fresh.play("site").returncode == 0
    assert fresh.play("remove").returncode == 0
    fresh.bpffs.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(fresh.bpffs)], check=True)
    (fresh.pins / "maps").mkdir(parents=True)
    pin = fresh.pins / "maps" / "tcp_sm_config"
    bpftool(*f"map create {pin} type array key 4 value 16 entries 1 name tcp_sm_config".split())
    before = fresh.snapshot()
    done = fresh.play("site")
    assert done.returncode != 0, done.stdout
    assert re.search(
        r"tcp_sm_config: its value size is 16, the object needs 40.*Nothing was changed.*"
        r"replace_maps",
        done.stdout,
    ), done.stdout
    assert fresh.snapshot() == before
    replaced = fresh.play("site", host_replace_maps=True)
    assert replaced.returncode == 0, replaced.stdout
    assert fresh.snapshot()[2]


def test_are_foreign_pins_left_alone(fresh: Installation) -> None:
    fresh.bpffs.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(fresh.bpffs)], check=True)
    fresh.pins.mkdir()
    pin = fresh.pins / "theirs"
    bpftool(*f"map create {pin} type array key 4 value 4 entries 1 name theirs".split())
    done = fresh.play("site")
    assert done.returncode != 0, done.stdout
    assert re.search(r"was not pinned by this collection.*Choose another name", done.stdout)
    assert pin.exists()
    pin.unlink()
    fresh.pins.rmdir()
