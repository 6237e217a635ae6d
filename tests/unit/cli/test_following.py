"""Commands that wait: ended by Ctrl-C they say that the work goes on, and none waits for what cannot come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from secondsite.cli.common.following import WentElsewhere
from secondsite.cli.common.gateways import LISTING
from secondsite.cli.gateway import failover, heldreverse
from secondsite.cli.server import jobs
from secondsite.gateway.messages.failover import FailoverStatus
from secondsite.gateway.messages.reverse import ReverseState, ReverseStatus
from secondsite.model.failover import FailoverKind, FailoverState
from secondsite.model.ids import MachineId
from secondsite.model.points import Consistency

MACHINE = MachineId("9b5e1d3c-0000-4000-8000-000000000001")
AT = "2026-01-01T00:00:00+00:00"


def a_failover(state: FailoverState) -> FailoverStatus:
    return FailoverStatus(
        id="ab" * 16,
        machine=MACHINE,
        machine_name="shop",
        name="shop",
        kind=FailoverKind.UNPLANNED,
        state=state,
        point=1,
        point_at=AT,
        consistency=Consistency.CRASH,
        network="mapped",
        requested_at=AT,
        expected_loss_seconds=1.0,
    )


class Client:
    """A gateway, or a server, that answers with this."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.failover = self.reversal = self.job = lambda _: answer()


def interrupted() -> Any:
    raise KeyboardInterrupt


def follow(answer: Callable[[], Any]) -> FailoverStatus:
    client, begun = Client(answer), a_failover(FailoverState.CLAIMED)
    return failover._follow(cast("Any", client), begun, {FailoverState.COMPLETED}, quiet=True)


def test_ctrl_c_ends_the_command_only_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        follow(interrupted)
    told = capsys.readouterr().err
    assert "the failover of shop goes on" in told
    assert "secondsite failover status" in told
    with pytest.raises(KeyboardInterrupt):
        jobs.follow_job(cast("Any", Client(interrupted)), "j1", LISTING)
    assert "secondsite job show j1" in capsys.readouterr().err


@pytest.mark.parametrize("end", [FailoverState.ROLLED_BACK, FailoverState.COMMITTED])
def test_what_somebody_else_ended_is_not_waited_for(end: FailoverState) -> None:
    with pytest.raises(WentElsewhere, match=end.value):
        follow(lambda: a_failover(end))


def test_a_reversal_that_was_taken_back_is_not_waited_for() -> None:
    def status(state: ReverseState) -> ReverseStatus:
        return ReverseStatus(
            operation="ab" * 16, machine=MACHINE, name="shop", writer="b", state=state, requested_at=AT
        )

    client = Client(lambda: status(ReverseState.TAKEN_BACK))
    begun = status(ReverseState.ADOPTING)
    with pytest.raises(WentElsewhere, match="TakenBack"):
        heldreverse._follow(cast("Any", client), begun, ReverseState.READY, quiet=True)
