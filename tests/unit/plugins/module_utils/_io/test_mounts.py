# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Are cgroup2 and bpffs found where they are, and missed where they are not?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import mounts
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    ForeignError,
    InputError,
    MissingError,
)

HYBRID = """\
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:3 - cgroup2 cgroup2 rw
40 30 0:44 / /mnt/with\\040space rw - bpf bpf rw,mode=700
broken
"""


def test_is_mountinfo_understood() -> None:
    found = {mount.type: mount for mount in mounts.mounts(HYBRID)}
    assert found["cgroup2"].path == "/sys/fs/cgroup/unified"
    assert found["bpf"].path == "/mnt/with space"
    assert found["bpf"].device == os.makedev(0, 44)
    assert len(mounts.mounts(HYBRID)) == 4


def test_is_this_machines_cgroup2_found() -> None:
    assert (Path(mounts.cgroup2_root()) / "cgroup.procs").exists()


def test_is_a_machine_without_cgroup2_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "mounts", list)
    with pytest.raises(MissingError, match="Mount it: mount -t cgroup2"):
        mounts.cgroup2_root()


def test_is_the_root_cgroup_the_mount_itself() -> None:
    fd, cgroup_id = mounts.open_cgroup("/")
    os.close(fd)
    assert cgroup_id == os.stat(mounts.cgroup2_root()).st_ino


def test_is_a_missing_cgroup_named_with_the_folder_looked_for() -> None:
    root = mounts.cgroup2_root()
    with pytest.raises(InputError) as error:
        mounts.open_cgroup("/no/such")
    assert f"Cannot attach to cgroup /no/such: {root}/no/such does not exist" in str(error.value)


def test_is_a_folder_without_bpffs_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no bpffs is mounted there\. Mount it: mkdir -p"):
        mounts.require_bpffs(str(tmp_path))
    with pytest.raises(MissingError, match=r"it does not exist\. Mount it"):
        mounts.require_bpffs(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(ForeignError, match="it is not a folder"):
        mounts.require_bpffs(str(tmp_path / "file"))


@pytest.mark.root
def test_is_a_folder_on_a_bpffs_taken(bpffs: str) -> None:
    inside = Path(bpffs) / "inside"
    inside.mkdir()
    mounts.require_bpffs(bpffs)
    mounts.require_bpffs(str(inside))
    inside.rmdir()
