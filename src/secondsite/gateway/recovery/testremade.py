"""A record of a test failover made anew where its own cannot be read: enough to remove all that it made.

The export that the test machine stands on says whose it is and of which point; the pin of that export says
the name of the test machine; its network is named by the id. What the record knew besides is lost with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from secondsite.base.clock import Clock
from secondsite.gateway.messages.gateway import ExportStatus
from secondsite.gateway.messages.testfailover import TestFailoverState, TestFailoverStatus
from secondsite.gateway.recovery.testfailover import TestFailoverRecord
from secondsite.journal.chain import Journal

REASON = "test failover "


def reason_of(name: str) -> str:
    """What the pin of a test machine's export says."""
    return REASON + name


def network_of(identity: str) -> str:
    """The isolated network of a test failover."""
    return f"ss-{identity[:8]}"


def remade(
    identities: Sequence[str], exports: Sequence[ExportStatus], journal: Journal, clock: Clock
) -> TestFailoverRecord | None:
    """Of the first of these that stands on an export of the journal's machine; None: none does."""
    served = {export.id.removeprefix("test-"): export for export in exports}
    for identity in identities:
        export = served.get(identity)
        if export is None or export.machine != journal.machine:
            continue
        pins = [pin.reason for pin in journal.state().pins if pin.holder == export.holder]
        names = [reason.removeprefix(REASON) for reason in pins if reason.startswith(REASON)]
        point = next((one for one in journal.points() if one.number == export.point), None)
        if not names or point is None:
            continue
        status = TestFailoverStatus(
            id=identity,
            machine=journal.machine,
            machine_name=point.machine_name,
            name=names[0],
            state=TestFailoverState.COMPLETED,
            point=point.number,
            point_at=point.given_at,
            consistency=point.consistency,
            network="",
            requested_at=clock.utc().isoformat(),
        )
        return TestFailoverRecord(status=status, network_made=network_of(identity))
    return None
