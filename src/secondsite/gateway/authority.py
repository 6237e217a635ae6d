"""How a source becomes the writer of its machine at the target (rule 2)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from secondsite.gateway.cycle import Bench
from secondsite.model.events import Severity
from secondsite.model.ids import KeyId
from secondsite.transfer.protocols import ClaimRequest, Link, TargetHead


def claim_machine(link: Link, bench: Bench, head: TargetHead, reason: str) -> None:
    """Ask for the next epoch, as seen from `head`. Raises what the target raises."""
    request = ClaimRequest(
        machine=bench.machine,
        machine_name=bench.name,
        reason=reason,
        nonce=secrets.token_hex(16),
        expected_number=head.number,
        expected_hash=head.hash,
    )
    claim = link.claim(request)
    text = f"this gateway writes {bench.name} from epoch {claim.epoch} on: {reason}"
    bench.events.emit("replicate.claimed", Severity.INFORMATION, text, machine=bench.machine)


def send_keys(link: Link, bench: Bench, wrapped: Mapping[KeyId, bytes]) -> None:
    """Put the wrapped data keys into the target's store, before the first point needs them."""
    for key, data in wrapped.items():
        link.put_key(bench.machine, key, data)
