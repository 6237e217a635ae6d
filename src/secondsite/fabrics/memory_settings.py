"""The in-memory twin's part of settings: what a machine would be, and a guest agent that takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from secondsite.base.errors import InvalidInput
from secondsite.base.units import GIB, format_bytes
from secondsite.fabrics import errors
from secondsite.fabrics.base import GuestRun, LiveNic, Recovered, RecoverySpec, Shape
from secondsite.fabrics.memory_failover import MemoryFailover
from secondsite.model.ids import MachineId
from secondsite.model.machines import Network
from secondsite.model.outlook import Finding, NicOutlook, Outlook
from secondsite.model.recovered import KEEP, NEW, NO_NETWORK, Addressing, Injection, nics_by_place

MACHINE_TYPE = "memory"


def shape_seen(seen: Outlook) -> Shape:
    """Of a machine that became what it was seen as."""
    nics = [LiveNic(mac=nic.mac, network=nic.network, up=bool(nic.network)) for nic in seen.nics]
    return Shape(cpus=seen.cpus, memory_bytes=seen.memory_bytes, nics=nics)


class MemorySettings(MemoryFailover):
    """Of `fabrics.base.Fabric` what settings need."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__(chunk_bytes)
        self._networks: dict[str, Network] = {"default": Network(name="default", active=True, isolated=False)}
        self._applied: dict[MachineId, int] = {}  # how often its agent was asked to
        # what tests decide
        self.addresses_in_use: dict[str, str] = {}  # address -> who has it
        self.shapes: dict[MachineId, Shape] = {}  # what a recovered machine became
        self.silent: set[str] = set()  # names of machines whose agent does not answer
        self.guests_say = GuestRun(0, "eth0: static")  # what running the settings ends with
        self.deaf_to_settings = False  # the guest ends well and has other addresses all the same

    def runs_of(self, recovered: Recovered) -> int:
        """How often its agent ran the settings."""
        return self._applied.get(recovered.id, 0)

    def outlook(self, spec: RecoverySpec) -> Outlook:
        """See `Fabric`."""
        given, settings = self._given(spec), spec.settings
        macs = [str(nic.get("mac", "")) for nic in given.get("nics", [])]
        wanted, against = nics_by_place(settings, macs)
        nics = []
        for place, nic in enumerate(given.get("nics", [])):
            one = wanted.get(place)
            network = spec.network or spec.mapping.networks.get(str(nic.get("network", "")), "")
            if spec.attach_as_set and one is not None and one.network is not None:
                network = "" if one.network == NO_NETWORK else one.network
            mac = one.mac if one is not None and one.mac is not None else KEEP
            kept = macs[place] if spec.keep_identity or spec.network is not None else NEW
            nics.append(
                NicOutlook(
                    place=place + 1,
                    mac=kept if mac == KEEP else mac,
                    network=network,
                    addressing=one.addressing if one is not None else Addressing.KEEP,
                    addresses=one.addresses if one is not None else (),
                )
            )
        return Outlook(
            name=spec.name or str(given.get("name", "")),
            cpus=settings.cpus or 1,
            memory_bytes=settings.memory_bytes or GIB,
            firmware=settings.firmware.value if settings.firmware else "bios",
            machine_type=settings.machine_type or MACHINE_TYPE,
            nics=tuple(nics),
            injection=settings.injection,
            findings=tuple(self._findings(spec, nics, against)),
        )

    def _given(self, spec: RecoverySpec) -> dict[str, Any]:
        try:
            found = json.loads(spec.definition.text)
        except ValueError as error:
            raise InvalidInput(what="machine definition", why=str(error)) from None
        return found if isinstance(found, dict) else {}

    def _findings(
        self, spec: RecoverySpec, nics: Sequence[NicOutlook], against: Sequence[str]
    ) -> Iterator[Finding]:
        for why in against:
            yield Finding(name="adapters", cause=why, action="Correct the settings.")
        for nic in nics if spec.attach_as_set else ():
            if nic.network and nic.network not in self._networks:
                cause = f"adapter {nic.place}: there is no network {nic.network} at this site"
                yield Finding(name="networks", cause=cause, action="Make it, or set another one.")
        if (spec.settings.memory_bytes or 0) > GIB:
            cause = f"it would have {format_bytes(spec.settings.memory_bytes or 0)}, and this host has 1 GiB"
            yield Finding(name="memory", cause=cause, action="Set less.")
        for address in spec.settings.static_addresses:
            if address in self.addresses_in_use:
                who = self.addresses_in_use[address]
                cause = f"the address {address} is in use at this site, by {who}"
                yield Finding(name="addresses", cause=cause, action="Free it, or give another one.")

    def shape_of(self, recovered: Recovered) -> Shape | None:
        """See `Fabric`."""
        with self._lock:
            found = self._recovered.get(recovered.id)
            if found is None or recovered.id not in self._running:
                return None
            told = self.shapes.get(recovered.id)
        return told if told is not None else shape_seen(self.outlook(found[1]))

    def apply_in_guest(self, recovered: Recovered) -> int:
        """See `Fabric`."""
        self._answering(recovered)
        with self._lock:
            self._applied[recovered.id] = self._applied.get(recovered.id, 0) + 1
            return self._applied[recovered.id]

    def applied(self, recovered: Recovered, run: int) -> GuestRun | None:  # noqa: ARG002 - it ends at once
        """See `Fabric`."""
        self._answering(recovered)
        return self.guests_say

    def addresses_of(self, recovered: Recovered) -> Sequence[str]:
        """See `Fabric`."""
        self._answering(recovered)
        with self._lock:
            found = self._recovered.get(recovered.id)
            if found is None or self.deaf_to_settings:
                return ("127.0.0.1",)
            settings = found[1].settings
            ran = recovered.id in self._applied and self.guests_say.code == 0
            by_itself = settings.injection in (Injection.CLOUD_INIT, Injection.DRIVE)
            return ("127.0.0.1", *(settings.static_addresses if ran or by_itself else ()))

    def _answering(self, recovered: Recovered) -> None:
        with self._lock:
            if recovered.id not in self._running or recovered.name in self.silent:
                raise errors.SourceBusy(machine=recovered.name, why="its guest agent does not answer")
