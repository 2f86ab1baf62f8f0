#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the part of a region that one virtual machine owns."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ivshmem_chunk
short_description: The part of a region that one virtual machine owns
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Declares, changes and removes the chunk of a virtual machine in a region that
    M(colocated.tcp_sm.ivshmem_region) made.
  - Connections that a machine opens use memory of its own chunk. How many fit follows from the size
    of the chunk and of the rings. Those that do not fit stay on TCP.
  - A running agent sees a new chunk at once, it need not be restarted.
  - The chunk of a machine that has the region mapped is not touched, the module fails instead. When
    memory that other machines had connections in gets another use, the module first waits until
    they have let go.
extends_documentation_fragment:
  - colocated.tcp_sm.ivshmem
options:
  region:
    description: The region's name.
    type: str
    required: true
  path:
    description:
      - The region's file.
      - By default, the file of that name in C(/dev/shm).
    type: path
  owner:
    description:
      - The machine, by the name or the UUID (in lower case) that QEMU was started with. This is
        what libvirt calls the domain's name and UUID.
    type: str
    required: true
  size:
    description:
      - Size in bytes, or with a unit such as V(64M). A multiple of 4096 bytes.
      - Required with O(state=present).
    type: str
  ring_size:
    description:
      - Bytes of each direction of a connection, a power of two from V(4K) to V(4M).
      - Larger rings carry streams faster. Smaller ones leave room for more connections.
    type: str
    default: 128K
  file_owner:
    description:
      - User that the region's file may belong to, besides root and the user that the module runs
        as. A file of anybody else is refused. As the option owner of
        M(colocated.tcp_sm.ivshmem_region).
    type: str
  state:
    description:
      - With V(present), the machine has a chunk of this geometry.
      - With V(absent), it has none.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: colocated.tcp_sm.ivshmem_region
"""

EXAMPLES = r"""
- name: A chunk for a machine
  colocated.tcp_sm.ivshmem_chunk:
    region: tenant1
    owner: web1
    size: 64M

- name: Room for many small connections
  colocated.tcp_sm.ivshmem_chunk:
    region: tenant1
    owner: cache1
    size: 128M
    ring_size: 16K

- name: Take it back
  colocated.tcp_sm.ivshmem_chunk:
    region: tenant1
    owner: web1
    state: absent
"""

RETURN = r"""
chunk:
  description:
    - The chunk afterwards; in check mode, as it would be. Empty with O(state=absent).
  returned: success
  type: dict
  contains:
    index:
      description: Number of the chunk; also the peer id of its owner's device.
      type: int
      sample: 0
    owner:
      description: Name or UUID of the machine.
      type: str
      sample: web1
    automatic:
      description: Whether the agent may give it to another machine; not if it was declared.
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
  description: The chunk before and after.
  returned: in diff mode
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.region_state import apply_chunk
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.region_spec import ChunkSpec
from ansible_collections.colocated.tcp_sm.plugins.module_utils._options import refuse_nul


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "region": {"type": "str", "required": True},
            "path": {"type": "path"},
            "owner": {"type": "str", "required": True},
            "size": {"type": "str"},
            "ring_size": {"type": "str", "default": "128K"},
            "file_owner": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "lock_timeout": {"type": "int", "default": 30},
        },
        required_if=[("state", "present", ["size"])],
        supports_check_mode=True,
    )
    refuse_nul(module)
    try:
        result = apply_chunk(ChunkSpec.parse(module.params), module.check_mode)
    except TcpSmError as error:
        module.fail_json(msg=str(error))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=result.changed,
        chunk=result.data,
        diff={"before": result.before, "after": result.after},
    )


if __name__ == "__main__":
    main()
