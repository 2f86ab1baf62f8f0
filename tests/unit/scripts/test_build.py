# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the module source that the role gets whole, and another version when it differs?"""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "scripts" / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["build"] = module
    spec.loader.exec_module(module)
    return module


def unpack(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        found = {one.name: file.extractfile(one) for one in file.getmembers()}
        return {name: stream.read().decode() for name, stream in found.items() if stream}


def small_tree(top: Path, build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of one file, in place of the real one."""
    for folder in ("kmod", "bpf"):
        (top / folder).mkdir()
    (top / "kmod" / "dkms.conf").write_text('PACKAGE_NAME="m"\nPACKAGE_VERSION="2.3"\n')
    (top / "kmod" / "main.c").write_text("int x;\n")
    (top / "kmod" / "m.mod.c").write_text("generated\n")
    (top / "bpf" / "tcp_sm.h").write_text("int y;\n")
    monkeypatch.setattr(build, "ROOT", top)


def test_is_every_header_there_that_the_source_includes(build: ModuleType) -> None:
    _version, data = build.module_archive()
    files = unpack(data)
    wanted = {
        header
        for text in files.values()
        for header in re.findall(r'^#include "(.+)"', text, re.MULTILINE)
    }
    assert "tcp_sm_region.h" in wanted
    assert wanted <= set(files)
    assert {"Kbuild", "Makefile", "dkms.conf"} <= set(files)


def test_does_dkms_get_the_collections_version(build: ModuleType) -> None:
    version, data = build.module_archive()
    galaxy = re.search(r"^version: (.+)$", (ROOT / "galaxy.yml").read_text(), re.MULTILINE)
    assert galaxy
    assert re.fullmatch(re.escape(galaxy[1]) + "-[0-9a-f]{12}", version)
    assert f'PACKAGE_VERSION="{version}"' in unpack(data)["dkms.conf"]


def test_does_every_object_of_the_kernel_build_come_from_a_file(build: ModuleType) -> None:
    files = unpack(build.module_archive()[1])
    objects = re.findall(r"(\w+)\.o\b", files["Kbuild"].partition("tcp_sm-y")[2])
    assert {f"{name}.c" for name in objects} == {name for name in files if name.endswith(".c")}


def test_is_the_same_source_the_same_version(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tree(tmp_path, build, monkeypatch)
    first = build.module_archive()
    assert first[0].startswith("2.3-")
    assert set(unpack(first[1])) == {"main.c", "tcp_sm.h", "dkms.conf"}
    (tmp_path / "kmod" / "m.mod.c").write_text("generated anew\n")
    assert build.module_archive() == first


@pytest.mark.parametrize("file", ["kmod/main.c", "kmod/dkms.conf", "bpf/tcp_sm.h", "kmod/new.c"])
def test_is_any_other_source_another_version(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    small_tree(tmp_path, build, monkeypatch)
    first, _data = build.module_archive()
    with (tmp_path / file).open("a") as stream:
        stream.write("# more\n")
    assert build.module_archive()[0] != first


def test_is_a_version_that_is_missing_named(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tree(tmp_path, build, monkeypatch)
    (tmp_path / "kmod" / "dkms.conf").write_text('PACKAGE_NAME="m"\n')
    with pytest.raises(SystemExit, match=r"kmod/dkms.conf has no PACKAGE_VERSION"):
        build.module_archive()
