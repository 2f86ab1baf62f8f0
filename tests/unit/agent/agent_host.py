# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real agent in a process of its own, and machines that only pretend."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
FAKE = Path(__file__).with_name("fake_qemu.py")
PATIENCE = 10.0

sys.path.insert(0, str(ROOT / "agent"))


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return answer


class FakeMachine:
    """A process of fake_qemu.py."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children: list[int] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    def __call__(self, command: str, *arguments: object) -> Any:
        """Have it do something; the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, *arguments, file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if command == "fork":
            self.children.append(answer)
        return answer

    def kill(self) -> None:
        """As when the host's memory is short."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


class Agent:
    """The agent's command line, and one that serves."""

    def __init__(self, folder: Path, shm: Path) -> None:
        self.folder, self.shm = folder, shm
        self.config: dict[str, Any] = {
            "regions": [],
            "control": str(folder / "control"),
            "metrics": str(folder / "metrics.prom"),
        }
        self.config_path = folder / "agent.json"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.env = {**os.environ, "PYTHONPATH": str(ROOT / "agent")}
        self.env.pop("NOTIFY_SOCKET", None)

    def region(self, name: str = "one", size: str = "16M", **options: Any) -> dict[str, Any]:
        """Add a region to the configuration."""
        region = {
            "name": name,
            "path": str(self.shm / name),
            "socket": str(self.folder / f"{name}.sock"),
            "size": size,
            **options,
        }
        self.config["regions"].append(region)
        return region

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tcp_sm_agent", *arguments]

    def call(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=30,
            **options,
        )

    def write(self) -> None:
        self.config_path.write_text(json.dumps(self.config))

    def start(self, **options: Any) -> None:
        """Serve the configuration; returns when it does."""
        self.write()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run", "--config", str(self.config_path)),
                env=self.env,
                stderr=log,
                **options,
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_for(lambda: self.running() and self.answers(), "the agent serves")

    def running(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return True

    def answers(self) -> bool:
        try:
            return bool(self.status()["agent"]["pid"])
        except (OSError, ValueError):
            return False

    def status(self) -> dict[str, Any]:
        from tcp_sm_agent.status import ask

        return ask(self.config["control"])

    def chunk(self, index: int, region: int = 0) -> dict[str, Any]:
        """One chunk in the status."""
        chunks = self.status()["regions"][region]["chunks"]
        found: dict[str, Any] = next(one for one in chunks if one["index"] == index)
        return found

    def machine(self, name: str, region: str = "one") -> FakeMachine:
        """One that connects."""
        return FakeMachine("-name", f"guest={name}", str(self.folder / f"{region}.sock"))

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def reload(self) -> None:
        """Write the configuration and have it read; returns when that is done."""
        self.write()
        before = self.log.read_text().count("configuration read again")
        self.signal(signal.SIGHUP)
        wait_for(lambda: self.log.read_text().count("configuration read again") > before, "reload")
        assert self.answers()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def fds(self) -> int:
        """How many descriptors the agent has open."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu(self) -> float:
        """Seconds of processor time that the agent has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
