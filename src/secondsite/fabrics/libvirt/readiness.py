"""What our account may do at this host's libvirt, tried rather than read from its configuration.

A machine that is never started is defined and undefined again: libvirt checks read-only connections, polkit
and its own access rules only when something is done (libvirt.org/auth.html, libvirt.org/aclpolkit.html).
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from secondsite.base.errors import SecondsiteError
from secondsite.fabrics.libvirt import domxml, inventory, places, space
from secondsite.fabrics.libvirt.errors import words
from secondsite.fabrics.libvirt.places import Places
from secondsite.model.machines import Pool
from secondsite.model.readiness import Check

# The names of machines that a check defines; one that a killed check left is removed by the next.
PROBE_PREFIX = "secondsite-check-"
_ASK_LIBVIRT = (
    "write access to libvirt, of the host's administrator: membership in the group libvirt, or a polkit rule "
    "for org.libvirt.unix.manage"
)
_REFUSED = {
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
}


def checks(connection: Any, here: Places) -> Iterator[Check]:
    """Everything this host must let us do. connection: a `virConnect`."""
    yield _define(connection)
    yield _backup(connection)
    known = _pools(connection)
    yield from (_pool(pool) for pool in known if pool.active and pool.path)
    if not any(pool.active and pool.path for pool in known):
        yield Check(
            code="libvirt.pools",
            title="a storage pool for recovered disks",
            ok=False,
            why="no active pool of this host is a directory",
            fix="Make one (`virsh pool-define-as NAME dir --target DIR`, then pool-build and pool-start).",
            ask="the right to make storage pools, of the host's administrator",
        )
    yield _scratch(connection, here)
    yield _sockets(connection, here)


def unreachable(error: SecondsiteError) -> Check:
    """The one check there is while libvirt does not answer."""
    happened, cause, action = error.sentences()
    return Check(
        code="libvirt.connect",
        title="libvirt answers",
        ok=False,
        why=f"{happened} {cause}",
        fix=action,
        ask=_ASK_LIBVIRT,
    )


def _define(connection: Any) -> Check:
    title = "machines may be defined and removed"
    try:
        _remove_left(connection)
        probe = connection.defineXML(_probe(connection))
        probe.undefine()
    except libvirt.libvirtError as error:
        refused = error.get_error_code() in _REFUSED
        return Check(
            code="libvirt.define",
            title=title,
            ok=False,
            why=words(error),
            fix="Give the gateway's user that right and restart the gateway."
            if refused
            else "See the hypervisor's own words; its log has the details.",
            ask=_ASK_LIBVIRT if refused else "",
        )
    return Check(code="libvirt.define", title=title, ok=True)


def _remove_left(connection: Any) -> None:
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE):
        if domain.name().startswith(PROBE_PREFIX):
            domain.undefine()


def _probe(connection: Any) -> str:
    """The smallest machine this host takes: of the first kind it says it can run."""
    capabilities = domxml.parse(connection.getCapabilities())
    guest = capabilities.find("guest")
    kind = guest.find("arch/domain") if guest is not None else None
    arch = guest.find("arch") if guest is not None else None
    root = ET.Element("domain", type=kind.get("type", "qemu") if kind is not None else "qemu")
    ET.SubElement(root, "name").text = f"{PROBE_PREFIX}{uuid.uuid4().hex[:12]}"
    ET.SubElement(root, "memory", unit="MiB").text = "16"
    system = ET.SubElement(ET.SubElement(root, "os"), "type")
    system.text = (guest.findtext("os_type") if guest is not None else None) or "hvm"
    if arch is not None and arch.get("name"):
        system.set("arch", str(arch.get("name")))
    return ET.tostring(root, encoding="unicode")


def _backup(connection: Any) -> Check:
    """Pull backups with checkpoints: libvirt 7.2 with QEMU 4.2 (libvirt.org/news.html)."""
    title = "disks can be read while machines run (libvirt 7.2, QEMU 4.2)"
    code = "libvirt.backup"
    library, hypervisor = connection.getLibVersion(), connection.getVersion()
    if connection.getType() == "QEMU" and (library < 7_002_000 or hypervisor < 4_002_000):
        return Check(
            code=code,
            title=title,
            ok=False,
            why=f"this host has libvirt {library // 1_000_000}.{library // 1000 % 1000} and QEMU "
            f"{hypervisor // 1_000_000}.{hypervisor // 1000 % 1000}",
            fix="Update them with the distribution's packages.",
        )
    return Check(code=code, title=title, ok=True)


def _pools(connection: Any) -> list[Pool]:
    try:
        return inventory.pools(connection)
    except libvirt.libvirtError:
        return []


def _pool(pool: Pool) -> Check:
    title = f"the pool {pool.name} takes files ({pool.path})"
    code = "libvirt.pool-writable"
    path = Path(pool.path)
    if not path.is_dir():
        return Check(
            code=code,
            title=title,
            ok=False,
            why=f"{path} is no directory on the gateway's machine",
            fix="Mount it there: the gateway puts recovered machines' disks into it itself.",
        )
    if not os.access(path, os.W_OK | os.X_OK):
        return Check(
            code=code,
            title=title,
            ok=False,
            why=f"the gateway's user (uid {os.geteuid()}) may not write into {path}",
            fix=f"`setfacl -m u:{os.geteuid()}:rwx {path}`, or run the gateway as its owner.",
            ask=f"write access to {path}, of the host's administrator",
        )
    return Check(code=code, title=title, ok=True)


def _scratch(connection: Any, here: Places) -> Check:
    title = f"scratch is local and beside no guest's disks ({here.scratch_dir})"
    code = "libvirt.scratch"
    users: dict[str, set[str]] = {}
    with contextlib.suppress(libvirt.libvirtError):  # told by the first check
        users = inventory.image_users(inventory.look_all(connection))
    reasons = space.scratch_reasons(here.scratch_dir, users)
    if here.scratch_dir.exists() and not os.access(here.scratch_dir, os.W_OK | os.X_OK):
        reasons.append(f"the gateway's user (uid {os.geteuid()}) may not write into it")
    if reasons:
        return Check(
            code=code,
            title=title,
            ok=False,
            why="; ".join(reasons),
            fix="Name a directory on a local volume of its own under [fabric] scratch_dir.",
            ask="a local volume of some GiB, of the host's administrator",
        )
    return Check(code=code, title=title, ok=True)


def _sockets(connection: Any, here: Places) -> Check:
    title = f"QEMU and the gateway meet in {here.socket_dir}"
    code = "libvirt.sockets"
    # it is made when the first machine is protected: until then what is above it counts
    there = next(path for path in (here.backup_dir, *here.backup_dir.parents) if path.exists())
    why = fix = ""
    try:
        if there != here.backup_dir and not os.access(there, os.W_OK | os.X_OK):
            why = f"the gateway's user (uid {os.geteuid()}) may not make {here.backup_dir} in {there}"
            fix = f"`install -d -o {os.geteuid()} {here.socket_dir}`."
        else:
            places.check_reachable(there, places.qemu_user(connection), confined=False)
            if not places.apparmor_allows(here.backup_dir):
                why = f"AppArmor keeps QEMU from the sockets in {here.backup_dir}"
                rule = places.apparmor_rule(here.socket_dir)
                fix = f"Add the line `{rule}` to {places.APPARMOR_LOCAL}."
    except SecondsiteError as error:
        why, _, fix = error.sentences()
    except (OSError, libvirt.libvirtError) as error:
        why, fix = str(error), "See that the gateway's user may look into that directory."
    return Check(code=code, title=title, ok=not why, why=why, fix=fix)
