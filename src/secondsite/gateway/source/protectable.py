"""Whether a machine can be protected as somebody asks, found out before anything is kept."""

from __future__ import annotations

from collections.abc import Sequence

from secondsite.base.errors import InvalidInput
from secondsite.fabrics.base import Fabric, Source
from secondsite.gateway.common.desired import Protection
from secondsite.gateway.messages.protecterrors import PeerUnknown
from secondsite.gateway.source.ways import Routes
from secondsite.model.ids import DiskId, MachineId


def open_protectable(
    fabric: Fabric,
    routes: Routes,
    machine: MachineId,
    before: Protection | None,
    *,
    peer: str,
    disks: Sequence[DiskId] | None,
    left_out: Sequence[DiskId],
) -> Source:
    """The machine's source. before: how it is protected now.

    Raises PeerUnknown, InvalidInput, and what the fabric raises.
    """
    if peer not in routes:
        raise PeerUnknown(peer=peer, known=", ".join(sorted(routes)) or "none")
    if before is not None and before.enabled and before.peer != peer:
        why = f"it is protected at {before.peer}: unprotect it first, its points there stay"
        raise InvalidInput(what=f"the peer {peer} for {before.name}", why=why)
    source = fabric.open_source(machine, disks, left_out=left_out, taken=before is not None)
    known = [disk.id for disk in source.machine.disks]
    earlier = before.disks or () if before is not None else ()
    unknown = sorted(set(disks or ()) - set(known) - set(earlier)) if before is not None else []
    if unknown:
        raise InvalidInput(what=f"the disk {unknown[0]}", why=f"{source.machine.name} has {', '.join(known)}")
    if not [disk for disk in disks or known if disk not in left_out]:
        raise InvalidInput(what=f"the disks of {source.machine.name}", why="none is left to be copied")
    return source
