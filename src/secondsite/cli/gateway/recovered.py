"""``failover apply-settings``, ``test-failover apply-settings``: bring addresses into a guest once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach
from secondsite.cli.common.output import print_json

if TYPE_CHECKING:
    from secondsite.gateway.messages.testfailover import InjectionStatus


def of_failover(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Bring the addresses that were set into the guest of a machine that was taken over, once more.

    The guest agent runs the script on the machine's drive, also where the guest was to read it by itself. See
    `secondsite failover status MACHINE --json` for what became of it, and docs/recovered-machine.md.

    For example:

        secondsite failover apply-settings shop

    Parameters
    ----------
    machine
        Name or id of the machine.
    """
    from secondsite.gateway.control.failoverclient import FailoverClient

    with FailoverClient(reach.gateway) as client:
        found = [one for one in client.failovers() if machine in (one.machine, one.machine_name, one.name)]
        if not found:
            raise InvalidInput(what=f"the machine {machine!r}", why="no failover of it is known here")
        status = client.apply_settings(found[-1].id)
    _print(status, listing)


def of_test(machine: str, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """Bring the addresses that were set into the guest of a standing test machine, once more.

    The guest agent runs the script on the machine's drive, also where the guest was to read it by itself. See
    `secondsite test-failover list --json` for what became of it, and docs/recovered-machine.md.

    For example:

        secondsite test-failover apply-settings shop

    Parameters
    ----------
    machine
        Name or id of the machine that is tested.
    """
    with reach.open() as client:
        found = [
            one for one in client.test_failovers() if machine in (one.machine, one.machine_name, one.name)
        ]
        if not found:
            raise InvalidInput(what=f"the machine {machine!r}", why="no test failover of it is known here")
        status = client.apply_settings(found[-1].id)
    _print(status, listing)


def _print(status: InjectionStatus, listing: Listing) -> None:
    if listing.json:
        print_json(status)
    else:
        print(f"its addresses are brought in once more: {status.state.value}")
