# Copyright (c) 2026, the colocated.tcp_sm authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a domain changed as planned, or not at all? libvirt is a stand-in that keeps two definitions;
its own test driver, which knows no hot-plugging, is used where it can be."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.colocated.tcp_sm.plugins.module_utils._io import libvirt as io
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.domain import (
    Definition,
    DomainError,
    DomainSpec,
)
from ansible_collections.colocated.tcp_sm.plugins.module_utils._model.errors import MissingError

XML = """<domain type='qemu'>
  <name>web1</name>
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
  </os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='9' model='pcie-root-port'/>
  </devices>
</domain>"""
SECRET = "<graphics type='vnc' passwd='secret'/></devices>"


class FakeError(Exception):
    """libvirtError."""

    def get_error_message(self) -> str:
        return str(self)


class FakeDomain:
    """A domain with a guest that lets go of a device when asked often enough."""

    def __init__(self, running: bool = True, lasting: bool = True, patience: int = 1) -> None:
        self.running, self.lasting, self.patience = running, lasting, patience
        self.live, self.persistent = XML, XML
        self.calls: list[str] = []
        self.refuse = ""

    def name(self) -> str:
        return "web1"

    def UUIDString(self) -> str:
        return "5f1e2a5c-7a53-4b8c-8f39-0a1f6c1f2d3e"

    def isActive(self) -> int:
        return int(self.running)

    def isPersistent(self) -> int:
        return int(self.lasting)

    def connect(self) -> FakeDomain:
        return self

    def XMLDesc(self, flags: int) -> str:
        text = self.persistent if flags & 2 or not self.running else self.live
        return (
            text
            if flags & 1
            else text.replace(" passwd='secret'", "").replace(' passwd="secret"', "")
        )

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.refuse and what.startswith(self.refuse):
            raise FakeError(f"no {what}.")

    def defineXML(self, text: str) -> None:
        self._call("define")
        self.persistent = text

    def attachDeviceFlags(self, text: str, flags: int) -> None:
        assert flags == 1
        self._call("attach")
        root = ET.fromstring(self.live)
        devices = root.find("devices")
        assert devices is not None
        devices.append(ET.fromstring(text))
        self.live = ET.tostring(root, encoding="unicode")

    def detachDeviceFlags(self, text: str, flags: int) -> None:
        assert flags == 1
        self._call("detach")
        self.patience -= 1
        if self.patience > 0:
            return
        definition = Definition.parse(self.live)
        definition.remove_shmem(ET.fromstring(text).get("name", ""))
        self.live = definition.text()


@pytest.fixture(autouse=True)
def fake_libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    names = SimpleNamespace(
        libvirtError=FakeError,
        VIR_DOMAIN_XML_SECURE=1,
        VIR_DOMAIN_XML_INACTIVE=2,
        VIR_DOMAIN_AFFECT_LIVE=1,
    )
    monkeypatch.setattr(io, "libvirt", names)
    monkeypatch.setattr(io, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(io, "POLL_SECONDS", 0.01)


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    path = tmp_path / "lab.sock"
    path.touch()
    return str(path)


def make_spec(server: str = "/nonexistent/lab.sock", **params: Any) -> DomainSpec:
    defaults: dict[str, Any] = {
        "domain": "web1",
        "region": "lab",
        "state": "present",
        "scope": "both",
        "model": "doorbell",
        "server": server,
        "vectors": 1,
        "size": None,
        "chunk": None,
        "role": "peer",
        "replace": False,
        "timeout": 1.0,
        "uri": "qemu:///system",
    }
    return DomainSpec.parse({**defaults, **params})


def apply(domain: FakeDomain, spec: DomainSpec, check: bool = False) -> io.DomainResult:
    class Connection:
        def lookupByName(self, name: str) -> FakeDomain:
            if name != "web1":
                raise FakeError("no such domain")
            return domain

        lookupByUUIDString = lookupByName

        def listAllDomains(self) -> list[FakeDomain]:
            return [domain]

        def getURI(self) -> str:
            return "qemu:///system"

    @contextlib.contextmanager
    def connect(_uri: str) -> Iterator[Connection]:
        yield Connection()

    return io.apply_domain(spec, check, connect)


def devices(domain: FakeDomain) -> tuple[bool, bool]:
    return tuple("<shmem" in text for text in (domain.live, domain.persistent))  # type: ignore


def test_is_a_running_domain_changed_now_and_for_later(socket_path: str) -> None:
    domain = FakeDomain()
    result = apply(domain, make_spec(socket_path))
    assert result.changed
    assert devices(domain) == (True, True)
    assert result.live == result.persistent
    assert result.live is not None
    assert result.live["address"] == "0000:09:00.0"
    assert [one["before_header"] for one in result.diff] == ["web1 (live)", "web1 (persistent)"]
    assert all("<shmem" in one["after"] and "<shmem" not in one["before"] for one in result.diff)
    domain.calls.clear()
    again = apply(domain, make_spec(socket_path))
    assert not again.changed
    assert again.diff == []
    assert domain.calls == []


def test_does_check_mode_say_the_same_and_do_nothing(socket_path: str) -> None:
    domain = FakeDomain()
    predicted = apply(domain, make_spec(socket_path), check=True)
    assert domain.calls == []
    assert devices(domain) == (False, False)
    done = apply(domain, make_spec(socket_path))
    assert (predicted.changed, predicted.live, predicted.persistent, predicted.diff) == (
        done.changed,
        done.live,
        done.persistent,
        done.diff,
    )


def test_is_a_domain_at_rest_changed_for_later_only() -> None:
    domain = FakeDomain(running=False)
    result = apply(domain, make_spec())
    assert result.changed
    assert domain.calls == ["define"]
    assert result.live is None


@pytest.mark.parametrize(
    ("scope", "expected"), [("live", (True, False)), ("persistent", (False, True))]
)
def test_does_scope_leave_the_other_definition_alone(
    scope: str, expected: tuple[bool, bool], socket_path: str
) -> None:
    domain = FakeDomain()
    result = apply(domain, make_spec(socket_path, scope=scope))
    assert devices(domain) == expected
    assert (result.live is not None, result.persistent is not None) == expected


def test_is_a_transient_domain_changed_now_only(socket_path: str) -> None:
    domain = FakeDomain(lasting=False)
    assert apply(domain, make_spec(socket_path)).changed
    assert domain.calls == ["attach"]


def test_are_passwords_kept_and_not_shown(socket_path: str) -> None:
    domain = FakeDomain()
    domain.persistent = XML.replace("</devices>", SECRET)
    result = apply(domain, make_spec(socket_path))
    assert 'passwd="secret"' in domain.persistent
    assert "secret" not in str(result)


def test_does_removal_wait_until_the_guest_lets_go(socket_path: str) -> None:
    domain = FakeDomain(patience=3)
    apply(domain, make_spec(socket_path))
    result = apply(domain, make_spec(state="absent"))
    assert result.changed
    assert devices(domain) == (False, False)
    assert domain.calls.count("detach") == 3
    # The guest first, so that a refusal leaves the definition as it is.
    assert domain.calls[-2:] == ["detach", "define"]
    assert not apply(domain, make_spec(state="absent")).changed


@pytest.mark.parametrize(("kind", "warned"), [("qemu", True), ("kvm", False)])
def test_is_it_said_that_qemu_goes_on_polling(kind: str, warned: bool, socket_path: str) -> None:
    domain = FakeDomain()
    apply(domain, make_spec(socket_path))
    domain.live = domain.live.replace('type="qemu"', f'type="{kind}"')
    result = apply(domain, make_spec(state="absent"))
    assert ("keeps a CPU busy" in str(result.warnings)) is warned


def test_is_the_definition_kept_when_the_guest_holds_on(socket_path: str) -> None:
    domain = FakeDomain(patience=10**9)
    apply(domain, make_spec(socket_path))
    with pytest.raises(DomainError, match="did not let go of the device in"):
        apply(domain, make_spec(state="absent", timeout=0.2))
    assert devices(domain) == (True, True)


def test_is_a_refused_hotplug_taken_back(socket_path: str) -> None:
    domain = FakeDomain()
    domain.refuse = "attach"
    with pytest.raises(DomainError) as refused:
        apply(domain, make_spec(socket_path))
    assert "Cannot attach region lab to web1 while it runs: no attach." in str(refused.value)
    assert "use scope=persistent" in str(refused.value)
    assert domain.persistent == XML
    assert devices(domain) == (False, False)


def test_is_a_device_put_back_when_its_successor_is_refused(socket_path: str) -> None:
    domain = FakeDomain()
    apply(domain, make_spec(socket_path))
    before = Definition.parse(domain.live).shmem("lab")

    plugged = domain.attachDeviceFlags

    def refuse_new(text: str, flags: int) -> None:
        if 'vectors="2"' in text:
            raise FakeError("too many")
        plugged(text, flags)

    domain.attachDeviceFlags = refuse_new  # type: ignore[method-assign]
    with pytest.raises(DomainError, match="too many"):
        apply(domain, make_spec(socket_path, vectors=2, replace=True))
    assert Definition.parse(domain.live).shmem("lab") == before
    assert Definition.parse(domain.persistent).shmem("lab") == before


def test_is_the_running_domain_left_alone_when_the_definition_is_refused(socket_path: str) -> None:
    domain = FakeDomain()
    domain.refuse = "define"
    with pytest.raises(DomainError, match="libvirt refuses the new definition: no define"):
        apply(domain, make_spec(socket_path))
    assert domain.calls == ["define"]


@pytest.mark.parametrize(
    ("domain", "params", "message"),
    [
        (FakeDomain(), {"domain": "web2"}, r"Cannot find domain web2 .*domains \(web1\)"),
        (FakeDomain(running=False), {"scope": "live"}, "it does not run. Start it"),
        (FakeDomain(lasting=False), {"scope": "persistent"}, "it is transient"),
    ],
    ids=["unknown", "stopped", "transient"],
)
def test_is_the_impossible_refused_with_advice(
    domain: FakeDomain, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(DomainError, match=message):
        apply(domain, make_spec(**params))
    assert domain.calls == []


@pytest.mark.parametrize(
    ("domain", "scope"),
    [(FakeDomain(running=False), "live"), (FakeDomain(lasting=False), "persistent")],
    ids=["stopped", "transient"],
)
def test_is_nothing_taken_out_of_a_definition_that_is_not_there(
    domain: FakeDomain, scope: str
) -> None:
    result = apply(domain, make_spec(state="absent", scope=scope))
    assert (result.changed, result.live, result.persistent) == (False, None, None)
    assert domain.calls == []


# The memory behind the device


def test_is_a_missing_server_an_error_and_a_warning_in_check_mode() -> None:
    domain = FakeDomain()
    with pytest.raises(MissingError, match=r"/nonexistent/lab\.sock is not there. Start the agent"):
        apply(domain, make_spec())
    assert domain.calls == []
    result = apply(domain, make_spec(), check=True)
    assert result.changed
    assert "/nonexistent/lab.sock" in result.warnings[0]


def test_does_the_next_start_need_no_server_now() -> None:
    assert apply(FakeDomain(), make_spec(scope="persistent")).changed


def test_are_paths_of_another_machine_not_looked_for() -> None:
    assert apply(FakeDomain(), make_spec(uri="qemu+ssh://there/system")).changed


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no such file"), (4 << 20, "has 4M and size is 16M")]
)
def test_is_a_plain_device_without_its_region_refused(
    content: int | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "SHM", str(tmp_path))
    if content:
        (tmp_path / "lab").write_bytes(bytes(content))
    domain = FakeDomain()
    with pytest.raises((DomainError, MissingError), match=message):
        apply(domain, make_spec(model="plain", size="16M"))
    assert domain.calls == []


def test_is_it_said_that_a_running_guest_learns_its_chunk_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "SHM", str(tmp_path))
    (tmp_path / "lab").write_bytes(bytes(1 << 20))
    domain = FakeDomain()
    result = apply(domain, make_spec(model="plain", size="1M", chunk=7))
    assert "learns its chunk 7 from fw_cfg at its next start" in result.warnings[0]
    assert result.persistent is not None
    assert result.persistent["told"] == "region=lab chunk=7"


# The real library


@pytest.fixture
def real_libvirt(monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("libvirt")
    monkeypatch.setattr(io, "libvirt", library)
    return library


def test_does_libvirt_take_what_is_defined(real_libvirt: Any) -> None:
    # The test driver keeps its domains as long as the connection.
    connection = real_libvirt.open("test:///default")

    @contextlib.contextmanager
    def connect(_uri: str) -> Iterator[Any]:
        yield connection

    spec = make_spec(domain="test", scope="persistent", model="plain", size="16M", uri="test+x://y")
    assert io.apply_domain(spec, connect=connect).changed
    assert not io.apply_domain(spec, connect=connect).changed
    text = connection.lookupByName("test").XMLDesc(real_libvirt.VIR_DOMAIN_XML_INACTIVE)
    device = ET.fromstring(text).find("devices/shmem[@name='lab']")
    assert device is not None
    assert device.find("size") is not None
    gone = make_spec(domain="test", scope="persistent", state="absent", uri="test+x://y")
    assert io.apply_domain(gone, connect=connect).changed
    assert "<shmem" not in connection.lookupByName("test").XMLDesc(0)


def test_is_an_unreachable_libvirt_a_message(real_libvirt: Any) -> None:
    spec = make_spec(uri="qemu+unix:///system?socket=/nonexistent/sock")
    with pytest.raises(DomainError, match="Cannot connect to libvirt at") as refused:
        io.apply_domain(spec)
    assert "/nonexistent/sock" in str(refused.value)


def test_does_libvirt_refuse_an_unknown_domain(real_libvirt: Any) -> None:
    with pytest.raises(DomainError, match=r"Cannot find domain web9 .*\(test\)"):
        io.apply_domain(make_spec(domain="web9", uri="test:///default"))
