"""What a recovered machine is to be: what is refused, and what goes over the wire and back."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondsite.base.errors import InvalidInput
from secondsite.model import recovered
from secondsite.model.recovered import (
    Addressing,
    DiskBus,
    Firmware,
    HostsEntry,
    Injection,
    NicSettings,
    RecoveredSettings,
)

MAC = "52:54:00:aa:00:01"
STATIC = {"nic": "1", "addressing": "static", "addresses": ["192.0.2.7/24"]}


def nic(**more: Any) -> dict[str, Any]:
    return {"nics": [{**STATIC, **more}], "injection": "agent"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"nmae": "shop"}, "nmae"),
        ({"name": "a/b"}, "slash"),
        ({"name": ""}, "length"),
        ({"cpus": 0}, ">= 1"),
        ({"cpus": "2"}, "got `str`"),
        ({"memoryBytes": 1024}, ">="),
        ({"memoryBytes": 64 * 1024 * 1024 + 1}, "MiB"),
        ({"machineType": "q35; rm"}, "machine type"),
        ({"diskBus": "floppy"}, "floppy"),
        ({"bootOrder": ["vda", "vda"]}, "twice"),
        ({"bootOrder": ["/dev/vda"]}, "boot order"),
        ({"nics": [{"nic": "0"}]}, "neither a place"),
        ({"nics": [{"nic": "eth0"}]}, "neither a place"),
        ({"nics": [{"nic": "1"}, {"nic": "1"}]}, "twice"),
        ({"nics": [{"nic": "1", "mac": MAC}, {"nic": "2", "mac": MAC.upper()}]}, "one hardware address"),
        ({"nics": [{"nic": "1", "mac": "01:00:5e:00:00:01"}]}, "no address an adapter can have"),
        ({"nics": [{"nic": "1", "mac": "same"}]}, "neither keep, new"),
        ({"nics": [{"nic": "1", "addresses": ["192.0.2.7/24"]}]}, "with addressing static only"),
        ({"nics": [STATIC]}, "injection none"),
        ({"injection": "agent"}, "nothing to bring"),
        ({"driveBus": "scsi"}, "adds no drive"),
        (nic(addresses=[]), "needs an address"),
        (nic(addresses=["192.0.2.7"]), "with its prefix"),
        (nic(addresses=["192.0.2.7/33"]), "192.0.2.7/33"),
        (nic(addresses=["192.0.2.0/24"]), "the network itself"),
        (nic(addresses=["192.0.2.255/24"]), "the network itself"),
        (nic(addresses=["224.0.0.1/24"]), "no address a machine can have"),
        (nic(addresses=["fe80::1%eth0/64"]), "with its prefix"),
        (nic(addresses=["192.0.2.7/24", "192.0.2.7/25"]), "given twice"),
        (nic(gateways=["192.0.3.1"]), "in no network"),
        (nic(gateways=["192.0.2.7"]), "its own address"),
        (nic(gateways=["192.0.2.1", "192.0.2.2"]), "one family"),
        ({**nic(), "dns": ["name"]}, "no address"),
        ({**nic(), "dns": ["192.0.2.1"] * 4}, "length"),
        ({**nic(), "search": ["a b"]}, "no domain name"),
        ({**nic(), "hosts": [{"address": "192.0.2.9", "names": []}]}, "length"),
        ({**nic(), "hosts": [{"address": "192.0.2.9", "names": ["db\nevil"]}]}, "no host name"),
        ({"injection": "cloud-init", "dns": ["192.0.2.1"]}, "cloud-init is told of dns"),
        (
            {
                "injection": "agent",
                "nics": [
                    {**STATIC, "gateways": ["192.0.2.1"]},
                    {**STATIC, "nic": "2", "addresses": ["192.0.3.7/24"], "gateways": ["192.0.3.1"]},
                ],
            },
            "one route leads out",
        ),
        (
            {"injection": "agent", "nics": [STATIC, {**STATIC, "nic": "2"}]},
            "two adapters are given one address",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(value: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        recovered.from_object(value)
    assert why in str(caught.value)
    with pytest.raises(InvalidInput):
        recovered.decode(json.dumps(value))


def test_settings_of_many_bytes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="longer than"):
        recovered.decode(b" " * (recovered.SETTINGS_BYTES_MAX + 1))


def test_nothing_set_is_written_as_nothing() -> None:
    assert recovered.encode(RecoveredSettings()) == b"{}"


hosts_names = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9](\.[a-z]{2,5})?", fullmatch=True)


@st.composite
def nics(draw: st.DrawFn) -> tuple[NicSettings, ...]:
    found = []
    for place in range(draw(st.integers(0, 4))):
        how = draw(st.sampled_from(list(Addressing)))
        addresses: tuple[str, ...] = ()
        gateways: tuple[str, ...] = ()
        if how is Addressing.STATIC:
            hosts = draw(st.integers(2, 200))
            addresses = (
                f"10.{place}.0.{hosts}/24",
                *draw(st.sampled_from([(), (f"2001:db8:{place}::{hosts}/64",)])),
            )
            gateways = (f"10.{place}.0.1",) if place == 0 and draw(st.booleans()) else ()
        found.append(
            NicSettings(
                nic=draw(st.sampled_from([str(place + 1), f"52:54:00:00:00:0{place}"])),
                network=draw(st.sampled_from([None, "none", "lan-b"])),
                mac=draw(st.sampled_from([None, "keep", "new", f"52:54:00:bb:00:0{place}"])),
                addressing=how,
                addresses=addresses,
                gateways=gateways,
            )
        )
    return tuple(found)


@st.composite
def some_settings(draw: st.DrawFn) -> RecoveredSettings:
    adapters = draw(nics())
    hosts = tuple(
        HostsEntry(
            address=f"192.0.2.{number}", names=tuple(draw(st.lists(hosts_names, min_size=1, max_size=3)))
        )
        for number in range(1, 1 + draw(st.integers(0, 3)))
    )
    inside = bool(hosts) or any(one.addressing is not Addressing.KEEP for one in adapters)
    ways = [Injection.CLOUD_INIT, Injection.AGENT, Injection.DRIVE]
    return RecoveredSettings(
        name=draw(st.none() | st.sampled_from(["shop", "店 b"])),
        cpus=draw(st.none() | st.integers(1, 64)),
        memory_bytes=draw(st.none() | st.integers(16, 4096).map(lambda mib: mib * recovered.MIB)),
        firmware=draw(st.none() | st.sampled_from(Firmware)),
        machine_type=draw(st.none() | st.sampled_from(["q35", "pc-i440fx-7.2"])),
        disk_bus=draw(st.none() | st.sampled_from(DiskBus)),
        nics=adapters,
        boot_order=draw(st.sampled_from([(), ("vda",), ("1", "vdb")])),
        injection=draw(st.sampled_from(ways)) if inside else Injection.NONE,
        hosts=hosts,
    )


@settings(max_examples=150, deadline=None)
@given(some_settings())
def test_what_is_accepted_comes_back_the_same_and_names_addresses_as_systems_do(
    one: RecoveredSettings,
) -> None:
    assert recovered.decode(recovered.encode(one)) == one
    assert recovered.from_object(recovered.to_object(one)) == one
    assert all(str(ipaddress.ip_address(text)) == text for text in one.static_addresses)
    assert one.inside == (one.injection is not Injection.NONE)


@settings(max_examples=300, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(["static", "1", MAC]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "nics", "nic", "addressing", "addresses", "hosts", "names", "address", "dns",
                         "injection", "gateways", "bootOrder", "memoryBytes"]), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_whatever_is_sent_is_taken_or_refused_in_words(value: object) -> None:
    try:
        found = recovered.from_object(value)
    except InvalidInput:
        return
    assert recovered.decode(recovered.encode(found)) == found


def test_adapters_are_found_by_their_places_and_hardware_addresses() -> None:
    asked = RecoveredSettings(
        nics=(NicSettings(nic="2", network="b"), NicSettings(nic=MAC.upper(), network="a"))
    )
    found, against = recovered.nics_by_place(asked, [MAC, "52:54:00:aa:00:02"])
    assert {place: one.network for place, one in found.items()} == {0: "a", 1: "b"}
    assert against == ()


def test_an_adapter_it_does_not_have_and_one_that_is_named_twice_are_told() -> None:
    asked = RecoveredSettings(nics=(NicSettings(nic="1"), NicSettings(nic=MAC), NicSettings(nic="3")))
    _, against = recovered.nics_by_place(asked, [MAC])
    assert against == (
        f"adapter 1 is set twice, as 1 and as {MAC}",
        f"it has no adapter 3 (its adapters: {MAC})",
    )


def test_only_cloud_init_leaves_the_other_sites_addresses_in_the_guest() -> None:
    def there(way: Injection) -> RecoveredSettings:
        return recovered.from_object({"nics": [STATIC], "injection": way.value})

    assert recovered.left_behind(None, None) == ""
    assert recovered.left_behind(there(Injection.AGENT), None) == ""
    assert recovered.left_behind(there(Injection.DRIVE), None) == ""
    assert "adapter 1" in recovered.left_behind(there(Injection.CLOUD_INIT), None)
    back = recovered.from_object({"nics": [{"nic": "1", "addressing": "dhcp"}], "injection": "cloud-init"})
    assert recovered.left_behind(there(Injection.CLOUD_INIT), back) == ""
