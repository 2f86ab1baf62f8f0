#!/usr/bin/python
# Copyright (c) 2026, the colocated.tcp_sm authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: what a virtual machine sees of its region, and its drain."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ivshmem_guest
short_description: What a virtual machine sees of its region, and its drain
version_added: 0.1.0
author:
  - the colocated.tcp_sm authors (@colocated)
description:
  - Runs in a virtual machine. Tells about its IVSHMEM devices, the kernel module C(tcp_sm), the BPF
    programs, and, where connections cannot use the ring channel, why and what to do.
  - With O(state=drained), sends all connections of the rings back to TCP, where they go on, and
    refuses new ones. Do so before the device is detached, the machine is migrated, or the module
    is exchanged.
  - Without O(state), only looks.
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    description: Says what would be drained, and drains nothing.
  diff_mode:
    support: full
    description: Shows the state of each device, and the connections that a drain has left.
  idempotent:
    support: full
    description: A second run changes nothing, unless connections came meanwhile.
  platform:
    support: full
    platforms: linux
    description: Linux, as root.
requirements:
  - root
  - python >= 3.11
  - libbpf.so.1 to tell about the programs (Debian package C(libbpf1))
  - mokutil to tell about a certificate where Secure Boot is on
options:
  state:
    description:
      - With V(present), connections may use the devices' regions.
      - With V(drained), none does, and new ones are refused.
    type: str
    choices: [present, drained]
  device:
    description:
      - The PCI address of the device that O(state) is about, as in V(0000:01:00.0).
      - By default, all that the module drives.
    type: str
  timeout:
    description: Seconds to wait until applications have read what is in the rings.
    type: int
    default: 10
  certificate:
    description:
      - The certificate, on the machine, of the key by which modules are signed. Where the kernel
        takes signed modules only, C(mokutil) is asked whether it is enrolled.
      - By default, that of the key which DKMS makes.
    type: path
    default: /var/lib/dkms/mok.pub
  name:
    description: The name of the installation, as in role C(guest).
    type: str
    default: tcp_sm
  bpffs:
    description: Where the BPF file system is mounted.
    type: path
    default: /sys/fs/bpf
seealso:
  - module: colocated.tcp_sm.tcp_sm_info
  - module: colocated.tcp_sm.bpf_object
"""

EXAMPLES = r"""
- name: Look
  colocated.tcp_sm.ivshmem_guest:
  register: found

- name: Stop where connections cannot use the ring channel
  ansible.builtin.assert:
    that: found.guest.works
    fail_msg: "{{ found.guest.missing }}"

- name: Send all connections back to TCP
  colocated.tcp_sm.ivshmem_guest:
    state: drained
    timeout: 30
"""

RETURN = r"""
guest:
  description: What was found; after a change, what is there then.
  returned: success
  type: dict
  contains:
    kernel:
      description: The release of the running kernel.
      type: str
      sample: 6.12.57+deb13-cloud-amd64
    works:
      description: Whether nothing is missing.
      type: bool
    missing:
      description: What keeps new connections on TCP.
      type: list
      elements: dict
      contains:
        feature:
          description: A short name.
          type: str
          sample: device
        why:
          description: What was found.
          type: str
        fix:
          description: What to do.
          type: str
    limits:
      description: What is not as role C(guest) leaves it, and stops nothing, in the same form.
      type: list
      elements: dict
    build:
      description: What a build of the module by DKMS lacks on this machine, in the same form.
      type: list
      elements: dict
    module:
      description: The kernel module.
      type: dict
      contains:
        loaded:
          description: Whether it is loaded.
          type: bool
        version:
          description: The version of the one that is loaded.
          type: str
        srcversion:
          description: The kernel's digest of its source.
          type: str
        outdated:
          description: Whether another build is loaded than the one that is installed.
          type: bool
        parameters:
          description: Its parameters.
          type: dict
          sample: {"chunk": "-1", "spin_us": "0"}
        dkms_versions:
          description: The versions that DKMS has.
          type: list
          elements: str
        dkms_installed:
          description: The version that DKMS has installed for the running kernel.
          type: str
    devices:
      description: The IVSHMEM devices by PCI address.
      type: list
      elements: dict
      contains:
        address:
          description: The PCI address.
          type: str
          sample: "0000:01:00.0"
        driver:
          description: The driver that has it.
          type: str
          sample: tcp_sm
        size:
          description: Bytes of shared memory.
          type: int
        region:
          description: The region's name. Like all that follows, null where the module does not
            drive the device.
          type: str
        provider:
          description: V(ivshmem-doorbell), which interrupts, or V(ivshmem-plain), which is polled.
          type: str
        chunk:
          description: The number of the machine's own chunk.
          type: int
        epoch:
          description: Which life of the machine it is.
          type: int
        slots:
          description: How many connections the chunk has room for.
          type: int
        ring_size:
          description: Bytes that a ring holds, one in each direction of a connection.
          type: int
        connections:
          description: Connections that use rings.
          type: int
        slots_busy:
          description: Slots that are taken.
          type: int
        slots_lingering:
          description: Of these, slots that the other end still reads.
          type: int
        opened:
          description: Connections that used rings since the module took the device.
          type: int
        aborted:
          description: Of these, those that were reset because the other end was lost or broken.
          type: int
        ready:
          description: Whether new connections may use the region already. Other machines let go of
            connections to a former life of this one first.
          type: bool
        closing:
          description: Whether it is drained.
          type: bool
        programs:
          description: Whether BPF programs carry the data, and not the module's own code.
          type: bool
    programs:
      description: The BPF programs.
      type: dict
      contains:
        ring:
          description: The state of the data path's object, as M(colocated.tcp_sm.tcp_sm_info)
            names it.
          type: str
          sample: attached
        handshake:
          description: The state of the object that offers rings to connections.
          type: str
          sample: attached
        mode:
          description: V(on), V(pass) or V(drain); null where nothing is loaded.
          type: str
diff:
  description: The state of each device.
  returned: in diff mode
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.colocated.tcp_sm.plugins.module_utils._answer import answer
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io.guest import (
    STATES,
    GuestSpec,
    apply_guest,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.guest import (
    DKMS_CERTIFICATE,
)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(STATES)},
            "device": {"type": "str"},
            "timeout": {"type": "int", "default": 10},
            "certificate": {"type": "path", "default": DKMS_CERTIFICATE},
            "name": {"type": "str", "default": "tcp_sm"},
            "bpffs": {"type": "path", "default": "/sys/fs/bpf"},
        },
        supports_check_mode=True,
    )
    spec = GuestSpec(**{key: value for key, value in module.params.items() if value is not None})
    answer(module, lambda: apply_guest(spec, module.check_mode), "guest")


if __name__ == "__main__":
    main()
