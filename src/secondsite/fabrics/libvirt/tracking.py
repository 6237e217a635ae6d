"""When what QEMU's bitmaps say must not be believed (architecture's rule 13).

Lost is easy: libvirt says so. Lying is not: going back to an internal snapshot changes a disk's content
without a trace in its bitmaps. QEMU 7.2 refuses that while the image has bitmaps ("Device has active dirty
bitmaps"; libvirt 9.0 then leaves the machine off, so an operator releases the machine first). Other versions
may not, so each checkpoint carries a note of the run it was made in, and a machine with internal snapshots is
believed only within that run: libvirt starts another QEMU for each revert. What leaves no trace at all (an
image changed while off by tools that know nothing of bitmaps) is what the rolling verify is for.
"""

from __future__ import annotations

from collections.abc import Iterable

import libvirt

from secondsite.fabrics.errors import CheckpointUnknown, ContentReverted
from secondsite.fabrics.libvirt import checkpoints, domxml
from secondsite.fabrics.libvirt.inventory import Found

# domain state -> the reason that means "its state came from a snapshot"
_FROM_SNAPSHOT = {
    libvirt.VIR_DOMAIN_RUNNING: libvirt.VIR_DOMAIN_RUNNING_FROM_SNAPSHOT,
    libvirt.VIR_DOMAIN_PAUSED: libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
    libvirt.VIR_DOMAIN_SHUTOFF: libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT,
}

_LOST_CODES = {
    libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT,
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
    libvirt.VIR_ERR_INVALID_DOMAIN_CHECKPOINT,
}
# Codes libvirt uses for many things; only with these words do they concern the bitmaps.
_MAYBE_CODES = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
}


def note(found: Found) -> str:
    """What to write down with a checkpoint: the run (a domain's id lasts from start to stop)."""
    return f"secondsite run={found.domain.ID()}"


def _has_internal_snapshots(found: Found) -> bool:
    for snapshot in found.domain.listAllSnapshots(0):
        xml = domxml.parse(snapshot.getXMLDesc(0))
        places = {disk.get("snapshot", "internal") for disk in xml.findall("disks/disk")}
        if "internal" in places or not places:
            return True
    return False


def check(found: Found, name: str, since: str) -> None:
    """Raise a TrackingLost if changes since the checkpoint are known to be unknown, before asking."""
    if since not in checkpoints.listed(found.domain):
        raise CheckpointUnknown(machine=name, checkpoint=since, why="there is no such checkpoint")
    why = _reverted(found, since)
    if why:
        raise ContentReverted(machine=name, checkpoint=since, why=why)


def _reverted(found: Found, since: str) -> str | None:
    if checkpoints.note(found.domain, since) == note(found):
        return None  # the same run: libvirt starts another QEMU for every revert
    state, reason = found.domain.state()
    if _FROM_SNAPSHOT.get(state) == reason:
        return "the machine was reverted to a snapshot"
    if _has_internal_snapshots(found):
        return "it was restarted and has internal snapshots, so that a revert cannot be told from a start"
    return None


def says_lost(error: libvirt.libvirtError) -> bool:
    """Whether libvirt's refusal of an incremental backup means that the bitmaps are not there."""
    code = error.get_error_code()
    if code in _LOST_CODES:
        return True
    text = str(error.get_error_message() or "").lower()
    return code in _MAYBE_CODES and ("bitmap" in text or "checkpoint" in text)


def disk_named(text: str, devs: Iterable[str]) -> str | None:
    """The disk whose bitmap libvirt misses: it names it, in quotes, in whatever language."""
    named = [dev for dev in devs if f"'{dev}'" in text]
    return named[0] if len(named) == 1 else None
