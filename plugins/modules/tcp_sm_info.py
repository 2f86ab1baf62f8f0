#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what the sockmap channel can do here, what is loaded, and every connection."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tcp_sm_info
short_description: Kernel features, loaded programs, counters and connections
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Tells whether the kernel can run the sockmap channel, and if not, what is missing and what to
    do about it. M(colocated.tcp_sm.ivshmem_guest) does so for the ring channel.
  - Reads the pinned programs, maps and links, the counters, and every connection in scope with
    its channel, its bytes and, where it stays on TCP, the reason.
  - Where nothing is loaded, says so and returns empty lists. What is pinned and cannot be read is
    a warning.
  - To find out what the kernel supports, trivial programs and maps are loaded and dropped at once.
    Nothing is attached or changed.
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    description: Returns the same in check mode as without.
  diff_mode:
    support: none
    description: Has no difference to show, since it changes nothing.
  idempotent:
    support: full
    description: Never changes anything.
  platform:
    support: full
    platforms: linux
    description: Linux, as root.
requirements:
  - python >= 3.11
  - libbpf.so.1 to read what is loaded (Debian package C(libbpf1))
options:
  name:
    description:
      - The name that the object of the sockmap channel was loaded under, which is its folder below
        O(bpffs).
    type: str
    default: tcp_sm
  ring_name:
    description:
      - In a virtual machine, the name that the objects of the ring channel have, with C(_ring) and
        C(_handshake) behind it. By default, O(name).
    type: str
  bpffs:
    description: Where the BPF file system is mounted.
    type: path
    default: /sys/fs/bpf
  ring_bpffs:
    description: Where that of the ring channel's objects is mounted. By default, O(bpffs).
    type: path
  gather:
    description:
      - What to find out. The other keys of the result are left out.
      - By default, everything.
    type: list
    elements: str
    choices: [features, objects, counters, connections, profiles, ring]
    default: [features, objects, counters, connections, profiles, ring]
seealso:
  - module: colocated.tcp_sm.bpf_object
  - module: colocated.tcp_sm.ivshmem_guest
  - plugin: colocated.tcp_sm.tcp_sm_connections_table
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Ask whether the host can accelerate connections
  colocated.tcp_sm.tcp_sm_info:
    gather: [features]
  register: tcp_sm

- name: Stop where it cannot
  ansible.builtin.assert:
    that: tcp_sm.features.ok
    fail_msg: "{{ tcp_sm.features.missing }}"

- name: Read every connection
  colocated.tcp_sm.tcp_sm_info:
    gather: [connections]
  register: tcp_sm

- name: Show those that stay on TCP, with the reason
  ansible.builtin.debug:
    msg: "{{ on_tcp | colocated.tcp_sm.tcp_sm_connections_table }}"
  vars:
    on_tcp: "{{ tcp_sm.connections | selectattr('reason') }}"
"""

RETURN = r"""
features:
  description: What the kernel has to offer.
  returned: when O(gather) has V(features)
  type: dict
  contains:
    kernel:
      description: The release of the running kernel.
      type: str
      sample: 6.12.57+deb13-amd64
    ok:
      description: Whether nothing is missing.
      type: bool
    missing:
      description: What is needed and not there.
      type: list
      elements: dict
      contains:
        feature:
          description: A short name.
          type: str
          sample: bpffs
        why:
          description: What was found, and what it is needed for.
          type: str
          sample: No BPF file system is mounted at /sys/fs/bpf, and programs are pinned there.
        fix:
          description: What to do.
          type: str
          sample: "Mount it: mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf."
    limits:
      description:
        - What works with a restriction, in the same form. Nothing of this stops anything.
      type: list
      elements: dict
objects:
  description: What is pinned, in the form in which M(colocated.tcp_sm.bpf_object) returns it.
  returned: when O(gather) has V(objects)
  type: dict
  contains:
    name:
      description: The O(name).
      type: str
    state:
      description:
        - V(attached), V(loaded) or V(absent); V(unknown) where pins cannot be read.
      type: str
    programs:
      description: The programs with C(name), C(id), C(tag), C(type) and C(pin).
      type: list
      elements: dict
    maps:
      description:
        - The maps with C(name), C(id), C(type), C(key_size), C(value_size), C(max_entries) and
          C(pin).
      type: list
      elements: dict
    links:
      description:
        - What is attached where, with C(program), C(type), C(target), C(id) and C(pin). A verdict
          that was attached without a link has null for the last two.
      type: list
      elements: dict
counters:
  description: What was counted since the object was loaded, on all CPUs together.
  returned: when O(gather) has V(counters)
  type: dict
  contains:
    opened:
      description:
        - Sockets by the channel that was decided on when they were established. A connection
          with both ends on this host counts twice.
      type: dict
      sample: {"tcp": 3, "sockmap": 40, "ring": 0}
    closed:
      description: Sockets that were closed.
      type: int
    redirected_bytes:
      description: Bytes that were redirected.
      type: int
    redirected_msgs:
      description: Calls of sendmsg whose bytes were redirected.
      type: int
    passed_msgs:
      description: Calls of sendmsg that were left to TCP.
      type: int
    left:
      description: Connections that left the sockhash while they were open.
      type: int
    lost_events:
      description: Events for which the ring buffer had no room.
      type: int
    reasons:
      description: Sockets that stayed on TCP when they were established, by reason.
      type: dict
      sample: {"no_local_peer": 2, "learning": 1}
connections:
  description: Every connection in scope, in the order in which they were opened.
  returned: when O(gather) has V(connections)
  type: list
  elements: dict
  contains:
    channel:
      description: V(tcp), V(sockmap) or V(ring).
      type: str
    reason:
      description: Why it is on TCP; null when it is accelerated.
      type: str
      sample: blocking
    bytes:
      description:
        - Bytes in both directions that took this channel. Where it is V(tcp), those that were
          redirected before count too.
      type: int
    messages:
      description:
        - Calls of sendmsg, likewise. Those of a connection that was never accelerated are not
          counted.
      type: int
    redirected_bytes:
      description: Bytes that were redirected or went through a ring, in both directions.
      type: int
    tcp_bytes:
      description: Bytes that TCP carried, in both directions.
      type: int
    state:
      description: The TCP state of the client's socket, or of the only one on this host.
      type: str
      sample: established
    client:
      description:
        - The end that connected. Where it is not a socket of this kernel in scope, all but
          C(addr) and C(port) are null.
      type: dict
      contains:
        addr:
          description: Its address.
          type: str
          sample: 10.88.0.2
        port:
          description: Its port.
          type: int
        cgroup:
          description: The id of its cgroup.
          type: int
        cgroup_path:
          description: The path of that cgroup below the cgroup2 mount; null where it is gone.
          type: str
          sample: /system.slice/nginx.service
        netns:
          description: The inode number of its network namespace.
          type: int
        netns_name:
          description: The name of that namespace, where C(ip netns) or Docker knows one.
          type: str
        cookie:
          description: The socket's cookie, as C(ss -e) shows it.
          type: int
    server:
      description: The end that accepted, in the same form.
      type: dict
profiles:
  description: What was learned about programs that use a server port.
  returned: when O(gather) has V(profiles)
  type: list
  elements: dict
  contains:
    cgroup:
      description: The id of the cgroup.
      type: int
    cgroup_path:
      description: Its path below the cgroup2 mount; null where it is gone.
      type: str
    port:
      description: The server port, as this side sees it.
      type: int
    side:
      description: V(client) or V(server).
      type: str
    learned:
      description:
        - What the programs keep about it, by the names of their fields. Reason codes are shown as
          names, null for none. C(known) is not 0 once a reader was seen to be non-blocking, and
          C(veto) is the reason why connections stay on TCP for good.
      type: dict
      sample: {"known": 1, "veto": null, "hopeless": 0, "hopeless_reason": null}
ring:
  description: What is loaded of the ring channel.
  returned: when O(gather) has V(ring)
  type: dict
  contains:
    objects:
      description: The objects of data path and handshake, in the form of RV(objects).
      type: list
      elements: dict
    counters:
      description: What the handshake's programs counted, in the form of RV(counters).
      type: dict
"""

import contextlib
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import kernel
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.status import (
    ABSENT,
    Status,
    all_connections,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model import features, records
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.guest import HANDSHAKE, RING
from ansible_collections.colocated.tcp_sm.plugins.module_utils._options import refuse_nul

GATHER = ("features", "objects", "counters", "connections", "profiles", "ring")


class Reader:
    """Opens objects when they are first asked for; what cannot be read is a warning and empty.

    `sockmap` and `ring`: BPF file system and name of each channel's objects.
    """

    def __init__(
        self, sockmap: tuple[str, str], ring: tuple[str, str], warn: Callable[[str], None]
    ) -> None:
        self.places = {"": sockmap, RING: ring, HANDSHAKE: ring}
        self.warn = warn
        self.stack = contextlib.ExitStack()
        self.opened: dict[str, Status | None] = {}

    def gather(self, wanted: set[str]) -> dict[str, Any]:
        """The wanted parts of GATHER, features excepted."""
        result: dict[str, Any] = {}
        with self.stack:
            for part in wanted & {"objects", "counters", "profiles"}:
                result[part] = self._read("", part)
            if "connections" in wanted:
                dumps = self._read("", "records"), self._read(HANDSHAKE, "records")
                result["connections"] = all_connections(*dumps)
            if "ring" in wanted:
                result["ring"] = {
                    "objects": [self._read(end, "objects") for end in (RING, HANDSHAKE)],
                    "counters": self._read(HANDSHAKE, "counters"),
                }
        return result

    def _read(self, end: str, part: str) -> Any:
        """A part of the object whose name ends so."""
        empty: dict[str, Any] = {
            "objects": {"name": self.places[end][1] + end, **ABSENT, "state": "unknown"},
            "counters": records.sum_stats([]),
        }
        try:
            status = self._open(end)
            if status:
                return getattr(status, part)()
        except (TcpSmError, OSError) as error:
            self.warn(str(error))
        return empty.get(part, [])

    def _open(self, end: str) -> Status | None:
        """The object; None where it could not be opened, which is said once."""
        if end not in self.opened:
            self.opened[end] = None
            bpffs, name = self.places[end]
            status = Status(bpffs, name + end)
            self.opened[end] = self.stack.enter_context(status)
        return self.opened[end]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "tcp_sm"},
            "ring_name": {"type": "str"},
            "bpffs": {"type": "path", "default": "/sys/fs/bpf"},
            "ring_bpffs": {"type": "path"},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": list(GATHER),
                "default": list(GATHER),
            },
        },
        supports_check_mode=True,
    )
    refuse_nul(module)
    name, bpffs, wanted = (module.params[key] for key in ("name", "bpffs", "gather"))
    ring = module.params["ring_bpffs"] or bpffs, module.params["ring_name"] or name
    result: dict[str, Any] = {}
    if "features" in wanted:
        result["features"] = features.assess(kernel.gather(bpffs))
    result.update(Reader((bpffs, name), ring, module.warn).gather(set(wanted)))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
