# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Do definitions of libvirt change where they should, and nowhere else?"""

from __future__ import annotations

import difflib
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.domain import (
    Definition,
    DomainError,
    DomainSpec,
    Shmem,
    change_live,
    change_persistent,
    choose_addresses,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import InputError

# As libvirt prints it, shortened.
Q35 = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"/>
  </metadata>
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/>
    </controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x1'/>
    </controller>
    <controller type='pci' index='3' model='pcie-root-port'>
      <target chassis='3' port='0x8' hotplug='off'/>
    </controller>
    <interface type='bridge'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <shmem name='other' role='peer'>
      <model type='ivshmem-plain'/>
      <size unit='M'>4</size>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
    </shmem>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-no-hpet'/>
  </qemu:commandline>
</domain>"""
I440FX = Q35.replace("pc-q35-7.2", "pc-i440fx-7.2").replace("pcie-root'", "pci-root'")
I440FX = I440FX.replace("pcie-root-port", "pci-none")
FULL = Q35.replace("bus='0x00' slot='0x05'", "bus='0x02' slot='0x00'")
ONE_CPU = Q35.replace("<vcpu current='1'>2</vcpu>", "<vcpu>1</vcpu>")
MICROVM = Q35.replace("pc-q35-7.2", "microvm").replace("type='pci' index", "type='x' index")

PARAMS: dict[str, Any] = {
    "domain": "web1",
    "region": "lab",
    "state": "present",
    "scope": "both",
    "model": "doorbell",
    "server": None,
    "vectors": 1,
    "size": None,
    "chunk": None,
    "role": "peer",
    "replace": False,
    "timeout": 5.0,
    "uri": "qemu:///system",
}
PLAIN = {"model": "plain", "size": "16M"}


def parse(**params: Any) -> DomainSpec:
    return DomainSpec.parse({**PARAMS, **params})


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    return [line for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))]


def test_does_a_doorbell_have_its_server_and_no_size() -> None:
    change = change_persistent(Q35, parse(), None)
    assert changed_lines(change.before, change.after) == [
        '+    <shmem name="lab" role="peer">',
        '+      <model type="ivshmem-doorbell" />',
        '+      <server path="/run/tcp_sm/lab.sock" />',
        '+      <msi vectors="1" ioeventfd="on" />',
        "+    </shmem>",
    ]


def test_does_a_plain_device_have_its_size_and_no_server() -> None:
    change = change_persistent(Q35, parse(**PLAIN), None)
    assert changed_lines(change.before, change.after) == [
        '+    <shmem name="lab" role="peer">',
        '+      <model type="ivshmem-plain" />',
        '+      <size unit="M">16</size>',
        "+    </shmem>",
    ]


@pytest.mark.parametrize(
    "params",
    [{}, PLAIN, {"vectors": 4}, {"role": "master"}, {"server": "/a b/<c>&'.sock"}],
    ids=str,
)
def test_is_what_was_written_read_again_as_the_same(params: dict[str, Any]) -> None:
    spec = parse(**params)
    once = change_persistent(Q35, spec, None)
    again = change_persistent(once.after, spec, None)
    assert once.changed
    assert not again.changed
    assert Definition.parse(once.after).shmem("lab") == spec.device


@pytest.mark.parametrize("params", [{}, PLAIN, {**PLAIN, "chunk": 3}], ids=str)
def test_is_everything_as_before_after_removal(params: dict[str, Any]) -> None:
    once = change_persistent(Q35, parse(**params), None)
    gone = change_persistent(once.after, parse(state="absent"), None)
    assert gone.after == once.before


def test_do_foreign_parts_of_a_definition_survive() -> None:
    after = change_persistent(Q35, parse(), None).after
    assert "<libosinfo:libosinfo" in after
    assert '<qemu:arg value="-no-hpet" />' in after
    assert Definition.parse(after).shmem("other") == Shmem("other", "plain", size=4 << 20)


def test_does_libvirts_own_way_to_print_defaults_count_as_equal() -> None:
    printed = """<shmem name='lab'>
      <model type='ivshmem-doorbell'/>
      <server path='/run/tcp_sm/lab.sock'/>
      <msi ioeventfd='on'/>
    </shmem></devices>"""
    assert not change_persistent(Q35.replace("</devices>", printed), parse(), None).changed


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [("4", "M", 4 << 20), ("4", "MiB", 4 << 20), ("4096", "KiB", 4 << 20), ("1", "G", 1 << 30),
     ("4194304", "bytes", 4 << 20), ("4194304", None, 4 << 20)],
)  # fmt: skip
def test_are_sizes_read_in_every_unit(size: str, unit: str | None, expected: int) -> None:
    attribute = f" unit='{unit}'" if unit else ""
    text = f"<shmem name='x'><model type='ivshmem-plain'/><size{attribute}>{size}</size></shmem>"
    assert Shmem.parse(ET.fromstring(text)).size == expected


# fw_cfg


def test_is_a_plain_guest_told_its_chunk() -> None:
    change = change_persistent(Q35, parse(**PLAIN, chunk=3), None)
    assert Definition.parse(change.after).told == "region=lab chunk=3"
    lines = changed_lines(change.before, change.after)
    assert lines[:3] == [
        '+  <sysinfo type="fwcfg">',
        '+    <entry name="opt/colocated.tcp_sm">region=lab chunk=3</entry>',
        "+  </sysinfo>",
    ]


def test_does_a_new_chunk_replace_the_old_and_none_remove_it() -> None:
    first = change_persistent(Q35, parse(**PLAIN, chunk=3), None).after
    second = change_persistent(first, parse(**PLAIN, chunk=4), None).after
    assert Definition.parse(second).told == "region=lab chunk=4"
    assert second.count("opt/colocated.tcp_sm") == 1
    third = change_persistent(second, parse(**PLAIN), None).after
    assert Definition.parse(third).told == ""


def test_do_other_fw_cfg_entries_and_smbios_stay() -> None:
    info = """<sysinfo type='smbios'><oemStrings><entry>a</entry></oemStrings></sysinfo>
  <sysinfo type='fwcfg'>
    <entry name='opt/com.example'>theirs</entry>
  </sysinfo>
  <devices>"""
    text = Q35.replace("<devices>", info)
    with_ours = change_persistent(text, parse(**PLAIN, chunk=3), None)
    assert Definition.parse(with_ours.after).told == "region=lab chunk=3"
    gone = change_persistent(with_ours.after, parse(state="absent"), None)
    assert gone.after == with_ours.before
    assert "theirs" in gone.after


def test_is_a_guest_not_told_of_two_regions() -> None:
    first = change_persistent(Q35, parse(**PLAIN, chunk=3, region="first"), None).after
    with pytest.raises(DomainError, match="tells the guest of another region"):
        change_persistent(first, parse(**PLAIN, chunk=3), None)
    # One without a chunk is no contradiction, and removing it leaves the other's note.
    second = change_persistent(first, parse(**PLAIN), None).after
    gone = change_persistent(second, parse(state="absent"), None).after
    assert Definition.parse(gone).told == "region=first chunk=3"


# Places on the bus


def test_is_the_same_free_port_taken_in_both_definitions() -> None:
    live, persistent = Definition.parse(Q35), Definition.parse(Q35)
    first, second = choose_addresses(live, persistent)
    assert first == second
    assert first is not None
    assert first["bus"] == "0x02"


def test_are_ports_that_refuse_hotplug_left_alone() -> None:
    assert Definition.parse(Q35).free_ports() == [2]


def test_does_each_definition_get_a_port_of_its_own_where_none_is_free_in_both() -> None:
    other = Q35.replace("bus='0x01' slot='0x00'", "bus='0x02' slot='0x00'")
    live, persistent = choose_addresses(Definition.parse(Q35), Definition.parse(other))
    assert live is not None
    assert live["bus"] == "0x02"
    assert persistent is not None
    assert persistent["bus"] == "0x01"


def test_is_a_conventional_bus_left_to_libvirt() -> None:
    assert choose_addresses(Definition.parse(I440FX), Definition.parse(I440FX)) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [(FULL, "none of its PCIe ports is free"), (MICROVM, "machine type microvm takes no PCI")],
)
def test_is_a_running_machine_without_a_place_refused(text: str, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        choose_addresses(Definition.parse(text), Definition.parse(text))
    # At rest, libvirt adds what is missing.
    assert choose_addresses(None, Definition.parse(text)) == (None, None)


@pytest.mark.parametrize("change", [change_live, change_persistent])
def test_is_a_machine_whose_atomics_are_plain_refused(change: Any) -> None:
    with pytest.raises(DomainError, match="second CPU"):
        change(ONE_CPU, parse(), None)
    assert change(ONE_CPU.replace("type='qemu'", "type='kvm'", 1), parse(), None).changed
    assert not change(ONE_CPU, parse(state="absent"), None).changed


def test_does_a_changed_device_keep_its_address() -> None:
    first = change_persistent(Q35, parse(), choose_addresses(None, Definition.parse(Q35))[1])
    second = change_persistent(first.after, parse(vectors=2), None)
    assert Definition.parse(second.after).address("lab") == Definition.parse(first.after).address(
        "lab"
    )


# The running domain


def test_is_plugging_the_device_alone() -> None:
    address = choose_addresses(Definition.parse(Q35), None)[0]
    change = change_live(Q35, parse(), address)
    assert not change.detach
    device = ET.fromstring(change.attach)
    assert device.tag == "shmem"
    assert device.get("name") == "lab"
    assert device.find("address") is not None


def test_is_unplugging_what_libvirt_printed() -> None:
    with_it = change_live(Q35, parse(), None).after
    change = change_live(with_it, parse(state="absent"), None)
    assert ET.fromstring(change.detach).get("name") == "lab"
    assert not change.attach


def test_is_a_device_in_use_exchanged_only_when_allowed() -> None:
    with_it = change_live(Q35, parse(), None).after
    with pytest.raises(DomainError, match="vectors is 1 instead of 2") as refused:
        change_live(with_it, parse(vectors=2), None)
    assert "replace=true" in str(refused.value)
    change = change_live(with_it, parse(vectors=2, replace=True), None)
    assert change.detach
    assert 'vectors="2"' in change.attach


def test_is_nothing_done_where_nothing_differs() -> None:
    with_it = change_live(Q35, parse(), None).after
    assert not change_live(with_it, parse(), None).changed
    assert not change_live(Q35, parse(state="absent"), None).changed


# Input


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"region": "../etc"}, "region's name '../etc' cannot be right"),
        ({"region": ""}, "region's name"),
        ({"model": "plain"}, "model=plain needs size"),
        ({"model": "plain", "size": "100M"}, "size=100M cannot be right"),
        ({"model": "plain", "size": "512K"}, "power of two from 1M"),
        ({"model": "plain", "size": "big"}, "'big' is not a size"),
        ({"vectors": 0}, "vectors=0"),
        ({"vectors": 65}, "1 to 64"),
        ({**PLAIN, "chunk": 256}, "chunk=256"),
        ({**PLAIN, "chunk": -1}, "chunk=-1"),
        ({"chunk": 1}, "chunk is for model=plain"),
    ],
    ids=str,
)
def test_is_bad_input_refused_with_a_reason(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse(**params)


def test_does_removal_ask_for_the_name_alone() -> None:
    assert parse(state="absent", model="plain").device.name == "lab"


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/x", True),
        ("test:///default", True),
        ("qemu+ssh://root@host/system", False),
    ],
)
def test_is_a_remote_hypervisor_known_as_such(uri: str, local: bool) -> None:
    assert parse(uri=uri).local is local
