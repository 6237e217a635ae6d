"""``secondsite server standby`` and the rest: a second server that follows, and takes over when told to."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.units import format_seconds
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

if TYPE_CHECKING:
    from secondsite.client.standby import HandOver
    from secondsite.server.standby.follower import Follower
    from secondsite.server.standby.takeover import Plan

POLL_SECONDS = 0.5
Flag = Annotated[bool, Parameter(negative="")]


def _follower(config: Path | None) -> Follower:
    from secondsite.server.config import load_config
    from secondsite.server.standby.follower import Follower

    return Follower(load_config(config), SystemClock())


def status(*, config: Path | None = None, listing: Listing = LISTING) -> None:
    """Show, on a standby server's own machine, what it holds, how old that is, and who is active.

    For example:

        secondsite server standby status

        secondsite server standby status --json

    Parameters
    ----------
    config
        The standby's configuration; as for `secondsite server`.
    """
    follower = _follower(config)
    held, seen = follower.held(), follower.status()
    lag = follower.lag_seconds(seen, held)
    late = lag is None or lag > follower.late_seconds
    role = follower.files.role().value
    if listing.json:
        told: dict[str, object] = {"role": role, "lagSeconds": lag, "late": late, "seen": seen, "held": None}
        if held is not None:
            told["held"] = {
                "name": held.name,
                "server": held.server,
                "incarnation": held.incarnation,
                "madeAt": held.made_at,
                "verifiedAt": held.verified_at,
                "handedOverAt": held.handed_over_at,
                "size": held.size,
                "items": held.items,
                "gateways": held.gateways,
                "jobsUnderWay": held.jobs,
            }
        print_json(told)
        return
    print(f"role    {role}")
    if held is None:
        print(f"state   none: {seen.problem or 'no backup of a server with this master key was seen'}")
    else:
        age = f"{format_seconds(lag)} old" if lag is not None else "of unknown age"
        print(f"state   {age}{', LATE' if late else ''}: copy {held.name}, verified")
        print(f"        {held.items} items, {held.gateways} gateways, {held.jobs_under_way} jobs under way")
    print(f"active  {seen.active or 'not configured'}: {_said(seen.active_role, seen.active_problem)}")
    if seen.claim:
        print(
            f"claim   {seen.claim}: incarnation {seen.claim_incarnation} at {seen.claim_url}, {seen.claim_at}"
        )
    if seen.replica_at or seen.replica_problem:
        print(f"replica {seen.replica_problem or 'connected'}, complete up to {short_time(seen.replica_at)}")
    if seen.problem and held is not None:
        print(f"store   {seen.problem}")


def _said(role: str, problem: str) -> str:
    return f"does not answer: {problem}" if problem else role or "was not asked yet"


def take_over(
    *,
    confirm: str = "",
    although_active_answers: Flag = False,
    over_claim: int = 0,
    dry_run: Flag = False,
    config: Path | None = None,
    listing: Listing = LISTING,
) -> None:
    """Make this standby the active server, also while the other site is gone.

    It goes on with the newest state it verified, and shows how old that is and what is lost. Before anything
    else it claims the next life of the server in the store of its site: of two takeovers there one succeeds,
    and gateways obey the claim. Gateways come over by themselves; the old server does nothing more once a
    gateway or this server has told it. After a hand-over nothing is lost, and nothing is asked. Cut anywhere:
    run it again.

    For example:

        secondsite server take-over --dry-run

        secondsite server take-over

        secondsite server take-over --confirm "the other server does not run any more"

    Parameters
    ----------
    confirm
        The sentence that the command asks for when it is not given.
    although_active_answers
        Also while the active server answers and is at work: what it does until it is told is lost.
    over_claim
        Take over although another standby made this claim, because that one is lost as well.
    dry_run
        Show what would be lost, and change nothing.
    config
        The standby's configuration; as for `secondsite server`.
    """
    from secondsite.server.standby.takeover import Intent, Order, plan_takeover
    from secondsite.server.standby.takeover import take_over as go

    follower = _follower(config)
    begun = follower.files.read("takeover.json", Intent) is not None
    if not begun:
        plan = plan_takeover(follower)
        if not listing.json:
            _print_plan(plan)
        if dry_run:
            if listing.json:
                print_json({"loses": plan.loses, "lagSeconds": plan.lag_seconds, "copy": plan.held.name})
            return
    done = go(follower, Order(confirm, although_active_answers, over_claim))
    if listing.json:
        number, jobs = done.claim.incarnation, done.jobs_for_a_person
        shown = {"claim": done.claim.number, "incarnation": number, "url": done.claim.url}
        print_json({**shown, "database": done.database, "jobsForAPerson": jobs})
        return
    print(
        f"claim {done.claim.number} is in the store: incarnation {done.claim.incarnation} at {done.claim.url}"
    )
    print(f"the state is in {done.database}; this server is the active one")
    if done.jobs_for_a_person:
        print(f"{done.jobs_for_a_person} jobs were under way: see `secondsite job list --state Failed`")
    print("a running standby goes on as the active server within seconds; else: secondsite server")


def _print_plan(plan: Plan) -> None:
    print(f"state   {format_seconds(plan.lag_seconds)} old: copy {plan.held.name}")
    print(f"active  {plan.status.active or 'not configured'}: {_answers(plan)}")
    print(f"        {plan.loses}")
    for job in plan.held.jobs if not plan.handed_over else ():
        print(f"        job {job.id} {job.kind}: {job.state}")
    sys.stdout.flush()


def _answers(plan: Plan) -> str:
    if plan.active_answers:
        return "answers, and is at work"
    if plan.handed_over:
        return "was handed over"
    return (
        f"does not answer: {plan.status.active_problem}" if plan.status.active_problem else "is not at work"
    )


def become_standby(*, config: Path | None = None, listing: Listing = LISTING) -> None:
    """Make a former active server, on its own machine, the standby of the one that took its place.

    It must be stopped, and superseded: a gateway or the other server told it, or the store of its site has
    the claim. Its database is put aside, never deleted. Started again, `secondsite server` follows.

    For example:

        secondsite server become-standby

    Parameters
    ----------
    config
        Its configuration, with a section [standby]; as for `secondsite server`.
    """
    from secondsite.server.config import load_config
    from secondsite.server.standby.becoming import become_standby as become

    done = become(load_config(config))
    if listing.json:
        print_json({"aside": done.aside, "incarnation": done.incarnation, "supersededBy": done.superseded_by})
        return
    if done.aside:
        print(f"incarnation {done.superseded_by} has taken the place of {done.incarnation}")
        print(f"what this server knew is kept in {done.aside}")
    print("this machine is a standby; start it with `secondsite server`")


def standbys(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List the standby servers of the active one, how far each follows, and the server active before.

    For example:

        secondsite server standbys

        secondsite server standbys --json

    """
    from secondsite.client.standby import standbys as listed

    with reach.open() as server:
        found = listed(server)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "URL", "ROLE", "STATE OLD>", "SEEN AT", "HOLDS", "ID"],
        (
            (
                one.name,
                one.url,
                one.role + (" LATE" if one.late_since else ""),
                format_seconds(one.lag_seconds) if one.lag_seconds is not None else "",
                short_time(one.seen_at),
                one.copy_name,
                one.id,
            )
            for one in found
        ),
        empty="There is no standby server. See docs/standby.md.",
    )


def forget(standby: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Forget a standby server that is gone for good; one that lives says hello again.

    For example:

        secondsite server standby forget 0f3c...

    Parameters
    ----------
    standby
        Its id (`secondsite server standbys`).
    """
    from secondsite.client.standby import forget as drop

    with reach.open() as server:
        drop(server, standby)


def hand_over(
    *,
    take_back: Flag = False,
    no_wait: Flag = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Stop the active server in order for a standby to go on: the planned switch-over, which loses nothing.

    Steps under way end, no further one begins, nothing can be changed any more, and the last state goes into
    the stores. Then `secondsite server take-over` at the standby. Replication goes on meanwhile.

    For example:

        secondsite server hand-over

        secondsite server hand-over --take-back

    Parameters
    ----------
    take_back
        Go on here after all, as long as no standby has taken over.
    no_wait
        Return at once.
    """
    from secondsite.client.standby import hand_over as begin
    from secondsite.client.standby import hand_over_status
    from secondsite.client.standby import take_back as undo

    clock, never, said = SystemClock(), threading.Event(), ""
    with reach.open() as server:
        found = undo(server) if take_back else begin(server)
        while not take_back and not no_wait and found.state != "HandedOver":
            text = _hand_over_text(found)
            if text != said and not listing.json:
                print(text)
                sys.stdout.flush()
            said = text
            clock.wait(never, POLL_SECONDS)
            found = hand_over_status(server)
    if listing.json:
        print_json(found)
    else:
        print(_hand_over_text(found))


def _hand_over_text(found: HandOver) -> str:
    match found.state:
        case "Stopping":
            return f"waits for the steps under way of {len(found.waits_for)} jobs"
        case "Copying":
            problem = f": {found.problem}" if found.problem else ""
            return f"the last state is on its way into the stores{problem}"
        case "HandedOver":
            return f"handed over: copy {found.copy_name} is in {', '.join(found.stores)}; now take over"
        case _:
            return "this server is the active one"
