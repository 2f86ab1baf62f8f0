# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge of ivshmem_region and ivshmem_chunk: options in, answer or message out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import region_state
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError
from ansible_collections.colocated.tcp_sm.plugins.modules import ivshmem_chunk, ivshmem_region


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a region may be made."""
    lock = str(tmp_path / "lock")
    for module in (ivshmem_region, ivshmem_chunk):
        name = "apply_region" if module is ivshmem_region else "apply_chunk"
        apply = getattr(region_state, name)
        monkeypatch.setattr(module, name, lambda spec, check, apply=apply: apply(spec, check, lock))
    return str(tmp_path / "lab")


@pytest.fixture
def region(run_module: Any, path: str) -> Any:
    """Run ivshmem_region on that file."""

    def run(**options: Any) -> dict[str, Any]:
        return run_module(ivshmem_region, **{"name": "lab", "path": path, **options})

    return run


def test_a_region_is_made_once_with_its_permissions(region: Any, path: str) -> None:
    options = {"size": "16M", "mode": "0640", "automatic": {"count": 2, "size": "1M"}}
    assert region(**options, check=True)["changed"]
    assert not os.path.exists(path)
    first = region(**options)
    assert first["changed"]
    assert os.stat(path).st_mode & 0o777 == 0o640
    again = region(**options)
    assert not again["changed"]
    assert again["region"] == first["region"]
    assert [chunk["automatic"] for chunk in first["region"]["chunks"]] == [True, True]


def test_only_the_permissions_may_change(region: Any, path: str) -> None:
    before = region(size="1M")["region"]
    predicted = region(size="1M", mode="0660", check=True)
    assert predicted["changed"]
    assert (predicted["diff"]["before"]["mode"], predicted["diff"]["after"]["mode"]) == (
        "0600",
        "0660",
    )
    assert os.stat(path).st_mode & 0o777 == 0o600
    after = region(size="1M", mode="0660")
    assert after["changed"]
    assert after["region"] == before
    assert os.stat(path).st_mode & 0o777 == 0o660
    # Without the option, they stay.
    assert not region(size="1M")["changed"]


def test_the_identity_is_not_in_the_answer(region: Any, path: str) -> None:
    answer = region(size="1M")
    identity = Path(path).read_bytes()[24:40]
    assert identity.hex() not in str(answer)
    assert answer["region"]["fingerprint"]


def test_a_region_that_is_gone_is_gone(region: Any) -> None:
    region(size="1M")
    gone = region(state="absent")
    assert (gone["changed"], gone["region"]) == (True, {})
    assert gone["diff"]["before"]["name"] == "lab"
    assert not region(state="absent")["changed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "state is present but all of the following are missing: size"),
        ({"size": "10M"}, "size: 10M is not a power of two"),
        ({"size": "16M", "automatic": {}}, "missing required arguments: count"),
        ({"size": "16M", "automatic": {"count": 1, "size": "64M"}}, "is larger than region lab"),
        ({"size": "16M", "name": "a b"}, "name: 'a b' must be"),
        ({"size": "16M", "path": "/no/such/folder/lab"}, "the folder /no/such/folder does not"),
        ({"size": "16M", "mode": "nonsense"}, "mode must be in octal or symbolic form"),
        ({"size": "16M", "owner": "nosuch"}, "failed to look up user nosuch"),
        ({"size": "16M", "group": "nosuch"}, "failed to look up group nosuch"),
        ({"size": "16M", "group": "4294967295"}, "There is no group '4294967295'"),
        ({"size": "16M", "group": "9" * 30}, "Nothing was changed"),
        ({"size": "16M", "owner": "9" * 30}, "Nothing was changed"),
        ({"size": "16M", "attributes": "+i"}, "attributes: '+i' cannot be given to a region"),
        ({"size": "16M", "path": "/dev/shm/a\0b"}, "path: '/dev/shm/a\\x00b' has a NUL character"),
        ({"size": "16M", "owner": "a\0b"}, "owner: 'a\\x00b' has a NUL character"),
        ({"size": "16M", "chunks": [{"owner": "a\0"}]}, "has a NUL character"),
        ({"size": "16M", "parts": 100000}, "parts: 100000 must be at most 256"),
        (
            {"size": "16M", "automatic": {"count": 256}},
            "of the equal parts of region lab (16M), 60K",
        ),
        ({"size": "16M", "chunks": [{}]}, "missing required arguments: owner found in chunks"),
        ({"size": "16M", "chunks": [{"owner": "a", "size": "64M"}]}, "is larger than region lab"),
    ],
)
def test_bad_options_are_messages(
    region: Any, path: str, options: dict[str, Any], message: str
) -> None:
    for check in (True, False):
        answer = region(**options, check=check)
        assert answer["failed"]
        assert message in answer["msg"]
        assert "exception" not in answer
    assert not os.path.exists(path)


@pytest.mark.parametrize("options", [{"mode": "nonsense"}, {"owner": "nosuch"}])
def test_bad_permissions_resize_nothing(region: Any, path: str, options: dict[str, Any]) -> None:
    region(size="1M")
    assert region(size="2M", **options)["failed"]
    assert os.stat(path).st_size == 1 << 20


def test_a_region_comes_with_its_chunks(region: Any) -> None:
    options = {"size": "16M", "parts": 4, "chunks": [{"owner": "a"}, {"owner": "b", "size": "1M"}]}
    first = region(**options)["region"]["chunks"]
    assert [(one["owner"], one["size"]) for one in first] == [("a", 4177920), ("b", 1 << 20)]
    assert not region(**options)["changed"]
    assert region(size="16M", chunks=[{"owner": "a"}])["region"]["chunks"] == first[:1]


def test_a_region_is_not_removed_through_a_link(region: Any, path: str) -> None:
    region(size="1M")
    os.symlink(path, f"{path}.link")
    answer = region(path=f"{path}.link", state="absent")
    assert "it is a symbolic link. Nothing was changed." in answer["msg"]
    assert "exception" not in answer
    assert os.path.exists(path)


def test_a_chunk_is_declared_once(region: Any, run_module: Any, path: str) -> None:
    options = {"region": "lab", "path": path, "owner": "web", "size": "2M", "ring_size": "16K"}
    early = run_module(ivshmem_chunk, **options, check=True)
    assert early["changed"]
    assert "Check mode cannot predict" in str(early["warnings"])
    region(size="16M")
    first = run_module(ivshmem_chunk, **options)
    assert first["changed"]
    assert first["chunk"]["slots"] == 58
    assert first["diff"] == {"before": {}, "after": first["chunk"]}
    assert not run_module(ivshmem_chunk, **options)["changed"]
    gone = run_module(ivshmem_chunk, region="lab", path=path, owner="web", state="absent")
    assert (gone["changed"], gone["chunk"]) == (True, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"owner": "a"}, "state is present but all of the following are missing: size"),
        ({"size": "1M"}, "missing required arguments: owner"),
        ({"owner": "a", "size": "64M"}, "is larger than region lab"),
        ({"owner": "a", "size": "128K"}, "has no room for a connection"),
        ({"owner": "x" * 64, "size": "1M"}, "at most 63"),
        ({"owner": "a", "size": "1M", "file_owner": "a\0"}, "file_owner: 'a\\x00' has a NUL"),
    ],
)
def test_bad_options_of_a_chunk_are_messages(
    region: Any, run_module: Any, path: str, options: dict[str, Any], message: str
) -> None:
    region(size="16M")
    before = Path(path).read_bytes()
    answer = run_module(ivshmem_chunk, region="lab", path=path, **options)
    assert answer["failed"]
    assert message in answer["msg"]
    assert Path(path).read_bytes() == before


def test_a_refusal_is_a_message_and_no_traceback(
    run_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise InputError("too odd")

    monkeypatch.setattr(ivshmem_region, "apply_region", refuse)
    answer = run_module(ivshmem_region, name="x", size="1M")
    assert (answer["failed"], answer["msg"]) == (True, "too odd")
    assert "exception" not in answer
