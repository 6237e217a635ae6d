"""Recovered machines: defined, started, listed and removed. The domain's own metadata is the record.

Order that makes a crash harmless: the domain is defined first, naming the files to be made; then the files;
then the start. Whatever exists is therefore named by a domain that `existing` finds.
"""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.crash import crash_point, mark
from secondsite.base.files import replace_file
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.fabrics.errors import RecoveryFailed
from secondsite.fabrics.libvirt import definition, domxml, inventory, networks, places
from secondsite.fabrics.libvirt.definition import NAMESPACE, tag
from secondsite.fabrics.libvirt.errors import HostUnready, words
from secondsite.fabrics.libvirt.mapping import MappedDisk, Plan, mapped
from secondsite.model.ids import machine_id
from secondsite.model.machines import Pool

FILE_PREFIX = "secondsite-"
_TOOL_SECONDS_MAX = 60

AFTER_DEFINE = mark("recover.after-define")
AFTER_OVERLAYS = mark("recover.after-overlays")


def start(connection: Any, spec: RecoverySpec) -> Recovered:
    """See `Fabric.start_recovered`."""
    if spec.definition.format != definition.FORMAT:
        raise RecoveryFailed(machine=spec.name, why=f"its definition is {spec.definition.format}")
    if _lookup_name(connection, spec.name) is not None:
        raise RecoveryFailed(machine=spec.name, why="a machine of this name exists at the target already")
    root = domxml.parse(spec.definition.text)
    directories = _directories(connection, spec, root)
    first = next(iter(directories.values()))
    overlays = {
        str(disk.id): str(directories[disk.id] / f"{FILE_PREFIX}{spec.name}-{disk.id}.qcow2")
        for disk in spec.disks
    }
    nvram = first / f"{FILE_PREFIX}{spec.name}_VARS.fd" if spec.definition.firmware_variables else None
    log = str(first / f"{FILE_PREFIX}{spec.name}-console.log")
    record = _record(connection, spec, list(overlays.values()), str(nvram) if nvram else None, log)
    text = mapped(spec.definition.text, _plan(spec, overlays, record, str(nvram) if nvram else None, log))
    domain = None
    try:
        domain = connection.defineXML(text)
        crash_point(AFTER_DEFINE)
        _make_files(connection, spec, overlays, nvram)
        crash_point(AFTER_OVERLAYS)
        domain.create()
    except (libvirt.libvirtError, OSError, subprocess.SubprocessError, HostUnready) as error:
        why = words(error) if isinstance(error, libvirt.libvirtError) else " ".join(_sentences(error))
        if domain is not None:
            _remove(domain)
        raise RecoveryFailed(machine=spec.name, why=why) from error
    recovered = _read(domain)
    assert recovered is not None, "a domain just defined with our metadata has it"
    return recovered


def existing(connection: Any) -> list[Recovered]:
    """Every domain with our record."""
    found = []
    for domain in connection.listAllDomains(0):
        with contextlib.suppress(libvirt.libvirtError):  # it vanished while we looked
            recovered = _read(domain)
            if recovered is not None:
                found.append(recovered)
    return sorted(found, key=lambda recovered: recovered.name)


def resume_stopped(connection: Any, recovered: Recovered) -> bool:
    """See `Fabric.resume_stopped`."""
    domain = _lookup(connection, recovered.id)
    if domain is None or _read(domain) is None:
        return False
    if domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
        return False
    domain.resume()
    return True


def remove(connection: Any, recovered: Recovered) -> None:
    """See `Fabric.remove_recovered`. Only a domain with our record is touched."""
    domain = _lookup(connection, recovered.id)
    if domain is not None and _read(domain) is not None:
        _remove(domain)


# --- steps ---


def _directories(connection: Any, spec: RecoverySpec, root: ET.Element) -> dict[str, Path]:
    pools: dict[str, Pool] = {pool.name: pool for pool in inventory.pools(connection)}
    sources = definition.pools_of(root)
    result: dict[str, Path] = {}
    for disk in spec.disks:
        wanted = spec.mapping.pools.get(sources.get(disk.id, "")) or spec.mapping.default_pool
        if wanted is None:
            raise RecoveryFailed(
                machine=spec.name,
                why=f"disk {disk.id} (pool {sources.get(disk.id, 'none')}) has no pool in the mapping",
            )
        pool = pools.get(wanted)
        if pool is None or not pool.active or not Path(pool.path).is_dir():
            raise RecoveryFailed(
                machine=spec.name, why=f"the pool {wanted} is not an active directory pool here"
            )
        result[str(disk.id)] = Path(pool.path)
    if not result:
        raise RecoveryFailed(machine=spec.name, why="it has no disks")
    return result


def _plan(
    spec: RecoverySpec, overlays: dict[str, str], record: ET.Element, nvram: str | None, log: str
) -> Plan:
    def network_of(source: str | None) -> str | None:
        return spec.network or spec.mapping.networks.get(source or "")

    return Plan(
        name=spec.name,
        uuid=None if spec.keep_identity else str(uuid.uuid4()),
        title=f"secondsite {record.get('kind')}: {spec.note}"[:200].replace("\n", " "),
        disks={
            disk.id: MappedDisk(overlays[disk.id], disk.socket_path, disk.export_name) for disk in spec.disks
        },
        network_of=network_of,
        # on a network of the site a test's adapter must not have the address of the machine it was made from
        keep_macs=spec.keep_identity or spec.network is not None,
        console_log=log,
        nvram=nvram,
        metadata=record,
        exists=lambda path: Path(path).exists(),
    )


def _record(
    connection: Any, spec: RecoverySpec, overlays: Sequence[str], nvram: str | None, log: str
) -> ET.Element:
    kind = "recovery" if spec.keep_identity else "test"
    record = ET.Element(tag("recovered"), kind=kind, note=spec.note, log=log)
    for overlay in overlays:
        ET.SubElement(record, tag("overlay"), path=overlay)
    if nvram:
        ET.SubElement(record, tag("nvram"), path=nvram)
    if spec.network is not None:
        with contextlib.suppress(libvirt.libvirtError):
            if networks.is_ours(connection.networkLookupByName(spec.network)):
                ET.SubElement(record, tag("network"), name=spec.network)
    return record


def _make_files(connection: Any, spec: RecoverySpec, overlays: dict[str, str], nvram: Path | None) -> None:
    owner = places.qemu_user(connection)
    for disk in spec.disks:
        path = Path(overlays[disk.id])
        if path.exists():
            raise FileExistsError(f"{path} exists already and is not known to belong to us")
        # -u: nothing is opened; libvirt is told the chain in the definition and the size comes from us
        backing = f"nbd+unix:///{disk.export_name}?socket={disk.socket_path}"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing, str(path)]
        run = subprocess.run(
            [*command, str(disk.size_bytes)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TOOL_SECONDS_MAX,
        )
        if run.returncode:
            raise OSError(run.stderr.strip() or "qemu-img failed")
        path.chmod(0o600)
        socket = Path(disk.socket_path)
        if socket.exists():
            # libvirt gives QEMU its files, but not the socket of a network disk
            places.check_reachable(socket.parent, owner)
            places.give_to_qemu(socket, owner, 0o660)
    if nvram is not None:
        assert spec.definition.firmware_variables is not None
        replace_file(nvram, spec.definition.firmware_variables)


def _sentences(error: Exception) -> list[str]:
    if isinstance(error, HostUnready):
        happened, _cause, action = error.sentences()
        return [happened.rstrip("."), "-", action.rstrip(".")]
    return [str(error)]


def _read(domain: Any) -> Recovered | None:
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    # libvirt hands the element out without its prefix's declaration where it can; names are looked at only
    record = domxml.parse(text)
    if _local(record) != "recovered":
        return None
    children = [(_local(child), child) for child in record]
    return Recovered(
        id=machine_id(domain.UUIDString()),
        name=domain.name(),
        overlays=tuple(child.get("path", "") for name, child in children if name == "overlay"),
        networks=tuple(child.get("name", "") for name, child in children if name == "network"),
        console_log=record.get("log"),
    )


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _remove(domain: Any) -> None:
    recovered = _read(domain)
    assert recovered is not None, "only machines of ours are removed"
    record = domxml.parse(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0))
    variables = [child.get("path", "") for child in record if _local(child) == "nvram"]
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise  # its files are not taken away beneath it
    # files before the record: what a crash leaves is still named by it
    for path in [
        *recovered.overlays,
        *variables,
        *([recovered.console_log] if recovered.console_log else []),
    ]:
        if Path(path).name.startswith(FILE_PREFIX):
            Path(path).unlink(missing_ok=True)
    domain.undefineFlags(
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )


def _lookup(connection: Any, uuid_text: str) -> Any:
    try:
        return connection.lookupByUUIDString(uuid_text)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _lookup_name(connection: Any, name: str) -> Any:
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
