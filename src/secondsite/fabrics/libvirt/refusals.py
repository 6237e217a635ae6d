"""Why a machine cannot be protected, every reason named. Pure: from its definition and a few facts.

What is refused has no counterpart at another site, or would be copied without its meaning; what is merely
different there (a CD image, a console's log, a pinned processor) is mapped at recovery instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from xml.etree import ElementTree as ET

from secondsite.fabrics.libvirt import domxml
from secondsite.fabrics.libvirt.domxml import DomainDisk

QEMU_NAMESPACE = "{http://libvirt.org/schemas/domain/qemu/1.0}"

# Disk kinds whose content QEMU's bitmaps can follow and that a path names.
_KINDS = {"file", "block", "volume"}

_NIC_KINDS = {
    "hostdev": "is a passed-through host adapter",
    "vhostuser": "is a vhost-user socket of another program on the host",
    "vdpa": "is a vDPA device of the host",
}


def lasting_reasons(disk: DomainDisk) -> list[str]:
    """Why this disk cannot be followed by bitmaps as long as it is as it is."""
    name = f"disk {disk.dev}"
    reasons = []
    if disk.device == "lun":
        reasons.append(f"{name} passes SCSI commands through to a host device (device='lun')")
    if disk.kind not in _KINDS:
        reasons.append(f"{name} is a {disk.kind} source, not a file or block device of this host")
    if disk.encrypted:
        reasons.append(f"{name} is encrypted with a libvirt secret that only this host has")
    if disk.shareable:
        reasons.append(f"{name} is shared with other machines (shareable)")
    if disk.transient:
        reasons.append(f"{name} is transient: what is written to it is thrown away at shut-off")
    if disk.kind in _KINDS and disk.format != "qcow2":
        # QEMU stores persistent bitmaps in qcow2 only; libvirt refuses a checkpoint on anything else.
        reasons.append(
            f"{name} is {disk.format}: changes can be followed across restarts in qcow2 only "
            f"(`qemu-img convert -O qcow2`, or leave it out with --disk)"
        )
    return reasons


def disk_reasons(disk: DomainDisk, users: Mapping[str, Iterable[str]] | None = None) -> list[str]:
    """Why this disk cannot be copied; `users`: image path -> names of other machines that use it."""
    name = f"disk {disk.dev}"
    reasons = lasting_reasons(disk)
    if disk.reports_errors:
        # While a job is open a write needs room in scratch, too; a guest that stops goes on when there is.
        reasons.append(
            f"{name} reports write errors to the guest (error_policy), also those of a full scratch directory"
        )
    if disk.mirrored:
        reasons.append(f"{name} is being moved by a block copy; wait for it to end")
    others = sorted((users or {}).get(disk.path or "", ()))
    if others:
        reasons.append(f"{name} is also used by {', '.join(others)}")
    return reasons


def _host_devices(devices: ET.Element) -> list[str]:
    reasons = []
    for hostdev in devices.findall("hostdev"):
        kind = hostdev.get("type", hostdev.get("mode", "host"))
        reasons.append(f"a {kind} device of the host is passed through")
    for nic in devices.findall("interface"):
        why = _NIC_KINDS.get(nic.get("type", ""))
        if why:
            mac = nic.find("mac")
            reasons.append(f"network adapter {mac.get('address') if mac is not None else '?'} {why}")
    for tpm in devices.findall("tpm/backend"):
        if tpm.get("type") == "emulator":
            # Its state is not part of any disk; sealed secrets in it would be lost at the other site.
            reasons.append("it has an emulated TPM, whose state is not carried yet")
        else:
            reasons.append(f"it uses a TPM of the host ({tpm.get('type')})")
    return reasons


def _host_memory(devices: ET.Element) -> list[str]:
    reasons = []
    for filesystem in devices.findall("filesystem"):
        target = filesystem.find("target")
        name = target.get("dir") if target is not None else "?"
        reasons.append(f"file system {name} is a directory of the host")
    reasons += [
        f"it has persistent memory ({memory.get('model')}) backed by the host"
        for memory in devices.findall("memory")
        if memory.get("model") in {"nvdimm", "virtio-pmem"}
    ]
    if devices.find("shmem") is not None:
        reasons.append("it shares memory with other programs of the host (shmem)")
    if any(card.get("mode") in {"host", "host-certificates"} for card in devices.findall("smartcard")):
        reasons.append("it uses a smart card of the host")
    if any(source.get("type") in {"passthrough", "evdev"} for source in devices.findall("input")):
        reasons.append("an input device of the host is passed through")
    return reasons


def machine_reasons(domain: ET.Element, *, persistent: bool) -> list[str]:
    """Why the machine as a whole cannot be carried, whatever disks are chosen."""
    reasons = []
    if not persistent:
        reasons.append("it is transient: libvirt keeps no checkpoints for a machine it forgets at shut-off")
    if domain.get("type") not in {"kvm", "qemu"}:
        reasons.append(f"it is of type {domain.get('type')}, not KVM or QEMU")
    devices = domain.find("devices")
    if devices is not None:
        reasons += _host_devices(devices) + _host_memory(devices)
    if domain.find("launchSecurity") is not None:
        reasons.append("its memory is encrypted by this host's processor (launchSecurity)")
    nvram = domain.find("os/nvram")
    if nvram is not None and domxml.nvram_path(domain) is None and nvram.get("type", "file") != "file":
        reasons.append("its firmware variables are not a file")
    if any(child.tag.startswith(QEMU_NAMESPACE) for child in domain):
        reasons.append("it passes options straight to QEMU (qemu:commandline)")
    return reasons
