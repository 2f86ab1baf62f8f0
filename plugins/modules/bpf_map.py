#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: entries of a pinned BPF map."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpf_map
short_description: Read and set entries of a pinned BPF map
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Sets or deletes entries of a map that is pinned in a BPF file system, and returns all of its
    entries.
  - Keys and values are given as plain data. Names, types and ranges of their fields come from the
    type information (BTF) that the map carries.
  - Programs see the new entries at once, nothing is reloaded.
  - Maps of type hash, lru_hash, array and lpm_trie can be written. Per-CPU maps can only be read.
extends_documentation_fragment:
  - colocated.tcp_sm.bpf
attributes:
  check_mode:
    details:
      - Where the map is not pinned yet, check mode warns and reports all entries as new.
  idempotent:
    details:
      - An entry of an lru_hash map may have been evicted meanwhile.
options:
  path:
    description: The pinned map.
    type: path
    required: true
  entries:
    description:
      - The entries. Without any, V(present) only reads.
      - A number may be given as a string, also hexadecimal (V(0x1f)).
      - A struct is a dictionary of its fields; those of nameless members count as its own.
      - An enum takes a name or a number.
      - A C(__u8) array takes a list of numbers or a string of hexadecimal digits. One of 4 or 16
        bytes takes an IP address too (IPv4 in 16 bytes is v4-mapped). A C(char) array takes text.
      - The key of an lpm_trie may be a network, such as V(10.0.0.0/8) or V(2001:db8::/32).
      - A map without type information takes a number for 1, 2, 4 and 8 bytes, otherwise
        hexadecimal digits or a list of bytes.
    type: list
    elements: dict
    default: []
    suboptions:
      key:
        description: The key.
        type: raw
        required: true
      value:
        description:
          - The value. Required unless O(state=absent).
          - With O(state=present), fields of a struct that are left out keep what they are in an
            existing entry, and are zero in a new one. With O(state=exact) they are zero.
        type: raw
  state:
    description:
      - With V(present), these entries are written.
      - With V(absent), the entries with these keys are deleted. An array has none to delete.
      - With V(exact), these entries are written and all others deleted.
    type: str
    choices: [present, absent, exact]
    default: present
seealso:
  - module: colocated.tcp_sm.bpf_object
"""

EXAMPLES = r"""
- name: Switch acceleration off, keep the limits as they are
  colocated.tcp_sm.bpf_map:
    path: /sys/fs/bpf/tcp_sm/maps/tcp_sm_config
    entries:
      - key: 0
        value:
          mode: 0

- name: Exclude exactly these server ports
  colocated.tcp_sm.bpf_map:
    path: /sys/fs/bpf/tcp_sm/maps/tcp_sm_ports
    state: exact
    entries:
      - key: 5432
        value: 2
      - key: 8443
        value: 2

- name: Exclude a network
  colocated.tcp_sm.bpf_map:
    path: /sys/fs/bpf/tcp_sm/maps/tcp_sm_cidrs
    entries:
      - key: 10.0.0.0/8
        value: 2

- name: Read counters
  colocated.tcp_sm.bpf_map:
    path: /sys/fs/bpf/tcp_sm/maps/tcp_sm_stats
  register: counters
"""

RETURN = r"""
entries:
  description: All entries of the map afterwards, sorted by key; in check mode, as they would be.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: The key as a number, a dictionary of fields, or hexadecimal digits.
      type: raw
      sample: 5432
    value:
      description:
        - The value likewise. An array of bytes is shown as hexadecimal digits, or as an IP address
          where C(addr) is part of its name. Numbers of a per-CPU map are added up.
      type: raw
      sample: 2
    per_cpu:
      description: The values of each CPU.
      returned: for per-CPU maps
      type: list
      elements: raw
diff:
  description:
    - The entries that differ, by key. Modes and rules of this collection's own maps are shown as
      the words that its roles take, such as V(pass) or V(exclude).
  returned: in diff mode
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._answer import answer
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.maps import apply_map
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import MapSpec


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "entries": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": False,
                "options": {
                    "key": {"type": "raw", "required": True, "no_log": False},
                    "value": {"type": "raw"},
                },
            },
            "state": {
                "type": "str",
                "choices": ["present", "absent", "exact"],
                "default": "present",
            },
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    answer(module, lambda: apply_map(MapSpec.parse(module.params), module.check_mode), "entries")


if __name__ == "__main__":
    main()
