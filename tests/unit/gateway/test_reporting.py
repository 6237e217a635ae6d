"""What a gateway tells its server of what follows a commit: what became of the replica; a final move."""

from __future__ import annotations

from secondsite.base.clock import FakeClock
from secondsite.gateway.common.desired import Everything
from secondsite.gateway.messages.failover import FailoverStatus, HeldMachine
from secondsite.gateway.uplink.reporting import make_report, signature
from secondsite.model.failover import FailoverKind, FailoverState, HeldState, KeptState
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency

SHOP = MachineId("00000000-0000-4000-8000-000000000001")
AT = "2026-01-01T00:00:00+00:00"


def over(kept: KeptState | None) -> FailoverStatus:
    return FailoverStatus(
        id="ab" * 16,
        machine=SHOP,
        machine_name="shop",
        name="shop",
        kind=FailoverKind.PLANNED,
        state=FailoverState.COMMITTED,
        point=7,
        point_at=AT,
        consistency=Consistency.CRASH,
        network="mapped",
        requested_at=AT,
        expected_loss_seconds=0.0,
        kept=kept,
    )


def held(*, final: bool) -> HeldMachine:
    return HeldMachine(machine=SHOP, name="shop", state=HeldState.HELD, why="-", held_at=AT, final=final)


def test_a_final_move_is_told_by_both_sites_and_at_once() -> None:
    for kept, final, told in ((None, False, ""), (KeptState.MIGRATED, True, "MigrationCompleted")):
        report = make_report(
            FakeClock(),
            Everything({}, {}),
            [],
            [],
            refused={},
            tell=(),
            failovers=[over(kept)],
            held=[held(final=final)],
        )
        assert (report.failovers[0].kept, report.held[0].final) == (told, final)
    before = signature([], [over(None)], [held(final=False)])
    assert signature([], [over(KeptState.MIGRATED)], [held(final=False)]) != before
    assert signature([], [over(None)], [held(final=True)]) != before
