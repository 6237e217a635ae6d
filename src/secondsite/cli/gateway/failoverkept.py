"""``secondsite failover retire`` and ``complete-migration``: what follows a committed failover."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json

if TYPE_CHECKING:
    from secondsite.gateway.control.failoverclient import FailoverClient
    from secondsite.gateway.messages.failover import FailoverStatus

POLL_SECONDS = 0.2
Wait = Annotated[bool, Parameter(negative="--no-wait")]


def retire(
    machine: str,
    /,
    *,
    confirm: str = "",
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Delete what is left of the replica a machine was taken over from, once it has a point elsewhere.

    Refused before: until then it may be needed. One small record stays for good: it holds the machine's
    former source, should that ever come back, and keeps the machine's epochs growing.

    For example:

        secondsite failover retire shop --confirm "the former points of shop here are given up"

    Parameters
    ----------
    machine
        Name or id of a machine whose failover was committed here, or the number of that operation.
    confirm
        The sentence that the command asks for when it is not given.
    wait
        Wait until it is done, or return at once.
    """
    from secondsite.cli.gateway.failover import client_of
    from secondsite.gateway.messages.reverse import RetireReplica
    from secondsite.model.failover import KeptState

    clock, never = SystemClock(), threading.Event()
    with client_of(reach) as client:
        request = RetireReplica(operation=secrets.token_hex(16), confirm=confirm, requested_by=whoami())
        found = client.retire_replica(_committed(client, machine).id, request)
        while wait and found.kept is not KeptState.RETIRED:
            clock.wait(never, POLL_SECONDS)
            found = client.failover(found.id)
    if listing.json:
        print_json(found)
    elif wait:
        print(f"nothing is left of the replica {found.name} was taken over from")


def complete_migration(
    machine: str, /, *, confirm: str = "", reach: Reach = REACH, listing: Listing = LISTING
) -> None:
    """Say that a machine stays here for good: its former site reverses nothing, nothing fails back.

    For example:

        secondsite failover complete-migration shop --confirm "shop stays here for good and never fails back"

    Parameters
    ----------
    machine
        Name or id of a machine whose failover was committed here, or the number of that operation.
    confirm
        The sentence that the command asks for when it is not given.
    """
    from secondsite.cli.gateway.failover import client_of
    from secondsite.gateway.messages.reverse import CompleteMigration

    with client_of(reach) as client:
        request = CompleteMigration(operation=secrets.token_hex(16), confirm=confirm, requested_by=whoami())
        found = client.complete_migration(_committed(client, machine).id, request)
    if listing.json:
        print_json(found)
    else:
        print(f"{found.name} stays here for good")


def _committed(client: FailoverClient, machine: str) -> FailoverStatus:
    """The newest committed one of a machine; an operation's number is taken at its word."""
    from secondsite.model.failover import FailoverState

    found = [
        each
        for each in client.failovers()
        if machine in (each.id, each.machine, each.machine_name, each.name)
        and each.state is FailoverState.COMMITTED
    ]
    return found[-1] if found else client.failover(machine)
