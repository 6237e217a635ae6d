"""How a source becomes the writer of its machine at the target (rule 2)."""

from __future__ import annotations

import secrets

from secondsite.base.errors import SecondsiteError
from secondsite.gateway.source import plan
from secondsite.gateway.source.cycle import Bench
from secondsite.model.events import Severity
from secondsite.model.ids import KeyId
from secondsite.model.points import DiskState
from secondsite.transfer.protocols import ClaimRequest, CommittedPoint, Link, TargetHead


def claim_machine(link: Link, bench: Bench, head: TargetHead, step: plan.Claim) -> None:
    """Ask for the next epoch, as seen from `head`. Raises what the target raises."""
    reason = step.reason
    request = ClaimRequest(
        machine=bench.machine,
        machine_name=bench.name,
        reason=reason,
        nonce=secrets.token_hex(16),
        expected_number=head.number,
        expected_hash=head.hash,
        above=step.above,
    )
    claim = link.claim(request)
    text = f"this gateway writes {bench.name} from epoch {claim.epoch} on: {reason}"
    bench.events.emit("replicate.claimed", Severity.INFORMATION, text, machine=bench.machine)


def exchange_keys(
    link: Link, bench: Bench, wrapped: dict[KeyId, bytes], newest: CommittedPoint | None
) -> None:
    """Put the wrapped data keys into the target's store, before the first point needs them.

    newest: the point whose keys are taken back first where ours are others: this gateway lost what it knew,
    and made new ones. With those nothing could be compared, and everything would travel again.

    Raises what may pass otherwise (link.down), and what the target refuses of ours.
    """
    for disk in newest.disks if newest is not None else ():
        ours = bench.keys.get(disk.id)
        if ours is not None and ours.origin != disk.key_id and bench.rekey is not None:
            _take_back(link, bench, wrapped, disk)
    for key, data in wrapped.items():
        link.put_key(bench.machine, key, data)


def _take_back(link: Link, bench: Bench, wrapped: dict[KeyId, bytes], disk: DiskState) -> None:
    assert bench.rekey is not None
    try:
        found = bench.rekey(disk.id, link.get_key(bench.machine, disk.key_id))
    except SecondsiteError as error:
        if error.retryable:
            raise
        text = (
            f"the data key of disk {disk.id} of {bench.name} is new, the one before is not to be had: {error}"
        )
        bench.events.emit("replicate.key-lost", Severity.WARNING, text, machine=bench.machine)
        return
    wrapped.pop(bench.keys[disk.id].id, None)
    wrapped |= found.wrapped
    bench.keys[disk.id] = found.key
    bench.tables[disk.id].void("")  # it knows blocks by digests made with the key of before
    text = f"the data key of disk {disk.id} of {bench.name} came back from the target"
    bench.events.emit("replicate.key-recovered", Severity.INFORMATION, text, machine=bench.machine)
