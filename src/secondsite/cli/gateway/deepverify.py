"""``secondsite verify --deep``: the source's disks against the points made of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome
from secondsite.base.units import format_bytes
from secondsite.cli.common.gateways import Listing
from secondsite.cli.common.output import print_json, short_time
from secondsite.cli.common.progress import CopyProgress

if TYPE_CHECKING:
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.gateway import DeepVerification

POLL_SECONDS = 0.3


def verify_deeply(client: GatewayClient, machine: str, *, last: bool, listing: Listing) -> int:
    """Begin, follow and tell; `last`: tell of the last one. Exit code 6 where something differs."""
    found = client.deep_verification(machine) if last else _follow(client, machine, quiet=listing.json)
    if listing.json:
        print_json(found)
    else:
        _print(found)
    if found.differing_bytes:
        return int(Outcome.DAMAGED)
    return int(Outcome.FAILED if found.error else Outcome.OK)


def _follow(client: GatewayClient, machine: str, *, quiet: bool) -> DeepVerification:
    from secondsite.gateway.messages.gateway import FirstCopy

    clock, never = SystemClock(), threading.Event()
    found = client.deep_verify(machine)
    began = clock.monotonic()
    with CopyProgress(found.name, quiet=quiet, doing="comparing") as progress:
        while found.finished_at is None and not found.error:
            rate = found.done_bytes / max(0.001, clock.monotonic() - began)
            left = (found.total_bytes - found.done_bytes) / rate if rate and found.total_bytes else None
            copy = FirstCopy(
                done_bytes=found.done_bytes,
                total_bytes=found.total_bytes,
                bytes_per_second=rate,
                seconds_left=left,
            )
            progress.show(copy if found.total_bytes else None, "a slice with each cycle")
            clock.wait(never, POLL_SECONDS)
            found = client.deep_verification(machine)
    return found


def _print(found: DeepVerification) -> None:
    if found.started_at is None:
        print(f"{found.name} was never compared with its source")
        return
    points = f"points {found.first_point} to {found.last_point}" if found.first_point else "no point"
    ended = short_time(found.finished_at) if found.finished_at else "not ended"
    print(f"{found.name}: {format_bytes(found.done_bytes)} compared with {points}, {ended}")
    if found.error:
        print(f"  it ended before it was through: {found.error}")
    for part in found.differing:
        print(f"  DIFFERS {part.disk} {part.offset}..{part.offset + part.length} at point {part.point}")
    if found.differing_bytes:
        size = format_bytes(found.differing_bytes)
        print(f"  {size} differ from the source; they are sent again with the next cycle")
    elif not found.error:
        print("  nothing differs")
