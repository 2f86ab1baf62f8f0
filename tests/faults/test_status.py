# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) 2026, the colocated.tcp_sm authors
"""Does the status look where the roles put things?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from installation import ansible, wait


def test_are_a_guests_objects_looked_for_under_the_guests_names(tmp_path: Path) -> None:
    # What is there and not ours is told as that, so the answer shows where was looked.
    (tmp_path / "bpf" / "mine_handshake" / "foreign").mkdir(parents=True)
    status = tmp_path / "status.json"
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "host_name": "other",
        "guest_name": "mine",
        "guest_bpffs": str(tmp_path / "bpf"),
        "status_json": str(status),
    }
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"guests": {"hosts": {"here": variables}}}), encoding="utf-8")
    done = wait(ansible(["ansible-playbook", "colocated.tcp_sm.status"], inventory=str(inventory)))
    assert done.returncode == 0, done.stdout
    found = json.loads(status.read_text(encoding="utf-8"))["here"]
    objects = [(one["name"], one["state"]) for one in found["ring"]["objects"]]
    assert objects == [("mine_ring", "absent"), ("mine_handshake", "unknown")]
    assert found["objects"]["name"] == "other"
    assert found["guest"]["programs"]["handshake"] == "unknown"
