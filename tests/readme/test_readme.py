# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is README.md true? Its commands are taken out of it and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.mounts import cgroup2_root

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BPFFS = Path("/sys/fs/bpf")
CGROUP = "some/cgroup"  # as the README names it


def blocks(language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(first: str) -> list[list[str]]:
    """All shell commands whose first word is `first`, split into words."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line))[:1] == [first]]


def run(words: list[str], cwd: Path = ROOT) -> str:
    """Run a command as the README's reader would; returns what it printed."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{shlex.join(words)}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """The cgroup that the README's narrowing example names."""
    made = Path(cgroup2_root()) / CGROUP
    made.mkdir(parents=True)
    yield made
    made.rmdir()
    made.parent.rmdir()


def test_make_targets_exist() -> None:
    targets = {target for words in commands("make") for target in words[1:]}
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test", "build"} <= targets
    for target in targets | named:
        run(["make", "--dry-run", target])


def test_tarball_is_named_as_it_is_built() -> None:
    (install,) = commands("ansible-galaxy")
    version = re.search(r"^version: (\S+)", (ROOT / "galaxy.yml").read_text(), re.MULTILINE)
    assert version
    assert install[-1] == f"colocated-tcp_sm-{version[1]}.tar.gz"
    (copy,) = commands("cp")
    assert f"build/{install[-1]}" in copy


def test_inventory_and_playbooks_of_the_users_own(tmp_path: Path) -> None:
    (inventory,) = blocks("ini")
    (tmp_path / "hosts.ini").write_text(inventory)
    playbooks = [words for words in commands("ansible-playbook") if "hosts.ini" in words]
    names = {word for words in playbooks for word in words if word.startswith("colocated.")}
    assert names == {f"colocated.tcp_sm.{x}" for x in ("site", "status", "bench", "remove")}
    for words in playbooks:
        # The hosts are invented, so the run itself belongs to the test of the tarball.
        run([*words, "--syntax-check"], cwd=tmp_path)


@pytest.mark.root
def test_commands_for_this_machine(cgroup: Path) -> None:
    if (BPFFS / "tcp_sm").exists():
        pytest.skip("this machine uses the collection already: the README's commands would end it")
    site, status, remove = [
        words for words in commands("ansible-playbook") if "inventories/local.yml" in words
    ]
    assert f"/{CGROUP}" in site[-1]
    run(site)
    try:
        assert (BPFFS / "tcp_sm" / "links").is_dir()
        run(status)
    finally:
        run(remove)
    assert not (BPFFS / "tcp_sm").exists()


LAB = [words for words in commands("ansible-playbook") if "inventories/lab" in words]


@pytest.mark.parametrize("words", LAB, ids=lambda words: shlex.join(words[3:]))
def test_playbooks_on_the_lab_have_something_to_do(words: list[str]) -> None:
    # What they do there, tests/lab and molecule look at.
    listed = run([*words, "--list-tasks"])
    assert re.search(r"^      \S.*TAGS: ", listed, re.MULTILINE), listed
    for name in words[-1:] if "-e" in words else ():
        (variable,) = re.findall(r"(?:container|guest)_\w+", name)
        role = variable.partition("_")[0]
        assert f"{variable}:" in (ROOT / "roles" / role / "defaults" / "main.yml").read_text()
        assert role in words


def test_programs_and_addresses_of_the_lab_are_as_it_has_them() -> None:
    known = json.loads(run(["ansible-inventory", "-i", "inventories/lab", "--list"]))
    hosts = known["_meta"]["hostvars"]
    addresses = {hosts[name]["ansible_host"] for name in ("vm1", "vm2")}
    programs = {
        f"{hosts['lab']['lab_dir']}/{name}": (ROOT / "roles" / template).is_file()
        for name, template in {
            "podman": "lab/templates/podman.j2",
            "vm/ssh": "lab_vm/templates/ssh.j2",
        }.items()
    }
    named = set(re.findall(r"^(/var/lib/\S+)", "".join(blocks("sh")), re.MULTILINE))
    assert all(programs.values())
    assert named == set(programs)
    assert set(re.findall(r"\b10\.211\.1\.\d+", README)) == addresses


def test_reasons_are_those_of_the_programs() -> None:
    header = (ROOT / "bpf" / "tcp_sm.h").read_text()
    reasons = {name.lower() for name in re.findall(r"\bTCP_SM_R_([A-Z_]+)", header)}
    table = README.split("## What stays on TCP")[1].split("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| `.*?\|", table, re.MULTILINE))))
    assert told == reasons - {"none", "max"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
