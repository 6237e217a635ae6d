"""``secondsite gateway check``: whether a gateway has what it needs at its own place."""

from __future__ import annotations

from secondsite.base.errors import Outcome
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.server.enrol import GatewayNotListed


def check(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> int:
    """Have a gateway look whether it may do what it is for: each right that is missing, with the fix.

    It tries: writing to its directories, its store and the host's storage pools, defining a machine (which
    is removed at once), where its scratch directory lies, its certificate. Exit code 4: something is missing.

    For example:

        secondsite gateway check gateway-a

        secondsite gateway check gateway-a --json

    Parameters
    ----------
    name
        The gateway's name.
    """
    from secondsite.client import topology, vaults

    with reach.open() as server:
        found = vaults.provider(server, name)
        if found is None:
            raise GatewayNotListed(name=name)
        told = topology.readiness(server, found.vault_id, found.name)
    code = int(Outcome.OK if told.ready else Outcome.REFUSED)
    if listing.json:
        print_json(told)
        return code
    missing = sum(not one.ok for one in told.checks)
    print(f"{told.provider} at {short_time(told.at)}: {f'{missing} missing' if missing else 'ready'}")
    print_table(
        ["CHECK", "NEEDED", "THERE"],
        ((one.code, one.title, "yes" if one.ok else "NO") for one in told.checks),
        empty="It needs nothing.",
    )
    for one in told.checks:
        if not one.ok:
            print(
                f"{one.code}: {one.why}\n  fix:     {one.fix}"
                + (f"\n  ask for: {one.ask}" if one.ask else "")
            )
    return code
