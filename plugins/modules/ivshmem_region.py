#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a region of shared memory for the ring channel."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ivshmem_region
short_description: A region of memory that virtual machines of one hypervisor share
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Makes, resizes and removes a region, a file in memory that QEMU gives to its machines as an
    IVSHMEM device. Connections between these machines exchange their bytes through it.
  - A region is one trust domain. Its machines can read and write all of it, so machines that do not
    trust each other need regions of their own.
  - A region's identity, by which its machines know each other, is random and made once. An
    existing region keeps it.
  - What machines use is not touched, the module fails instead and names them.
extends_documentation_fragment:
  - colocated.tcp_sm.ivshmem
  - ansible.builtin.files
options:
  name:
    description:
      - The region's name, of letters, digits, C(_), C(-) and C(.).
    type: str
    required: true
  path:
    description:
      - The file. Below a hugetlbfs mount it is made of huge pages.
      - By default, the file of that name in C(/dev/shm).
    type: path
  size:
    description:
      - Size in bytes, or with a unit such as V(256M). A power of two.
      - Required with O(state=present).
      - A region can grow or shrink only while no machine has it, and never below a chunk's end.
        Chunks without a size of their own get another one then.
    type: str
  host:
    description:
      - The hypervisor's name or address, for people who look at the region from inside a machine.
      - By default, a new region gets the host's node name, and an existing one keeps what it has.
    type: str
  chunks:
    description:
      - The chunks of machines. Chunks that were declared for others are removed.
      - By default, those that there are stay. M(colocated.tcp_sm.ivshmem_chunk) manages a single
        one.
      - In check mode, a machine that still uses a chunk to be removed is a warning, for an earlier
        task may take the device out of it.
    type: list
    elements: dict
    suboptions:
      owner:
        description:
          - The machine, by the name or the UUID (in lower case) that QEMU was started with.
        type: str
        required: true
      size:
        description:
          - Size in bytes, or with a unit such as V(64M). A multiple of 4096 bytes.
          - By default, a chunk that is there keeps its size, whoever comes or goes. A new one gets
            one of O(parts) equal parts of the region. Where that does not fit, all new ones get
            equal parts of what is free.
        type: str
      ring_size:
        description: Bytes of each direction of a connection, a power of two from V(4K) to V(4M).
        type: str
        default: 128K
  parts:
    description:
      - Into how many equal parts the region is divided for chunks without a size.
      - By default, into as many as there are in O(chunks) and O(automatic).
    type: int
  automatic:
    description:
      - Chunks that the agent gives to machines for which none is declared. When such a machine is
        gone, and no other is left without a chunk, its chunk goes to the next.
      - By default, those that there are stay.
    type: dict
    suboptions:
      count:
        description: How many, from 0 to 256.
        type: int
        required: true
      size:
        description:
          - Size of each, a multiple of 4096 bytes.
          - By default, as in O(chunks).
        type: str
      ring_size:
        description: Bytes of each direction of a connection, a power of two from V(4K) to V(4M).
        type: str
        default: 128K
  allocate:
    description:
      - Allocate all of the memory when the region is made or grows. Otherwise it is allocated as
        machines use it, and QEMU is killed (SIGBUS) when the file system then has no room left.
    type: bool
    default: true
  state:
    description:
      - With V(present), the region is there with this size.
      - With V(absent), the file is deleted. Anything but a region is left alone.
      - An agent that is configured to serve a region makes it again when it is missing. So take it
        out of the agent's configuration first.
    type: str
    choices: [present, absent]
    default: present
  force:
    description:
      - With O(state=absent), delete the file although machines have it mapped. They go on with it
        among themselves, nobody can join them any more, and the memory is given back when the last
        one ends.
    type: bool
    default: false
  owner:
    description:
      - The file's owner, by default whoever makes it.
      - A file that is there is refused if it belongs neither to root, nor to the user that the
        module runs as, nor to this one. Anybody may have put it there.
  mode:
    description:
      - The file's permissions. A new region has V('0600'), an existing one keeps what it has.
      - A machine with a doorbell device needs none, the agent hands the memory to it. With a plain
        device QEMU opens the file itself.
  attributes:
    description:
      - Refused, for file systems in memory have few, and a region needs none.
seealso:
  - module: colocated.tcp_sm.ivshmem_chunk
"""

EXAMPLES = r"""
- name: A region for the machines of one tenant
  colocated.tcp_sm.ivshmem_region:
    name: tenant1
    size: 256M

- name: A region with the chunks of two machines, and room for six more
  colocated.tcp_sm.ivshmem_region:
    name: tenant1
    size: 256M
    parts: 8
    chunks:
      - owner: web1
      - owner: db1
        ring_size: 16K

- name: A region of huge pages with eight chunks for whoever comes
  colocated.tcp_sm.ivshmem_region:
    name: tenant2
    path: /dev/hugepages/tenant2
    size: 1G
    automatic:
      count: 8
      ring_size: 256K

- name: Remove a region that no machine uses
  colocated.tcp_sm.ivshmem_region:
    name: tenant1
    state: absent
"""

RETURN = r"""
region:
  description:
    - The region afterwards; in check mode, as it would be. Empty with O(state=absent).
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: tenant1
    path:
      description: Its file.
      type: str
      sample: /dev/shm/tenant1
    size:
      description: Bytes.
      type: int
      sample: 268435456
    host:
      description: The hypervisor's name or address.
      type: str
      sample: host1.example
    fingerprint:
      description:
        - Tells one region from another without showing the identity, which only its machines may
          know. In check mode, empty for a new region.
      type: str
      sample: 0f6f2e1c9a4b7d35
    chunks:
      description: The chunks that are declared.
      type: list
      elements: dict
      contains:
        index:
          description: Number of the chunk; also the peer id of its owner's device.
          type: int
          sample: 0
        owner:
          description: Name or UUID of the machine. Empty for an automatic chunk nobody has had yet.
          type: str
          sample: web1
        automatic:
          description: Whether the agent may give it to another machine.
          type: bool
          sample: false
        offset:
          description: Where it begins in the region, in bytes.
          type: int
          sample: 65536
        size:
          description: Bytes.
          type: int
          sample: 67108864
        ring_size:
          description: Bytes of each direction of a connection.
          type: int
          sample: 131072
        slots:
          description: How many connections that its owner opens it has room for.
          type: int
          sample: 254
diff:
  description: The region before and after.
  returned: in diff mode
  type: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region import group_id
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region_state import apply_region
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import (
    InputError,
    TcpSmError,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region_spec import RegionSpec
from ansible_collections.colocated.tcp_sm.plugins.module_utils._options import refuse_nul


def try_access(module: AnsibleModule, path: str) -> None:
    """Refuse permissions and accounts that cannot be, before anything is made."""
    if module.params["attributes"]:
        raise InputError(
            f"attributes: {module.params['attributes']!r} cannot be given to a region, for memory "
            "has few and a region needs none. Leave it out"
        )
    where = path if os.path.exists(path) else os.path.dirname(path)
    check, module.check_mode = module.check_mode, True
    attributes = module.load_file_common_arguments(module.params, where)
    module.set_fs_attributes_if_different(attributes, False)
    module.check_mode = check
    # Ansible takes any number.
    group_id(module.params["group"] or "")


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "path": {"type": "path"},
            "size": {"type": "str"},
            "host": {"type": "str"},
            "chunks": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "owner": {"type": "str", "required": True},
                    "size": {"type": "str"},
                    "ring_size": {"type": "str", "default": "128K"},
                },
            },
            "parts": {"type": "int"},
            "automatic": {
                "type": "dict",
                "options": {
                    "count": {"type": "int", "required": True},
                    "size": {"type": "str"},
                    "ring_size": {"type": "str", "default": "128K"},
                },
            },
            "allocate": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "force": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "present", ["size"])],
        add_file_common_args=True,
        supports_check_mode=True,
    )
    refuse_nul(module)
    try:
        spec = RegionSpec.parse(module.params)
        if spec.state == "present":
            try_access(module, spec.path)
        result = apply_region(spec, module.check_mode)
    except TcpSmError as error:
        module.fail_json(msg=str(error))
    for warning in result.warnings:
        module.warn(warning)
    diff = {"before": dict(result.before), "after": dict(result.after)}
    changed = result.changed
    if spec.state == "present" and os.path.exists(spec.path):
        attributes = module.load_file_common_arguments(module.params, spec.path)
        changed = module.set_fs_attributes_if_different(attributes, changed, diff)
    module.exit_json(changed=changed, region=result.data, diff=diff)


if __name__ == "__main__":
    main()
