#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a region's device in a libvirt domain."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ivshmem_domain
short_description: The IVSHMEM device of a region in a libvirt domain
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Puts the device through which a virtual machine reaches a region into its libvirt domain, or
    takes it out, while the domain runs and in its persistent definition.
  - A domain has at most one device of a region. It is found by the region's name; devices of
    other regions and everything else in the definition are left alone.
  - On a PCIe machine (q35), a domain that runs needs a free C(pcie-root-port), and behind it
    address space for all of the region. QEMU leaves 2 MiB there, and the kernel of the guest then
    says C(can't assign; no space). Where regions are to be plugged in, start QEMU with C(-global
    pcie-root-port.pref64-reserve=1G) (C(qemu:commandline) in libvirt's definition). With the device
    in the definition at the start, nothing is needed.
  - A domain without KVM (type V(qemu)) must have room for a second CPU, such as C(<vcpu
    current='1'>2</vcpu>), or it is refused. QEMU's emulator turns the atomic instructions of a
    machine with one CPU into plain ones, and other machines' changes of the region get lost.
  - Connections that use the region are lost when the device is unplugged under them. Drain the
    guest first.
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status prediction without modifying the
      target.
    details:
      - Where the region or its server is missing, check mode warns, since an earlier task of the
        same run may make it.
  diff_mode:
    support: full
    description: Will return details on what has changed (or possibly needs changing in
      C(check_mode)), when in diff mode.
    details:
      - There is one difference for the running domain and one for its persistent definition.
  idempotent:
    support: full
    description: When run twice in a row outside check mode, with the same arguments, the second
      invocation indicates no change.
  platform:
    support: full
    description: Target operating system that can be operated against.
    platforms: linux
requirements:
  - libvirt-python on the target (Debian package C(python3-libvirt))
  - libvirt 6.6 or newer with the QEMU driver
  - Python 3.11 or newer on the target
options:
  domain:
    description: Name or UUID of the domain.
    type: str
    required: true
    aliases: [name]
  region:
    description: Name of the region, also of the device.
    type: str
    required: true
  state:
    description:
      - With V(present), the domain has the device.
      - With V(absent), it has none of this region.
    type: str
    choices: [present, absent]
    default: present
  scope:
    description:
      - With V(both), the domain is changed as it runs, if it does, and for its next start, unless
        it is transient.
      - V(live) and V(persistent) are for one of the two.
    type: str
    choices: [both, live, persistent]
    default: both
  model:
    description:
      - V(doorbell) is served by the agent, which tells the guest its chunk and lets guests wake
        each other.
      - V(plain) needs no server. Guests look for work from time to time instead, and one has to
        be told its chunk, see O(chunk). The region must be in C(/dev/shm).
    type: str
    choices: [doorbell, plain]
    default: doorbell
  server:
    description:
      - Path of the server's socket, for a doorbell.
      - By default, C(/run/tcp_sm/REGION.sock).
    type: path
  vectors:
    description: Interrupt vectors of a doorbell. At least as many as its server gives.
    type: int
    default: 1
  size:
    description:
      - Size of the region, in bytes or with a unit such as V(256M).
      - Required for V(plain). The server of a doorbell tells it.
    type: str
  chunk:
    description:
      - Number of the chunk, for a plain device. It is put into the definition as QEMU's fw_cfg
        file C(opt/colocated.tcp_sm), which only the hypervisor can write, and reaches the guest
        at its next start.
      - Without it, the guest's module must get the number as a parameter.
    type: int
  role:
    description:
      - What libvirt is to think of the device when the domain is migrated live. The content of a
        region means nothing on another host.
      - With V(peer), libvirt refuses to migrate as long as the device is there. Drain the guest,
        take the device out, migrate, and put the other host's in.
      - With V(master), libvirt migrates, and copies the memory of the whole region to a file of
        that name on the other host. Connections in it break. This is for domains that must remain
        migratable at that price.
    type: str
    choices: [peer, master]
    default: peer
  replace:
    description:
      - Whether the device of a running domain that differs from what is wanted is unplugged and
        plugged in again.
      - Otherwise the module fails and names the difference.
    type: bool
    default: false
  timeout:
    description: Seconds to wait until the guest lets go of an unplugged device.
    type: float
    default: 30
  uri:
    description: Of libvirt.
    type: str
    default: qemu:///system
seealso:
  - module: colocated.tcp_sm.ivshmem_region
  - module: colocated.tcp_sm.ivshmem_chunk
  - name: Shared memory device
    description: Of libvirt's domain format.
    link: https://libvirt.org/formatdomain.html#shared-memory-device
"""

EXAMPLES = r"""
- name: Give a virtual machine the region that the agent serves
  colocated.tcp_sm.ivshmem_domain:
    domain: web1
    region: tenant1

- name: From the next start on
  colocated.tcp_sm.ivshmem_domain:
    domain: web1
    region: tenant1
    scope: persistent

- name: A chunk for a guest without a doorbell
  colocated.tcp_sm.ivshmem_chunk:
    region: tenant2
    owner: db1
    size: 64M
  register: chunk

- name: Its device
  colocated.tcp_sm.ivshmem_domain:
    domain: db1
    region: tenant2
    model: plain
    size: 256M
    chunk: "{{ chunk.chunk.index }}"

- name: Before a live migration, after the guest was drained
  colocated.tcp_sm.ivshmem_domain:
    domain: web1
    region: tenant1
    state: absent
"""

RETURN = r"""
domain:
  description: The domain.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: web1
    uuid:
      description: Its UUID.
      type: str
      sample: 5f1e2a5c-7a53-4b8c-8f39-0a1f6c1f2d3e
    machine:
      description: Its machine type.
      type: str
      sample: pc-q35-7.2
    running:
      description: Whether it runs.
      type: bool
      sample: true
    persistent:
      description: Whether it has a definition that outlives it.
      type: bool
      sample: true
live:
  description:
    - The device of the running domain afterwards; in check mode, as it would be.
    - Empty without a device, or where O(scope) leaves the running domain out.
  returned: success
  type: dict
  contains: &device
    name:
      description: Name of the region.
      type: str
      sample: tenant1
    model:
      description: The model.
      type: str
      sample: doorbell
    server:
      description: Path of the server's socket.
      type: str
      sample: /run/tcp_sm/tenant1.sock
    vectors:
      description: Interrupt vectors; 0 for a plain device.
      type: int
      sample: 1
    size:
      description: Bytes; 0 for a doorbell.
      type: int
      sample: 0
    role:
      description: Role in a migration.
      type: str
      sample: peer
    address:
      description: PCI address as libvirt counts buses. The guest may count otherwise.
      type: str
      sample: 0000:0b:00.0
    told:
      description: What the guest is told of its chunk through fw_cfg.
      type: str
      sample: region=tenant2 chunk=1
persistent:
  description: The same for the definition that the next start uses.
  returned: success
  type: dict
  contains: *device
diff:
  description: The definitions that differ.
  returned: in diff mode
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import libvirt as libvirt_io
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.domain import DomainSpec
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import TcpSmError
from ansible_collections.colocated.tcp_sm.plugins.module_utils._options import refuse_nul


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "domain": {"type": "str", "required": True, "aliases": ["name"]},
            "region": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "scope": {
                "type": "str",
                "choices": ["both", "live", "persistent"],
                "default": "both",
            },
            "model": {"type": "str", "choices": ["doorbell", "plain"], "default": "doorbell"},
            "server": {"type": "path"},
            "vectors": {"type": "int", "default": 1},
            "size": {"type": "str"},
            "chunk": {"type": "int"},
            "role": {"type": "str", "choices": ["peer", "master"], "default": "peer"},
            "replace": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 30},
            "uri": {"type": "str", "default": "qemu:///system"},
        },
        supports_check_mode=True,
    )
    if libvirt_io.IMPORT_ERROR:
        module.fail_json(
            msg=missing_required_lib(
                "libvirt-python", url="https://pypi.org/project/libvirt-python"
            ),
            exception=libvirt_io.IMPORT_ERROR,
        )
    refuse_nul(module)
    try:
        result = libvirt_io.apply_domain(DomainSpec.parse(module.params), module.check_mode)
    except TcpSmError as error:
        module.fail_json(msg=str(error))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=result.changed,
        domain=result.domain,
        live=result.live,
        persistent=result.persistent,
        **({"diff": result.diff} if module._diff else {}),
    )


if __name__ == "__main__":
    main()
