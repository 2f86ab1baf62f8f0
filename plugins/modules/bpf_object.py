#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: one BPF object, loaded, pinned and attached."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpf_object
short_description: Load, pin and attach a BPF object
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Loads a CO-RE object file into the kernel, pins its programs and maps below a BPF file system,
    and attaches programs by pinned links.
  - An object that is loaded already is recognised by the tags of its programs, which the kernel
    computes from the instructions, and by its read-only data.
  - A different object of the same name replaces the loaded one at once. Maps whose type, sizes
    and fields are the same keep their entries. Links are moved to the new programs without a
    gap where the kernel can do this (cgroups, maps, iterators, most types of struct_ops); a
    tracing program overlaps with its successor for some milliseconds.
  - Objects may use functions and struct_ops types of kernel modules. These must be loaded before,
    and be built with type information.
  - Either everything that was asked for is done, or the state is as before.
extends_documentation_fragment:
  - colocated.tcp_sm.bpf
attributes:
  check_mode:
    details:
      - Check mode loads the object without pinning it, so that it also predicts what the verifier
        says. It warns, and predicts from an empty state, where the object file, libbpf or the
        BPF file system are not there yet.
options:
  name:
    description:
      - Name of the object, which is the folder of its pins below O(bpffs).
      - Letters, digits, C(_) and C(-), at most 64.
    type: str
    required: true
  path:
    description:
      - The object file on the target.
      - Required unless O(state=absent).
    type: path
  sha256:
    description:
      - The expected SHA-256 of the file, in hexadecimal digits. Anything else is refused.
    type: str
  state:
    description:
      - With V(attached), the object is loaded, and attached exactly as O(attach) says.
      - With V(loaded), programs and maps are pinned and nothing is attached.
      - With V(absent), everything is detached and unpinned.
    type: str
    choices: [attached, loaded, absent]
    default: attached
  bpffs:
    description: A folder on a mounted BPF file system.
    type: path
    default: /sys/fs/bpf
  attach:
    description:
      - What to attach where, in this order. Links that are not in this list are removed.
    type: list
    elements: dict
    default: []
    suboptions:
      program:
        description:
          - Name of the program.
          - Required unless O(attach[].type=struct_ops).
        type: str
      type:
        description:
          - With V(cgroup), a program such as C(sockops) is attached to O(attach[].cgroup).
          - With V(map), C(sk_msg) or C(sk_skb) programs are attached to O(attach[].map), by a link
            on Linux 6.10 and newer.
          - With V(tracing), the program is attached to what its section names (C(tp_btf/...)).
          - With V(iter), an iterator is created, over O(attach[].map) if it walks a map. Reading
            the pinned link runs it.
          - With V(struct_ops), O(attach[].map) is attached, which is a table of programs in the
            section C(.struct_ops.link) of the object. Needs libbpf 1.4, and Linux 6.4, or 6.9 where
            the type is a kernel module's.
        type: str
        choices: [cgroup, map, tracing, iter, struct_ops]
        required: true
      cgroup:
        description:
          - The cgroup, relative to where cgroup2 is mounted. V(/) is its root.
          - Required if O(attach[].type=cgroup). A program may be attached to several.
        type: str
      map:
        description:
          - Name of a map of this object.
          - Required if O(attach[].type=map) or O(attach[].type=struct_ops).
        type: str
  max_entries:
    description:
      - Sizes of maps by name, where these differ from what the object says.
    type: dict
    default: {}
  replace_maps:
    description:
      - What to do with a pinned map that does not fit the new object, because its type, size or
        fields are different.
      - With V(false) the module fails and names the difference.
      - With V(true) an empty map takes its place, and the old entries are lost once nothing uses
        them.
    type: bool
    default: false
seealso:
  - module: colocated.tcp_sm.bpf_map
  - module: colocated.tcp_sm.tcp_sm_info
"""

EXAMPLES = r"""
- name: Accelerate all cgroups
  colocated.tcp_sm.bpf_object:
    name: tcp_sm
    path: /usr/local/lib/tcp_sm/sockmap.bpf.o
    attach:
      - program: tcp_sm_verdict
        type: map
        map: tcp_sm_sockhash
      - program: tcp_sm_recv
        type: tracing
      - program: tcp_sm_dump
        type: iter
        map: tcp_sm_socks
      - program: tcp_sm_sockops
        type: cgroup
        cgroup: /

- name: Let rings carry the bytes of TCP sockets, with the kernel module tcp_sm loaded
  colocated.tcp_sm.bpf_object:
    name: tcp_sm_ring
    path: /usr/local/lib/tcp_sm/bpf/ring.bpf.o
    attach:
      - type: struct_ops
        map: tcp_sm_ring

- name: Load an object and check the file, attach nothing
  colocated.tcp_sm.bpf_object:
    name: counter
    path: /usr/local/lib/counter.bpf.o
    sha256: 3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7
    state: loaded
    max_entries:
      connections: 4096

- name: Remove every trace of it
  colocated.tcp_sm.bpf_object:
    name: counter
    state: absent
"""

RETURN = r"""
object:
  description: The object as it is afterwards; in check mode, as it would be.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: tcp_sm
    state:
      description: The state that was asked for.
      type: str
      sample: attached
    sha256:
      description: SHA-256 of the object file; none with O(state=absent).
      type: str
    programs:
      description: Its programs, sorted by name.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the program.
          type: str
        id:
          description: The kernel's number for it, as C(bpftool prog) shows it.
          type: int
        tag:
          description: The kernel's digest of its instructions.
          type: str
        type:
          description: Program type.
          type: str
          sample: sock_ops
        pin:
          description: Path of the pin.
          type: str
    maps:
      description: Its maps, sorted by name.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the map.
          type: str
        id:
          description: The kernel's number for it.
          type: int
        type:
          description: Map type.
          type: str
          sample: sockhash
        key_size:
          description: Bytes of a key.
          type: int
        value_size:
          description: Bytes of a value.
          type: int
        max_entries:
          description: Size of the map.
          type: int
        pin:
          description: Path of the pin.
          type: str
    links:
      description: What is attached, sorted by the name of the pin.
      type: list
      elements: dict
      contains:
        program:
          description: Name of the program; of struct_ops, of the map.
          type: str
        type:
          description: As in O(attach[].type).
          type: str
        target:
          description: What it is attached to.
          type: str
          sample: cgroup /
        id:
          description: The kernel's number for the link; none where the kernel has no link for
            this (maps before Linux 6.10), and in check mode.
          type: int
        pin:
          description: Path of the pin; none where there is no link.
          type: str
diff:
  description: Programs with their tags, maps with their sizes, and links with their targets.
  returned: in diff mode
  type: dict
verifier_log:
  description: The end of the verifier's log, at most 64 KiB.
  returned: when the kernel refused to load the object
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._answer import answer
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.engine import apply
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.spec import (
    ATTACH_TYPES,
    ObjectSpec,
)

ATTACH_SPEC = {
    "program": {"type": "str"},
    "type": {"type": "str", "required": True, "choices": list(ATTACH_TYPES)},
    "cgroup": {"type": "str"},
    "map": {"type": "str"},
}

ATTACH_REQUIRED = [
    ("type", "cgroup", ("program", "cgroup")),
    ("type", "map", ("program", "map")),
    ("type", "tracing", ("program",)),
    ("type", "iter", ("program",)),
    ("type", "struct_ops", ("map",)),
]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "path": {"type": "path"},
            "sha256": {"type": "str"},
            "state": {
                "type": "str",
                "choices": ["attached", "loaded", "absent"],
                "default": "attached",
            },
            "bpffs": {"type": "path", "default": "/sys/fs/bpf"},
            "attach": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": ATTACH_SPEC,
                "required_if": ATTACH_REQUIRED,
            },
            "max_entries": {"type": "dict", "default": {}},
            "replace_maps": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "attached", ("path",)), ("state", "loaded", ("path",))],
        supports_check_mode=True,
    )
    answer(module, lambda: apply(ObjectSpec.parse(module.params), module.check_mode), "object")


if __name__ == "__main__":
    main()
