"""``secondsite item``, the part that fails a machine over through the server, and what follows from that."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import Outcome
from secondsite.base.units import format_seconds, parse_seconds
from secondsite.cli.common.byitself import told_end
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.items.items import NoWait, run_job
from secondsite.model import confirmations

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.itemfailovers import FailoverPreview
    from secondsite.client.messages import Job


@Parameter(name="*")
@dataclass(frozen=True)
class Ends:
    """How a failover is to end."""

    auto_commit_after: str | None = None
    """So long after its machine was started (90m, 2h, 1d) it is committed by itself; with --confirm-timer."""
    auto_roll_back_after: str | None = None
    """So long after its machine was started it is rolled back by itself; with --confirm-timer."""
    confirm_timer: str = ""
    """What is said to a commit, or to a roll-back."""
    bytes_per_second: int | None = None
    """At its commit its disks are copied at most that fast, together; by itself 100 MB/s, if not given."""
    autostart: Annotated[bool, Parameter(negative="")] = False
    """Once it is committed: let it start with its host."""
    old_machine: Literal["remove", "remove-with-disks"] | None = None
    """Of its former copy at the target, onto which it was protected again: what goes before it boots."""

    def body(self) -> dict[str, object]:
        """As the API takes it."""
        return {
            "autoCommitAfter": _seconds(self.auto_commit_after),
            "autoRollBackAfter": _seconds(self.auto_roll_back_after),
            "confirmTimer": self.confirm_timer,
            "autostart": self.autostart,
            "oldMachine": self.old_machine,
            **({} if self.bytes_per_second is None else {"bytesPerSecond": self.bytes_per_second}),
        }

    def tell(self) -> None:
        """Tell whoever decides what happens by itself."""
        if told := told_end(self.auto_commit_after, self.auto_roll_back_after, self.bytes_per_second):
            print(f"  {told}", file=sys.stderr, flush=True)


BY_A_PERSON = Ends()


def fail_over(
    vault: str,
    item: str,
    /,
    *,
    point: str = "latest",
    network: str = "mapped",
    name: str | None = None,
    confirm: str = "",
    shut_down: Annotated[bool, Parameter(negative="")] = False,
    shut_down_seconds: float = 120.0,
    ends: Ends = BY_A_PERSON,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Take a machine over at its target, with its source gone or not known to stand still.

    What it would lose and what cannot be excluded is shown first, and has to be said. Then the target is made
    the machine's authority in its store, before anything boots; a source whose gateway can be reached is
    isolated within seconds. The machine runs on the point until it is committed: until then it can be turned
    to another point, or all of it rolled back.

    For example:

        secondsite item failover North shop --confirm "shop may still run at gateway-a"

        secondsite item failover North shop --shut-down --confirm "shop may still run at gateway-a"

        secondsite item failover North shop --point 1207 --network none --no-wait --confirm "..."

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    point
        latest, latest-processed, latest-application-consistent, last-clean, a number, or a time: the newest
        point not after it (UTC where no zone is given).
    network
        mapped: as the protection maps networks; none: attached to nothing; or a network of the target's site.
    name
        Name of the machine there; its own, if not given.
    confirm
        The sentence that the command asks for when it is not given: that the source may still run.
    shut_down
        Try to shut the source down first, if its gateway can be asked; whatever comes of it, go on.
    shut_down_seconds
        How long that is tried.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            seen = itemfailovers.preview(server, vault, item, point=point, network=network, name=name)
            tell(seen)
            ends.tell()
            said = ask_for(item, seen.confirm, seen.cannot_be_excluded)
        wanted = {
            "recoveryPoint": point,
            "network": network,
            "name": name,
            "confirm": said,
            "shutDown": shut_down,
            "shutDownSeconds": shut_down_seconds,
            **ends.body(),
        }
        return itemfailovers.fail_over(server, vault, item, wanted)

    return run_job(reach, listing, begin, no_wait=no_wait)


def look(
    vault: str,
    item: str,
    /,
    *,
    point: str = "latest",
    network: str = "mapped",
    name: str | None = None,
    move: Annotated[bool, Parameter(negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Look at all that a failover of a machine would need and lose now, at its target; changes nothing.

    Ends with 0 when everything that is required is there.

    For example:

        secondsite item checks North shop

        secondsite item checks North shop --point latest-application-consistent --json

        secondsite item checks North shop --move

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    point
        As for `secondsite item failover`.
    network
        As for `secondsite item failover`.
    name
        As for `secondsite item failover`.
    move
        Look at what a planned failover would need: both sites, and the newest point.
    """
    from secondsite.client import itemfailovers

    with reach.open() as server:
        if move:
            seen = itemfailovers.preview_move(server, vault, item, network=network, name=name)
        else:
            seen = itemfailovers.preview(server, vault, item, point=point, network=network, name=name)
    if listing.json:
        print_json(seen)
    else:
        tell(seen, checks=True)
    bad = any(check.required and not check.passed for check in seen.checks)
    return int(Outcome.REFUSED if bad else Outcome.OK)


def change_point(
    vault: str,
    item: str,
    /,
    *,
    point: str,
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Run a machine that was taken over on another point. What it wrote there since it was booted is lost.

    For example:

        secondsite item change-point North shop --point 1207 --confirm "what shop wrote here is lost"

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    point
        As for `secondsite item failover`.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm or _lost(server, vault, item)
        return itemfailovers.change_point(server, vault, item, point=point, confirm=said)

    return run_job(reach, listing, begin, no_wait=no_wait)


def commit(
    vault: str,
    item: str,
    /,
    *,
    confirm: str = "",
    bytes_per_second: int | None = None,
    delete_points: Annotated[bool, Parameter(negative="--keep-points")] = True,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Keep a machine that was taken over: its disks become plain files of that site while it runs.

    Refused unless the target sees it run; how it differs from what was asked for is told first. Afterwards
    nothing of secondsite lies beneath it, and there is no other point to turn to.

    For example:

        secondsite item commit North shop --confirm "shop stays here and has no other point to turn to"

        secondsite item commit North shop --bytes-per-second 50000000 --no-wait --confirm "..."

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    confirm
        The sentence that the command asks for when it is not given.
    bytes_per_second
        At most, of all its disks together; as the failover was begun, or as fast as it goes, if not given.
    delete_points
        Delete its recovery points at that site, once nobody reads or holds them.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers, items

    def begin(server: ServerClient) -> Job:
        said = confirm
        if not said:
            found = items.item(server, vault, item)
            why = "A commit ends the time in which another point can be chosen, or the failover undone."
            if found.failover is not None and found.failover.note:
                why = f"{found.failover.note} {why}"
            said = ask_for(found.name, confirmations.kept(found.name), why)
        return itemfailovers.commit(
            server,
            vault,
            item,
            confirm=said,
            bytes_per_second=bytes_per_second,
            delete_points=delete_points,
        )

    return run_job(reach, listing, begin, no_wait=no_wait)


def roll_back(
    vault: str,
    item: str,
    /,
    *,
    confirm: str = "",
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Undo a failover: the machine at the target is removed, its source runs on, replicated as before.

    For example:

        secondsite item roll-back North shop --confirm "what shop wrote here is lost"

    Parameters
    ----------
    vault
        Its vault's name or id.
    item
        Its id, its machine's id, or its name.
    confirm
        The sentence that the command asks for when it is not given.
    no_wait
        Begin and return.
    """
    from secondsite.client import itemfailovers

    def begin(server: ServerClient) -> Job:
        said = confirm or _lost(server, vault, item)
        return itemfailovers.roll_back(server, vault, item, confirm=said)

    return run_job(reach, listing, begin, no_wait=no_wait)


# what the commands share


def _seconds(text: str | None) -> float | None:
    return None if text is None else parse_seconds(text)


def _lost(server: ServerClient, vault: str, item: str) -> str:
    from secondsite.client import items

    found = items.item(server, vault, item)
    over = found.failover
    since = f" since {short_time(over.booted_at)}" if over is not None and over.booted_at else ""
    why = f"What {found.name} wrote at {found.target_provider}{since} lies on its present point alone."
    return ask_for(found.name, confirmations.lost(found.name), why)


def ask_for(name: str, sentence: str, why: str) -> str:
    """The sentence from a person at a terminal. Raises ConfirmationMissing where it was not said."""
    if not sys.stdin.isatty():
        raise confirmations.ConfirmationMissing(machine=name, why=why, confirm=sentence)
    print(f"{why}\nTo go on, type: {sentence}", file=sys.stderr)
    said = input("> ")
    confirmations.require(name, said, sentence, why)
    return said


def tell(seen: FailoverPreview, *, checks: bool = False) -> None:
    """What it would cost, and what is in the way; with all that was looked at, to standard output."""
    out = sys.stdout if checks else sys.stderr
    loss = format_seconds(seen.expected_loss_seconds)
    print(
        f"point {seen.recovery_point} of {short_time(seen.recovery_point_at)} ({seen.consistency}) is {loss} "
        f"old: what was written since is lost; its writer is {seen.writer or 'not known'}",
        file=out,
    )
    if checks:
        print_table(
            ["CHECK", "RESULT", "CAUSE", "WHAT TO DO"],
            (
                (
                    check.name,
                    "passed" if check.passed else "failed" if check.required else "to know",
                    check.cause,
                    check.action,
                )
                for check in seen.checks
            ),
            empty="Nothing was looked at.",
        )
        return
    for check in seen.checks:
        if not check.passed:
            print(f"  {check.name}: {check.cause}. {check.action}", file=out)
