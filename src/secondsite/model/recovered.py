"""What a recovered machine is to be at the site that takes it over, in one direction. Pure.

One definition: the server keeps it for each protected item and direction, a gateway is given it with a test
failover or a failover, and applies it. What is not set stays as the point's machine definition says.

Whatever is brought into the guest (addresses, names of others) goes one way, `injection`; nothing of it is
needed for the machine to boot.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import msgspec

from secondsite.base.errors import InvalidInput

MIB = 1024 * 1024
# Twice what 32 adapters and 64 names take; a call of a server holds 64 KiB.
SETTINGS_BYTES_MAX = 32 * 1024
NICS_MAX = 32
ADDRESSES_MAX = 16
HOSTS_MAX = 64
# Linux' resolver asks three and ignores the rest (resolv.conf(5), MAXNS).
DNS_MAX = 3

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_PLACE = re.compile(r"[1-9][0-9]?\Z")
_DEVICE = re.compile(r"[a-z][a-z0-9]{1,15}\Z")
# RFC 1123: labels of letters, digits and hyphens; an underscore is common in names of Windows machines
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\Z")
_MACHINE_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
# libvirt refuses a name with a slash; files are named after it
_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,100}\Z")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Address = Annotated[str, msgspec.Meta(min_length=2, max_length=64)]

NO_NETWORK = "none"
KEEP, NEW = "keep", "new"


class Direction(enum.Enum):
    """Which way a machine is taken over."""

    FORWARD = "forward"  # from where it was protected first
    REVERSE = "reverse"  # back


class Firmware(enum.Enum):
    """What starts it."""

    BIOS = "bios"
    UEFI = "uefi"


class DiskBus(enum.Enum):
    """How disks are attached."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class Addressing(enum.Enum):
    """Where an adapter's addresses come from."""

    KEEP = "keep"  # as the guest has it configured
    STATIC = "static"
    DHCP = "dhcp"


class Injection(enum.Enum):
    """How addresses come into the guest."""

    NONE = "none"
    CLOUD_INIT = "cloud-init"  # a drive with a NoCloud seed, read by the guest's cloud-init
    AGENT = "agent"  # the drive with the script, run by the guest agent
    DRIVE = "drive"  # the drive with the script, read by what the guest was given before


class _Part(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename="camel",
):
    """Base: what is not known is refused, what is not set is not written."""


class HostsEntry(_Part, frozen=True, kw_only=True):
    """An address and the names that stand for it, as in a hosts file."""

    address: _Address
    names: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=8)]

    def __post_init__(self) -> None:
        _ip(self.address, "hosts")
        for name in self.names:
            if not _HOST.match(name):
                _refuse(f"hosts: {name!r} is no host name")


class NicSettings(_Part, frozen=True, kw_only=True):
    """One adapter. nic: its place, from "1", or its hardware address as the point's definition has it."""

    nic: Annotated[str, msgspec.Meta(min_length=1, max_length=17)]
    network: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = (
        None  # of the site that takes over; "none": attached to nothing
    )
    mac: Annotated[str, msgspec.Meta(min_length=3, max_length=17)] | None = None  # keep, new, or the address
    addressing: Addressing = Addressing.KEEP
    addresses: Annotated[
        tuple[_Address, ...], msgspec.Meta(max_length=ADDRESSES_MAX)
    ] = ()  # with their prefix
    gateways: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=2)] = ()  # one of each family at most

    def __post_init__(self) -> None:
        if self.network is not None and not _NAME.match(self.network):
            _refuse("a network's name has a slash or a character that cannot be printed")
        msgspec.structs.force_setattr(self, "nic", self.nic.lower())
        if not (_PLACE.match(self.nic) or _MAC.match(self.nic)):
            _refuse(f"nic {self.nic!r} is neither a place (1 to 99) nor a hardware address")
        if self.mac is not None:
            msgspec.structs.force_setattr(self, "mac", self.mac.lower())
            if self.mac not in (KEEP, NEW):
                _check_mac(self.nic, self.mac)
        if self.addressing is Addressing.STATIC:
            _check_static(self)
        elif self.addresses or self.gateways:
            _refuse(f"nic {self.nic}: addresses and gateways are given with addressing static only")

    @property
    def by_mac(self) -> bool:
        """Whether `nic` is a hardware address."""
        return ":" in self.nic


class RecoveredSettings(_Part, frozen=True, kw_only=True):
    """All of one machine in one direction."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] | None = None
    cpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    memory_bytes: Annotated[int, msgspec.Meta(ge=16 * MIB, le=64 * 1024**4)] | None = None
    firmware: Firmware | None = None
    machine_type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    disk_bus: DiskBus | None = None
    nics: Annotated[tuple[NicSettings, ...], msgspec.Meta(max_length=NICS_MAX)] = ()
    # disks by their names and adapters by their places or hardware addresses, first one first
    boot_order: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=16)] = ()
    injection: Injection = Injection.NONE
    drive_bus: DiskBus | None = None  # of the drive that injection adds; not set: as fits the guest
    dns: Annotated[tuple[_Address, ...], msgspec.Meta(max_length=DNS_MAX)] = ()
    search: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=6)] = ()
    hosts: Annotated[tuple[HostsEntry, ...], msgspec.Meta(max_length=HOSTS_MAX)] = ()

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.match(self.name):
            _refuse("the name has a slash or a character that cannot be printed")
        if self.memory_bytes is not None and self.memory_bytes % MIB:
            _refuse("memory is given in whole MiB")
        if self.machine_type is not None and not _MACHINE_TYPE.match(self.machine_type):
            _refuse(f"machine type {self.machine_type!r} has characters no machine type has")
        _check_nics(self.nics)
        _check_boot(self.boot_order)
        for server in self.dns:
            _ip(server, "dns")
        for domain in self.search:
            if not _HOST.match(domain):
                _refuse(f"search: {domain!r} is no domain name")
        _check_injection(self)

    @property
    def inside(self) -> bool:
        """Whether something is to be brought into the guest."""
        configured = any(nic.addressing is not Addressing.KEEP for nic in self.nics)
        return configured or bool(self.dns or self.search or self.hosts)

    @property
    def static_addresses(self) -> tuple[str, ...]:
        """Every address that is given, without its prefix, as systems write it."""
        return tuple(str(ipaddress.ip_interface(text).ip) for nic in self.nics for text in nic.addresses)


def decode(data: bytes | str, what: str = "what is set for the machine") -> RecoveredSettings:
    """From JSON. Raises InvalidInput."""
    if len(data) > SETTINGS_BYTES_MAX:
        raise InvalidInput(what=what, why=f"they are longer than {SETTINGS_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(data, type=RecoveredSettings)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidInput(what=what, why=str(error)) from None


def from_object(value: object, what: str = "what is set for the machine") -> RecoveredSettings:
    """From what JSON was decoded to. Raises InvalidInput."""
    try:
        found = msgspec.convert(value, type=RecoveredSettings)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInput(what=what, why=str(error)) from None
    return decode(encode(found), what)


def encode(settings: RecoveredSettings) -> bytes:
    """As JSON, with what is set only."""
    return msgspec.json.encode(settings)


def to_object(settings: RecoveredSettings) -> dict[str, Any]:
    """As JSON would be decoded."""
    found: dict[str, Any] = msgspec.to_builtins(settings)
    return found


def nics_by_place(
    settings: RecoveredSettings, macs: Sequence[str]
) -> tuple[dict[int, NicSettings], tuple[str, ...]]:
    """The settings of each adapter, by its place from 0, and the reasons why some fit none.

    macs: the hardware addresses of the point's definition, in its order; "" where it names none.
    """
    found: dict[int, NicSettings] = {}
    against = []
    known = [mac.lower() for mac in macs]
    for nic in settings.nics:
        if nic.by_mac:
            place = known.index(nic.nic) if nic.nic in known else None
        else:
            place = int(nic.nic) - 1 if int(nic.nic) <= len(known) else None
        if place is None:
            shown = ", ".join(mac or "one without an address" for mac in known) or "none"
            against.append(f"it has no adapter {nic.nic} (its adapters: {shown})")
        elif place in found:
            against.append(f"adapter {place + 1} is set twice, as {found[place].nic} and as {nic.nic}")
        else:
            found[place] = nic
    return found, tuple(against)


def left_behind(forward: RecoveredSettings | None, reverse: RecoveredSettings | None) -> str:
    """Why the guest would come back with the addresses of the other site; empty when it does not.

    What the script sets it sets anew at each start, and only where its drive is: the guest's own
    configuration is as it was. A seed's addresses cloud-init writes over the guest's own, so coming back
    needs another seed.
    """
    if forward is None or forward.injection is not Injection.CLOUD_INIT or not forward.inside:
        return ""
    gone = [nic.nic for nic in forward.nics if nic.addressing is not Addressing.KEEP]
    back = {nic.nic for nic in (reverse or UNCHANGED).nics if nic.addressing is not Addressing.KEEP}
    missing = [nic for nic in gone if nic not in back]
    if not missing:
        return ""
    return (
        f"cloud-init writes the other site's addresses over the guest's own (adapter {', '.join(missing)}), "
        "and the settings for the way back give none"
    )


def _refuse(why: str) -> None:
    raise ValueError(why)


def _ip(text: str, what: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{what}: {text!r} is no address") from None
    if "%" in text:
        _refuse(f"{what}: {text!r} has a zone, which means nothing at another machine")
    return found


def _check_mac(nic: str, mac: str) -> None:
    if not _MAC.match(mac):
        _refuse(f"nic {nic}: mac {mac!r} is neither keep, new nor a hardware address")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        _refuse(f"nic {nic}: {mac} is no address an adapter can have")


def _check_static(nic: NicSettings) -> None:
    if not nic.addresses:
        _refuse(f"nic {nic.nic}: addressing static needs an address")
    inside = [_interface(nic.nic, text) for text in nic.addresses]
    if len({one.ip for one in inside}) < len(inside):
        _refuse(f"nic {nic.nic}: an address is given twice")
    families = set()
    for text in nic.gateways:
        gateway = _ip(text, f"nic {nic.nic}, gateway")
        if gateway.version in families:
            _refuse(f"nic {nic.nic}: two gateways of one family")
        families.add(gateway.version)
        if any(gateway == one.ip for one in inside):
            _refuse(f"nic {nic.nic}: the gateway {text} is its own address")
        # routers of IPv6 are often known by an address of the link
        if not gateway.is_link_local and not any(gateway in one.network for one in inside):
            _refuse(f"nic {nic.nic}: the gateway {text} is in no network of its addresses")


def _interface(nic: str, text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    if "/" not in text or "%" in text:
        _refuse(f"nic {nic}: {text!r} is no address with its prefix, like 192.0.2.7/24")
    try:
        found = ipaddress.ip_interface(text)
    except ValueError as error:
        raise ValueError(f"nic {nic}: {error}") from None
    network, ip = found.network, found.ip
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified:
        _refuse(f"nic {nic}: {text} is no address a machine can have")
    if (
        found.version == 4
        and network.prefixlen < 31
        and ip in (network.network_address, network.broadcast_address)
    ):
        _refuse(f"nic {nic}: {text} is the address of the network itself")
    return found


def _check_nics(nics: Collection[NicSettings]) -> None:
    if len({nic.nic for nic in nics}) < len(nics):
        _refuse("an adapter is set twice")
    given = [nic.mac for nic in nics if nic.mac not in (None, KEEP, NEW)]
    if len(set(given)) < len(given):
        _refuse("two adapters are given one hardware address")
    addresses = [ipaddress.ip_interface(text).ip for nic in nics for text in nic.addresses]
    if len(set(addresses)) < len(addresses):
        _refuse("two adapters are given one address")
    for version in (4, 6):
        with_gateway = [
            nic.nic
            for nic in nics
            if any(ipaddress.ip_address(one).version == version for one in nic.gateways)
        ]
        if len(with_gateway) > 1:
            both = " and ".join(with_gateway)
            _refuse(f"adapters {both} have a gateway of IPv{version} each: one route leads out")


def _check_boot(order: Sequence[str]) -> None:
    for name in order:
        if not (_DEVICE.match(name) or _MAC.match(name) or _PLACE.match(name)):
            _refuse(f"boot order: {name!r} is neither a disk's name nor an adapter")
    if len(set(order)) < len(order):
        _refuse("boot order: something is named twice")


def _check_injection(settings: RecoveredSettings) -> None:
    if settings.inside and settings.injection is Injection.NONE:
        _refuse("addresses, dns or hosts are given, and injection none brings them nowhere")
    if not settings.inside and settings.injection is not Injection.NONE:
        _refuse(
            f"injection {settings.injection.value} has nothing to bring: no address, dns or hosts is given"
        )
    if settings.injection is Injection.NONE and settings.drive_bus is not None:
        _refuse("a drive's bus is given, and injection none adds no drive")
    named = any(nic.addressing is not Addressing.KEEP for nic in settings.nics)
    if settings.injection is Injection.CLOUD_INIT and (settings.dns or settings.search) and not named:
        _refuse("cloud-init is told of dns with an adapter only: none has addressing static or dhcp")


UNCHANGED = RecoveredSettings()
