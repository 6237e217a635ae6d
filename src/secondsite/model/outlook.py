"""What a machine would be at the host that takes it over, seen before anything is made. Pure."""

from __future__ import annotations

import msgspec

from secondsite.model.recovered import Addressing, Injection


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Something that speaks against it, or that one should know."""

    name: str  # what was looked at: name, processors, memory, firmware, machine-type, networks, addresses...
    cause: str
    action: str
    required: bool = True  # False: it is only to be known


class NicOutlook(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An adapter."""

    place: int  # from 1
    mac: str  # "new": made when it starts
    network: str  # what it is attached to; "": nothing
    addressing: Addressing = Addressing.KEEP
    addresses: tuple[str, ...] = ()


class Outlook(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All of a machine that settings and hosts decide."""

    name: str
    cpus: int
    memory_bytes: int
    firmware: str
    machine_type: str
    disk_buses: tuple[str, ...] = ()
    nics: tuple[NicOutlook, ...] = ()
    injection: Injection = Injection.NONE
    drive_bus: str = ""  # of the drive that is added; "": none is
    home: bool = False  # it comes back to a host that has defined it before, as it was there
    findings: tuple[Finding, ...] = ()
