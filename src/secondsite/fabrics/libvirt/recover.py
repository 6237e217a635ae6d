"""Recovered machines: defined, started, listed and removed. The domain's own metadata is the record.

Order that makes a crash harmless: the domain is defined first, naming the files to be made; then the files;
then the start. Whatever exists is therefore named by a domain that `existing` finds.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.crash import crash_point, mark
from secondsite.base.files import fsync_directory, replace_file
from secondsite.fabrics.base import Recovered, RecoverySpec
from secondsite.fabrics.errors import RecoveryFailed
from secondsite.fabrics.libvirt import building, definition, domxml, inventory, networks, overlays, places
from secondsite.fabrics.libvirt.building import Files
from secondsite.fabrics.libvirt.definition import NAMESPACE, tag
from secondsite.fabrics.libvirt.errors import HostUnready, words
from secondsite.model.ids import machine_id
from secondsite.model.machines import Pool

FILE_PREFIX = "secondsite-"
KEPT, COPYING = ".kept", ".copying"
_TOOL_SECONDS_MAX = 60

AFTER_DEFINE = mark("recover.after-define")
AFTER_OVERLAYS = mark("recover.after-overlays")


def start(connection: Any, spec: RecoverySpec) -> Recovered:
    """See `Fabric.start_recovered`."""
    if spec.definition.format != definition.FORMAT:
        raise RecoveryFailed(machine=spec.name, why=f"its definition is {spec.definition.format}")
    if _lookup_name(connection, spec.name) is not None:
        raise RecoveryFailed(machine=spec.name, why="a machine of this name exists at the target already")
    base = building.begin(connection, spec)
    directories = _directories(connection, spec, base.point)
    first = next(iter(directories.values()))
    drive = first / f"{FILE_PREFIX}{spec.name}-settings.iso" if building.needs_drive(spec) else None
    nvram = first / f"{FILE_PREFIX}{spec.name}_VARS.fd" if spec.definition.firmware_variables else None
    files = Files(
        overlays={
            str(disk.id): str(directories[disk.id] / f"{FILE_PREFIX}{spec.name}-{disk.id}.qcow2")
            for disk in spec.disks
        },
        console_log=str(first / f"{FILE_PREFIX}{spec.name}-console.log"),
        nvram=str(nvram) if nvram else None,
        drive=str(drive) if drive else None,
    )
    built = building.finish(spec, base, files, _record(connection, spec, files))
    domain = None
    try:
        domain = connection.defineXML(ET.tostring(built.root, encoding="unicode"))
        crash_point(AFTER_DEFINE)
        _make_files(connection, spec, files)
        if drive is not None and built.drive is not None:
            replace_file(drive, built.drive)
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


def kept(path: Path, label: str) -> Path:
    """Where an overlay lies once its machine was removed and what it wrote was kept."""
    return path.with_name(f"{path.name}.{label}{KEPT}")


def ours(connection: Any, recovered: Recovered) -> Any:
    """Its domain, where it is there and has our record; None otherwise."""
    domain = _lookup(connection, recovered.id)
    return domain if domain is not None and _read(domain) is not None else None


def remove(connection: Any, recovered: Recovered) -> None:
    """See `Fabric.remove_recovered`. Only a domain with our record is touched."""
    domain = ours(connection, recovered)
    if domain is not None:
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


def _record(connection: Any, spec: RecoverySpec, files: Files) -> ET.Element:
    kind = "recovery" if spec.keep_identity else "test"
    record = ET.Element(tag("recovered"), kind=kind, note=spec.note, log=files.console_log)
    for disk in spec.disks:
        record.append(overlays.record(files.overlays[str(disk.id)], disk.export_name, str(disk.socket_path)))
    for name, path in (("nvram", files.nvram), ("drive", files.drive)):
        if path:
            ET.SubElement(record, tag(name), path=path)
    if spec.network is not None:
        with contextlib.suppress(libvirt.libvirtError):
            if networks.is_ours(connection.networkLookupByName(spec.network)):
                ET.SubElement(record, tag("network"), name=spec.network)
    return record


def _make_files(connection: Any, spec: RecoverySpec, files: Files) -> None:
    owner = places.qemu_user(connection)
    for disk in spec.disks:
        path = Path(files.overlays[str(disk.id)])
        if path.exists():
            raise FileExistsError(f"{path} exists already and is not known to belong to us")
        # -u: nothing is opened; libvirt is told the chain in the definition and the size comes from us
        backing = overlays.backing_url(disk.export_name, str(disk.socket_path))
        if spec.goes_on is None:
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing]
            _tool([*create, str(path), str(disk.size_bytes)])
            path.chmod(0o600)
        else:
            _copy(kept(path, spec.goes_on), path, backing)
        socket = Path(disk.socket_path)
        if socket.exists():
            # libvirt gives QEMU its files, but not the socket of a network disk
            places.check_reachable(socket.parent, owner)
            places.give_to_qemu(socket, owner, 0o660)
    if files.nvram is not None:
        assert spec.definition.firmware_variables is not None
        replace_file(Path(files.nvram), spec.definition.firmware_variables)


def _copy(source: Path, path: Path, backing: str) -> None:
    """What it wrote there before, once more: the name appears when all of it is there."""
    made = path.with_name(path.name + COPYING)
    # what was kept stays until the failover is decided, so this may take its room a second time
    _tool(["cp", "--reflink=auto", "--sparse=always", "--", str(source), str(made)], seconds_max=None)
    _tool(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, str(made)])
    made.chmod(0o600)
    made.rename(path)
    fsync_directory(path.parent)


def _tool(command: Sequence[str], *, seconds_max: float | None = _TOOL_SECONDS_MAX) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds_max)
    if run.returncode:
        raise OSError(run.stderr.strip() or f"{command[0]} failed")


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
    beside = [child.get("path", "") for child in record if _local(child) in {"nvram", "drive"}]
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise  # its files are not taken away beneath it
    # files before the record: what a crash leaves is still named by it
    for path in [
        *recovered.overlays,
        *(f"{overlay}{COPYING}" for overlay in recovered.overlays),
        *beside,
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
