"""The definition a recovered machine gets at this host, with all that has to lie beside it.

A machine that comes back to a host it had before starts from the definition it had there (`original`), any
other from its point's. Then its settings are put in. The same steps make the definition that is started and
the one that is only looked at beforehand.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from secondsite.fabrics.base import RecoverySpec
from secondsite.fabrics.guest import drive as guest_drive
from secondsite.fabrics.guest.drive import Adapter
from secondsite.fabrics.libvirt import domxml, hosttypes, original, settings
from secondsite.fabrics.libvirt.hosttypes import HostTypes
from secondsite.fabrics.libvirt.mapping import MappedDisk, MappedNic, Plan, change
from secondsite.fabrics.libvirt.settings import Drive
from secondsite.model.recovered import KEEP, NEW, NO_NETWORK, Injection, NicSettings, nics_by_place

# As QEMU's own: the first three bytes are its registered ones.
_MAC_PREFIX = "52:54:00"


@dataclass(frozen=True)
class Base:
    """What is built upon."""

    root: ET.Element  # to be changed
    point: ET.Element  # the definition of the point
    home: bool
    types: HostTypes
    macs: Sequence[str]  # of the adapters as the base has them
    set: Mapping[int, NicSettings]  # by place from 0
    against: Sequence[str]  # why some settings of adapters fit none


@dataclass(frozen=True)
class Files:
    """What lies beside it."""

    overlays: Mapping[str, str]  # disk -> image
    console_log: str
    nvram: str | None
    drive: str | None


@dataclass(frozen=True)
class Built:
    """A definition, and the drive it names."""

    root: ET.Element
    drive: bytes | None


def begin(connection: Any, spec: RecoverySpec) -> Base:
    """What this machine is built upon here. Raises InvalidInput: the point's definition cannot be read."""
    point = domxml.parse(spec.definition.text)
    back = original.at_home(point, hosttypes.host_uuid(connection))
    root = back if back is not None else domxml.parse(spec.definition.text)
    macs = [domxml.nic_mac(interface) for interface in root.findall("devices/interface")]
    found, against = nics_by_place(spec.settings, macs)
    return Base(
        root=root,
        point=point,
        home=back is not None,
        types=hosttypes.read(connection, root),
        macs=macs,
        set=found,
        against=against,
    )


def name_of(spec: RecoverySpec, base: Base) -> str:
    """As it will be called: as it is asked for; a machine that comes back has its name of then."""
    return spec.name or (base.root.findtext("name") or "").strip()


def finish(spec: RecoverySpec, base: Base, files: Files, record: ET.Element) -> Built:
    """The definition to start, and its drive."""
    root = base.root
    plan = Plan(
        name=name_of(spec, base),
        uuid=None if spec.keep_identity else str(uuid.uuid4()),
        title=f"secondsite {record.get('kind')}: {spec.note}"[:200].replace("\n", " "),
        disks={
            disk.id: MappedDisk(files.overlays[disk.id], disk.socket_path, disk.export_name)
            for disk in spec.disks
        },
        network_of=lambda source: spec.network or spec.mapping.networks.get(source or ""),
        # on a network of the site a test's adapter must not have the address of the machine it was made from
        keep_macs=_keeps_macs(spec),
        console_log=files.console_log,
        nvram=files.nvram,
        metadata=record,
        exists=lambda path: Path(path).exists(),
        home=base.home,
        nics=adapters(spec, base),
    )
    if base.home:
        original.forget(root)
    change(root, plan)
    settings.apply(root, spec.settings, base.types)
    settings.boot_order(root, spec.settings.boot_order, base.macs)
    if not base.home:
        metadata = root.find("metadata")
        assert metadata is not None, "it holds our record"
        original.keep(base.point, metadata)
    image = None
    if files.drive is not None:
        settings.add_drive(root, Drive(files.drive, settings.drive_bus(root, spec.settings)))
        image = guest_drive.build(spec.settings, _told(base, plan), instance=spec.instance or plan.name)
    return Built(root, image)


def needs_drive(spec: RecoverySpec) -> bool:
    """Whether something is brought into the guest."""
    return spec.settings.injection is not Injection.NONE


def _keeps_macs(spec: RecoverySpec) -> bool:
    return spec.keep_identity or spec.network is not None


def adapters(spec: RecoverySpec, base: Base) -> dict[int, MappedNic]:
    """What becomes of each adapter, with its address: what the guest is told has to name it."""
    found = {}
    for place, interface in enumerate(base.root.findall("devices/interface")):
        nic = base.set.get(place)
        found[place] = MappedNic(
            network=_network(spec, interface, nic),
            mac=_mac(spec, base.macs[place], nic),
            as_is=base.home and spec.attach_as_set and (nic is None or nic.network is None),
        )
    return found


def _network(spec: RecoverySpec, interface: ET.Element, nic: NicSettings | None) -> str | None:
    if spec.attach_as_set and nic is not None and nic.network is not None:
        return None if nic.network == NO_NETWORK else nic.network
    return spec.network or spec.mapping.networks.get(domxml.nic_network(interface) or "")


def _mac(spec: RecoverySpec, before: str, nic: NicSettings | None) -> str:
    wanted = nic.mac if nic is not None and nic.mac is not None else KEEP
    if wanted not in (KEEP, NEW):
        return wanted
    if wanted == KEEP and before and _keeps_macs(spec):
        return before
    return ":".join([_MAC_PREFIX, *(f"{byte:02x}" for byte in secrets.token_bytes(3))])


def _told(base: Base, plan: Plan) -> list[Adapter]:
    return [Adapter(plan.nics[place].mac or "", nic) for place, nic in sorted(base.set.items())]
