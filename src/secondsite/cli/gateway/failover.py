"""``secondsite failover``, ``check``: take a machine over at this site, and what follows from that."""

from __future__ import annotations

import secrets
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.clock import SystemClock
from secondsite.base.errors import Outcome, RemoteError
from secondsite.base.units import format_bytes, format_seconds, parse_seconds
from secondsite.cli.common.byitself import told_end
from secondsite.cli.common.following import WentElsewhere, goes_on
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.settingsoptions import NO_MACHINE, Machine, print_outlook

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secondsite.gateway.control.failoverclient import FailoverClient
    from secondsite.gateway.messages.failover import Check, FailoverPreview, FailoverStatus

POLL_SECONDS = 0.2
Wait = Annotated[bool, Parameter(negative="--no-wait")]
# as `failovermessages.OldMachine`, which is not imported for every command
OldMachine = Literal["remove", "remove-with-disks"]


def client_of(reach: Reach) -> FailoverClient:
    """Of the gateway that is meant."""
    from secondsite.gateway.control.failoverclient import FailoverClient

    return FailoverClient(reach.gateway)


def start(
    machine: str,
    /,
    *,
    point: str = "latest",
    network: str = "mapped",
    name: str | None = None,
    confirm: str = "",
    planned: Annotated[bool, Parameter(negative="")] = False,
    autostart: Annotated[bool, Parameter(negative="")] = False,
    old_machine: OldMachine | None = None,
    machine_there: Machine = NO_MACHINE,
    auto_commit_after: str | None = None,
    auto_roll_back_after: str | None = None,
    confirm_timer: str = "",
    bytes_per_second: int | None = None,
    operation: str | None = None,
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Take a machine over at this site: it boots here as itself, and its source may write nothing more.

    What it needs is looked at first (see `secondsite check`), and what will be lost is shown. Then this site
    is made the machine's authority in the store, before anything boots. A source whose gateway can be reached
    is isolated within seconds; while the link is cut nobody can know that it stands still, so that has to be
    said with --confirm. The machine runs on the point until it is committed: until then it can be moved to
    another point, or all of it undone.

    For example:

        secondsite failover shop

        secondsite failover shop --confirm "shop may still run at gateway-a"

        secondsite failover shop --point latest-application-consistent --network none --confirm "..."

        secondsite failover shop --planned --confirm "shop was stopped at gateway-a"

        secondsite failover shop --planned --old-machine remove-with-disks --confirm "..."

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    point
        latest, latest-processed, latest-application-consistent, last-clean, a number, or a time.
    network
        mapped: as the protection maps networks; none: attached to nothing; or a network of this site.
    name
        Name of the machine here; its own, if not given.
    confirm
        The sentence that the command asks for when it is not given: that the source may still run.
    planned
        Its source was stopped in order (`secondsite failover stop`, at its site), and the point is its last.
    autostart
        Once it is committed: let it start with its host.
    old_machine
        What becomes of the machine's former copy at this site, which was reversed onto: it has to make room,
        and its images stay or go with it.
    auto_commit_after
        Commit it by itself that long after it was last started: 90, 30min, 4h, 7d. Announced before, and
        cancelled by `secondsite failover cancel-timer`.
    auto_roll_back_after
        Or roll it back by itself: what it wrote here is lost then.
    confirm_timer
        What is said to a commit, or to a roll-back; the command asks for it when it is not given.
    bytes_per_second
        At its commit its disks are copied at most that fast, together, unless the commit says otherwise. One
        that commits by itself copies 100 MB/s, if this is not given.
    operation
        32 hexadecimal digits of your own; the same again goes on with what was begun with them.
    wait
        Wait until it runs, or return at once.
    """
    from secondsite.gateway.messages.failover import StartFailover
    from secondsite.model.failover import FailoverKind, FailoverState

    with client_of(reach) as client:
        settings = machine_there.build()
        seen = client.preview_failover(machine, point=point, network=network, name=name, settings=settings)
        if not listing.json:
            _print_preview(seen, planned=planned)
            if by_itself := told_end(auto_commit_after, auto_roll_back_after, bytes_per_second):
                print(f"  {by_itself}", flush=True)
        status = client.start_failover(
            machine,
            StartFailover(
                operation=operation or secrets.token_hex(16),
                point=point,
                confirm=confirm,
                kind=FailoverKind.PLANNED if planned else FailoverKind.UNPLANNED,
                network=network,
                name=name,
                autostart=autostart,
                old_machine=old_machine,
                settings=settings,
                auto_commit_after=parse_seconds(auto_commit_after) if auto_commit_after else None,
                auto_roll_back_after=parse_seconds(auto_roll_back_after) if auto_roll_back_after else None,
                confirm_timer=confirm_timer,
                bytes_per_second=bytes_per_second,
                requested_by=whoami(),
            ),
        )
        if wait:
            status = _follow(client, status, {FailoverState.COMPLETED}, quiet=listing.json)
    if listing.json:
        print_json(status)
    elif wait:
        print(f"{status.name} runs here from point {status.point}; {_lost(status)}")
        if status.console_log:
            print(f"its console is logged in {status.console_log}")
        print(f"next: `secondsite failover commit {machine}`, `change-point`, or `rollback`")


def _print_preview(seen: FailoverPreview, *, planned: bool) -> None:
    age = f"{format_seconds(seen.expected_loss_seconds)} old: what was written since is lost"
    print(
        f"{seen.machine_name}: point {seen.point} of {short_time(seen.point_at)} ({seen.consistency.value}), "
        + ("its source stands still since" if planned else age)
    )
    if seen.settings is not None and seen.outlook is not None:
        print_outlook(seen.outlook)
    for check in seen.checks:
        if not check.passed:
            print(f"  {check.name}: {check.cause}. {check.action}")
    sys.stdout.flush()


def _lost(status: FailoverStatus) -> str:
    if status.loss_seconds is None:
        return "what was lost is not known yet"
    return f"{format_seconds(status.loss_seconds)} before the claim are lost"


def _follow(
    client: FailoverClient, status: FailoverStatus, wanted: Iterable[object], *, quiet: bool
) -> FailoverStatus:
    """Poll until it is where it should be, printing each step that ended. Raises what it stopped with."""
    what, look = f"the failover of {status.machine_name}", "secondsite failover status"
    with goes_on(what, look):
        found = _poll(client, status, wanted, quiet=quiet)
    if found.state not in wanted:
        raise WentElsewhere(what=what, state=found.state.value, look=look)
    return found


def _poll(
    client: FailoverClient, status: FailoverStatus, wanted: Iterable[object], *, quiet: bool
) -> FailoverStatus:
    from secondsite.model.failover import STANDING

    clock, never, shown, percent = SystemClock(), threading.Event(), 0, -1
    while True:
        ended = [step for step in status.steps if step.ended_at is not None]
        for step in ended[shown:] if not quiet else ():
            print(f"  {step.name}")
        shown = max(shown, len(ended))
        done = 100 * status.flattened_bytes // status.total_bytes if status.total_bytes else -1
        if done > percent and not quiet:
            percent = done
            print(f"  {done} % of {format_bytes(status.total_bytes)} are on plain disks")
        sys.stdout.flush()
        if status.error is not None:
            raise RemoteError(dict(status.error))
        if status.state in wanted or status.state not in STANDING:
            return status
        clock.wait(never, POLL_SECONDS)
        status = client.failover(status.id)


def status(machine: str | None = None, /, *, reach: Reach = REACH, listing: Listing = LISTING) -> None:
    """List failovers of this site, standing and past: point, epoch, loss, and how far each has come.

    For example:

        secondsite failover status

        secondsite failover status shop --json

    Parameters
    ----------
    machine
        Name or id; all, if not given.
    """
    with client_of(reach) as client:
        found = [each for each in client.failovers() if machine is None or _is_of(each, machine)]
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MACHINE", "KIND", "STATE", "POINT>", "INSTANT", "LOST>", "EPOCH>", "BOOTED", "ALIVE", "NOTE"],
        (
            (
                each.name,
                each.kind.value,
                each.state.value,
                each.point,
                short_time(each.point_at),
                format_seconds(each.loss_seconds) if each.loss_seconds is not None else "",
                each.epoch or "",
                short_time(each.booted_at) if each.booted_at else "",
                "user space" if each.userspace_at else "console" if each.console_at else "",
                _note(each),
            )
            for each in found
        ),
        empty="There were no failovers at this site.",
    )


def _note(status: FailoverStatus) -> str:
    told = (status.error or {}).get("happened", "") or status.note or status.points_wait
    timer = status.timer
    if timer is not None and timer.acted_at is None and timer.cancelled_at is None:
        when = f"{format_seconds(timer.seconds)} after its start"
        when = f"at {short_time(timer.due_at)}" if timer.due_at else when
        rate = f" ({timer.bytes_per_second / 1e6:,.0f} MB/s at most)" if timer.bytes_per_second else ""
        told += f"{'; ' if told else ''}{timer.action.value} by itself {when}{rate}"
    if status.differs:
        told += f"{'; ' if told else ''}not what was asked for: {status.differs}"
    if status.former_writes:
        points = ", ".join(str(former.point) for former in status.former_writes)
        room = format_bytes(sum(former.bytes for former in status.former_writes))
        told += f"{'; ' if told else ''}{room} written on point {points} are kept"
    return told


def _is_of(status: FailoverStatus, wanted: str) -> bool:
    return wanted in (status.id, status.machine, status.machine_name, status.name)


def standing_failover(client: FailoverClient, wanted: str) -> FailoverStatus:
    """The failover of a machine that was begun last. Raises FailoverUnknown."""
    from secondsite.gateway.messages.failovererrors import FailoverUnknown

    found = [each for each in client.failovers() if _is_of(each, wanted)]
    if not found:
        raise FailoverUnknown(wanted=f"of {wanted}")
    return found[-1]


def change_point(
    machine: str,
    /,
    *,
    point: str,
    with_writes: Annotated[bool, Parameter(negative="")] = False,
    confirm: str = "",
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Run a machine that was taken over on another point. What it wrote since it was booted stays behind.

    It is kept aside until a commit or a roll-back: see `secondsite failover remove-former`.

    For example:

        secondsite failover change-point shop --point 1207 --confirm "what shop wrote here is lost"

        secondsite failover change-point shop --point 1210 --with-writes --confirm "..."

    Parameters
    ----------
    machine
        Name or id of the machine, or the number of the operation.
    point
        As for `secondsite failover`.
    with_writes
        Go on with what it wrote on that point when it ran there before.
    confirm
        The sentence that the command asks for when it is not given.
    wait
        Wait until it runs again, or return at once.
    """
    from secondsite.gateway.messages.failover import ChangePoint
    from secondsite.model.failover import FailoverState

    with client_of(reach) as client:
        request = ChangePoint(point=point, with_writes=with_writes, confirm=confirm, requested_by=whoami())
        found = client.change_point(standing_failover(client, machine).id, request)
        if wait:
            found = _follow(client, found, {FailoverState.COMPLETED}, quiet=listing.json)
    if listing.json:
        print_json(found)
    elif wait:
        print(f"{found.name} runs here from point {found.point}; {_lost(found)}")


def commit(
    machine: str,
    /,
    *,
    confirm: str = "",
    bytes_per_second: int | None = None,
    keep_points: Annotated[bool, Parameter(negative="")] = False,
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> None:
    """Keep a machine that was taken over: its disks become plain files of this site while it runs.

    Refused unless it is seen to run; how it differs from what was asked for is told first. Afterwards nothing
    of secondsite lies beneath it, there is no other point to turn to, and its recovery points at this site
    are deleted, once no export, test failover or hold needs them. Copying goes on by itself after errors and
    restarts.

    For example:

        secondsite failover commit shop --confirm "shop stays here and has no other point to turn to"

        secondsite failover commit shop --bytes-per-second 50000000 --no-wait --confirm "..."

    Parameters
    ----------
    machine
        Name or id of the machine, or the number of the operation.
    confirm
        The sentence that the command asks for when it is not given.
    bytes_per_second
        At most, of all its disks together; as the failover was begun, or as fast as it goes, if not given.
    keep_points
        Leave its recovery points at this site where they are.
    wait
        Wait until it is done, or return at once.
    """
    from secondsite.gateway.messages.failover import CommitFailover
    from secondsite.model.failover import FailoverState

    with client_of(reach) as client:
        request = CommitFailover(
            confirm=confirm,
            bytes_per_second=bytes_per_second,
            delete_points=not keep_points,
            requested_by=whoami(),
        )
        found = client.commit_failover(standing_failover(client, machine).id, request)
        if wait:
            found = _follow(client, found, {FailoverState.COMMITTED}, quiet=listing.json)
    if listing.json:
        print_json(found)
    elif wait:
        print(f"{found.name} is a machine of this site; nothing of secondsite is beneath it")


def rollback(
    machine: str,
    /,
    *,
    confirm: str = "",
    wait: Wait = True,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Undo a failover: the machine here is removed, its source runs on and is replicated as before.

    For example:

        secondsite failover rollback shop --confirm "what shop wrote here is lost"

    Parameters
    ----------
    machine
        Name or id of the machine, or the number of the operation.
    confirm
        The sentence that the command asks for when it is not given.
    wait
        Wait until it is undone, or return at once.
    """
    from secondsite.gateway.messages.failover import RollBackFailover
    from secondsite.model.failover import FailoverState

    with client_of(reach) as client:
        request = RollBackFailover(confirm=confirm, requested_by=whoami())
        found = client.roll_back(standing_failover(client, machine).id, request)
        if wait:
            found = _follow(client, found, {FailoverState.ROLLED_BACK}, quiet=listing.json)
    if listing.json:
        print_json(found)
    elif wait:
        print(f"{found.machine_name} was given back to {found.writer}; its machine here was removed")
    return int(Outcome.OK)


def check(
    machine: str,
    /,
    *,
    point: str = "latest",
    network: str = "mapped",
    name: str | None = None,
    machine_there: Machine = NO_MACHINE,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Look at all that a failover of a machine would need at this site; changes nothing.

    Ends with 0 when everything that is required is there.

    For example:

        secondsite check shop

        secondsite check shop --point latest-application-consistent --json

    Parameters
    ----------
    machine
        Name or id of a machine kept at that site.
    point
        As for `secondsite failover`.
    network
        As for `secondsite failover`.
    name
        As for `secondsite failover`.
    """
    with client_of(reach) as client:
        settings = machine_there.build()
        seen = client.preview_failover(machine, point=point, network=network, name=name, settings=settings)
    if listing.json:
        print_json(seen)
    else:
        _print_checks(seen, seen.checks)
    bad = any(each.required and not each.passed for each in seen.checks)
    return int(Outcome.REFUSED if bad else Outcome.OK)


def _print_checks(seen: FailoverPreview, checks: Iterable[Check]) -> None:
    print(
        f"point {seen.point} of {short_time(seen.point_at)} is {format_seconds(seen.expected_loss_seconds)} "
        f"old; its writer is {seen.writer or 'not known'}"
    )
    if seen.outlook is not None:
        print_outlook(seen.outlook)
    print_table(
        ["CHECK", "RESULT", "CAUSE", "WHAT TO DO"],
        (
            (
                each.name,
                "passed" if each.passed else "failed" if each.required else "to know",
                each.cause,
                each.action,
            )
            for each in checks
        ),
        empty="Nothing was looked at.",
    )
