"""``secondsite job approve|reject|approvals`` and ``secondsite vault approvals``: four eyes."""

from __future__ import annotations

import re
from typing import Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.server.jobs import NoWait, started

_DEMAND = re.compile(r"([a-z0-9.-]+)(?:=([1-9]))?\Z")


def list_approvals(
    job: str | None = None, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """List what waits for the approval of a second person, or what one job asked and who said what.

    For example:

        secondsite job approvals

        secondsite job approvals 019a2b3c-0000-7000-8000-000000000000

    Parameters
    ----------
    job
        A job's id; all that wait when not given.
    """
    from secondsite.client import approvals

    with reach.open() as server:
        found = list(approvals.approvals(server) if job is None else approvals.approvals_of(server, job))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["JOB", "WHAT", "OPERATION", "BY", "STATE", "GIVEN>", "SAID", "UNTIL"],
        (
            (
                one.job,
                one.subject,
                one.operation,
                one.asked_by,
                one.state,
                f"{sum(vote.verdict == 'approved' for vote in one.votes)} of {one.needed}",
                ", ".join(f"{vote.voter} {vote.verdict}" for vote in one.votes),
                short_time(one.expires_at),
            )
            for one in found
        ),
        empty="Nothing waits for an approval." if job is None else "The job asked for no approval.",
    )


def approve(
    job: str,
    /,
    *,
    comment: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Approve what a job asks, as another person than who started it; needs the role approver.

    For example:

        secondsite job approve 019a2b3c-0000-7000-8000-000000000000 --comment "agreed with Maria"

    Parameters
    ----------
    job
        Its id, from `secondsite job approvals`.
    comment
        Why; kept with the job and in the audit log.
    no_wait
        Approve and return.
    """
    from secondsite.client import approvals

    with reach.open() as server:
        return started(server, approvals.approve(server, job, comment), listing, no_wait=no_wait)


def reject(
    job: str,
    /,
    *,
    comment: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Reject what a job asks: it fails, and takes back what it did.

    For example:

        secondsite job reject 019a2b3c-0000-7000-8000-000000000000 --no-wait --comment "not on a Friday"

    Parameters
    ----------
    job
        Its id, from `secondsite job approvals`.
    comment
        Why; who asked reads it.
    no_wait
        Reject and return: with exit code 0, where following the job ends with that of its failure.
    """
    from secondsite.client import approvals

    with reach.open() as server:
        return started(server, approvals.reject(server, job, comment), listing, no_wait=no_wait)


def demands(
    name: str,
    /,
    *,
    require: Annotated[list[str] | None, Parameter(negative="")] = None,
    nothing: Annotated[bool, Parameter(negative="")] = False,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Show what of a vault needs the approval of a second person, or change it.

    To demand less than before needs such an approval itself. Without options it shows what holds, and which
    operations there are.

    For example:

        secondsite vault approvals North

        secondsite vault approvals North --require disable-with-replica

        secondsite vault approvals North --require disable-with-replica=2

        secondsite vault approvals North --nothing

    Parameters
    ----------
    name
        The vault's name or id.
    require
        An operation, or several with commas between; with =2 it takes two people besides who asks. What is
        not named needs none from then on.
    nothing
        Nothing is to need an approval.
    no_wait
        Begin the change and return.
    """
    from secondsite.client import approvals

    if require is not None and nothing:
        raise InvalidInput(what="the demands", why="give either --require or --nothing")
    with reach.open() as server:
        if require is not None or nothing:
            job = approvals.change_demands(server, name, parse_demands(require or []))
            return started(server, job, listing, no_wait=no_wait)
        found = approvals.demands(server, name)
    if listing.json:
        print_json(found)
        return 0
    people = {demand.operation: demand.people for demand in found.demands}
    print_table(
        ["OPERATION", "PEOPLE>"],
        ((operation, people.get(operation, "none")) for operation in sorted({*found.known, *people})),
        empty="Nothing of this server can need an approval.",
    )
    return 0


def parse_demands(texts: list[str]) -> dict[str, int]:
    """``["a,b=2", "c"]`` as operation -> people. Raises InvalidInput."""
    wanted: dict[str, int] = {}
    for text in (part.strip() for given in texts for part in given.split(",")):
        match = _DEMAND.match(text)
        if match is None:
            raise InvalidInput(what=f"--require {text!r}", why="it is not OPERATION or OPERATION=PEOPLE")
        wanted[match[1]] = int(match[2] or 1)
    return wanted
