# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does only one run go on at a time, and does the other say who is in its way?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import lock
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError

# Takes the lock the way any other process would, says so, and holds it until its input ends.
HOLDER = textwrap.dedent(
    """
    import fcntl, os, sys
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, str(os.getpid()).encode())
    print("held", flush=True)
    sys.stdin.read()
    """
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "x.lock")


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    os.makedirs(os.path.dirname(path))
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_is_the_lock_gone_afterwards(path: str) -> None:
    with lock.locked(0, path):
        assert Path(path).read_text() == f"{os.getpid()}\n"
    assert not os.path.exists(path)
    with lock.locked(0, path):
        pass


def test_is_it_gone_after_an_error_too(path: str) -> None:
    with pytest.raises(ValueError, match="inside"), lock.locked(0, path):
        raise ValueError("inside")
    assert not os.path.exists(path)


def test_does_the_second_run_name_the_first(path: str, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(TcpSmError) as error, lock.locked(0.2, path):
        pytest.fail("two runs at once")
    message = str(error.value)
    assert f"Another run holds {path} (pid {holder.pid}: {sys.executable}" in message
    assert "also after 0.2 seconds. Nothing was changed." in message
    assert holder.poll() is None


def test_is_the_option_named_that_the_module_has(path: str, holder: subprocess.Popen[str]) -> None:
    assert holder.poll() is None
    with pytest.raises(TcpSmError) as error, lock.locked(0, path):
        pass
    assert str(error.value).endswith("raise lock_timeout (of module ivshmem_guest, timeout).")


def test_is_a_lock_that_cannot_be_opened_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, reason in (("link", "Too many levels of symbolic links"), ("file/x", "File exists")):
        where = tmp_path / path
        with pytest.raises(TcpSmError) as error, lock.locked(0, str(where)):
            pass
        assert f"Cannot open the lock {where}: {reason}. Nothing was changed." in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_does_the_second_run_wait_for_the_first(
    path: str, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def release(_seconds: float) -> None:
        tries.append(path)
        if len(tries) == 3:
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait()

    monkeypatch.setattr(time, "sleep", release)
    with lock.locked(30, path):
        assert len(tries) == 3


def test_does_kill_9_of_the_holder_let_go_of_it(path: str, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock.locked(0, path):
        assert Path(path).read_text() == f"{os.getpid()}\n"


def test_is_a_lock_on_a_removed_file_no_lock(path: str, holder: subprocess.Popen[str]) -> None:
    """The first holder ended and removed the file while a third run locked a new one."""
    os.unlink(path)
    with lock.locked(0, path):
        assert holder.poll() is None
        assert Path(path).read_text() == f"{os.getpid()}\n"


def test_is_a_holder_named_that_wrote_nothing(path: str, holder: subprocess.Popen[str]) -> None:
    Path(path).write_text("")
    with pytest.raises(TcpSmError, match=f"pid {holder.pid}:"), lock.locked(0, path):
        pass


def test_is_an_unknown_holder_no_second_error(path: str, holder: subprocess.Popen[str]) -> None:
    assert holder.poll() is None
    real_open = open

    def unreadable(name: str, **options: str) -> object:
        if name.startswith("/proc/"):
            raise PermissionError(name)
        return real_open(name, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", unreadable)
        with pytest.raises(TcpSmError, match="holder unknown"), lock.locked(0, path):
            pass
