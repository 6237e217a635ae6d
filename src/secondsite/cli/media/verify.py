"""``secondsite verify``: prove that recovery points still hold what was committed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput, Outcome
from secondsite.cli.common.gateways import LISTING, REACH, Listing, Reach, whoami
from secondsite.cli.common.output import print_error, print_json
from secondsite.cli.gateway.deepverify import verify_deeply
from secondsite.cli.media.rescue import StoreAndKey, moved_bases, tell_unpinned

if TYPE_CHECKING:
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.control.client import GatewayClient
    from secondsite.gateway.messages.verdicts import LostRanges, VerificationReport, VerificationStatus
    from secondsite.gateway.recovery.rescue import Rescue
    from secondsite.journal.scrub import Position, Trusted
    from secondsite.model.ids import MachineId

POLL_SECONDS = 0.3
DAMAGED_PRINTED_MAX = 20


def verify(
    machine: str | None = None,
    /,
    *,
    point: str | None = None,
    all_points: Annotated[bool, Parameter(name="--all", negative="")] = False,
    store: str | None = None,
    key_file: Path | None = None,
    base: Annotated[list[str] | None, Parameter(negative="")] = None,
    trust: str | None = None,
    deep: Annotated[bool, Parameter(negative="")] = False,
    last: Annotated[bool, Parameter(negative="")] = False,
    cancel: Annotated[bool, Parameter(negative="")] = False,
    reach: Reach = REACH,
    listing: Listing = LISTING,
) -> int:
    """Read everything a replica consists of, check it, and say which points are good. Exit code 6 on damage.

    Every record, key, segment and base is read, every hash and seal checked, and what each point's disks add
    up to is compared with what was committed. A damaged object is named with the points it costs. The newest
    and the oldest point are also read whole, as a machine booted from them would read them.

    At a gateway it runs in the gateway; Ctrl-C leaves it running. With --store and --key-file it runs here,
    without any gateway, as `secondsite rescue` does.

    For example:

        secondsite verify shop

        secondsite verify shop --point latest --json

        secondsite verify --store /mnt/replicas --key-file vault.key shop --all

        secondsite verify shop --deep --gateway /run/secondsite/a.sock

    Parameters
    ----------
    machine
        Name or id; all replicas, if not given.
    point
        Read this point whole, instead of the newest and the oldest: latest, last-clean, a number, or a
        time.
    all_points
        Read every point whole. Takes as long as reading the disks that many times.
    store
        Verify this store here: its URL or path, the directory that holds machines/.
    key_file
        The recovery key, with --store.
    base
        DISK=PATH: where a disk's base is now, if it was moved; with --store.
    trust
        NUMBER:HASH as an earlier verification printed it: notice if records were removed or rewritten since.
        With --store; a gateway remembers it.
    deep
        At the source's gateway: compare the machine's disks as they are with the point of the same instant,
        read again from the store.
    last
        Show what the last verification found, without another.
    cancel
        Stop the one under way.
    """
    if deep:
        if machine is None or store is not None or point is not None or all_points or cancel:
            raise InvalidInput(what="--deep", why="it takes one machine, at its source's gateway")
        with reach.open() as client:
            return verify_deeply(client, machine, last=last, listing=listing)
    if point is not None and all_points:
        raise InvalidInput(what="--point with --all", why="--all reads every point")
    if store is not None:
        if key_file is None:
            raise InvalidInput(
                what="--store without --key-file", why="without the key nothing can be checked"
            )
        wish = _Wish(point=point, all_points=all_points, base=base, trusted=_trusted(trust))
        return _offline(StoreAndKey(store=store, key_file=key_file), machine, wish, listing)
    if key_file is not None or base or trust is not None:
        raise InvalidInput(what="--key-file, --base or --trust", why="they belong to --store")
    with reach.open() as client:
        names = [machine] if machine is not None else _replicas(client)
        if not names:
            print("Nothing is kept here.", file=sys.stderr)
        if cancel:
            for name in names:
                client.cancel_verification(name)
            return int(Outcome.OK)
        wish = _Wish(point=point, all_points=all_points)
        return _through_gateway(client, names, None if last else wish, listing)


@dataclass(frozen=True)
class _Wish:
    """What is to be verified."""

    point: str | None = None
    all_points: bool = False
    base: list[str] | None = None
    trusted: Trusted | None = None


def _replicas(client: GatewayClient) -> list[str]:
    return [replica.machine for replica in client.status().replicas]


# -- through a gateway ------------------------------------------------------------------------------


def _through_gateway(client: GatewayClient, names: list[str], wish: _Wish | None, listing: Listing) -> int:
    """wish: None: show the last ones."""
    from secondsite.gateway.messages.verdicts import VerificationState, VerifyRequest

    found: list[VerificationStatus] = []
    for name in names:
        if wish is None:
            found.append(client.verification(name))
        else:
            request = VerifyRequest(point=wish.point, all=wish.all_points, requested_by=whoami())
            found.append(_follow(client, name, client.verify(name, request), quiet=listing.json))
        if not listing.json:
            _print_status(found[-1])
    if listing.json:
        print_json(found)
    worst = max((status.report.outcome for status in found if status.report), default=Outcome.OK)
    failed = any(status.state in {VerificationState.FAILED, VerificationState.CANCELLED} for status in found)
    return int(worst) or int(Outcome.FAILED if failed else Outcome.OK)


def _follow(
    client: GatewayClient, name: str, status: VerificationStatus, *, quiet: bool
) -> VerificationStatus:
    import threading

    from secondsite.base.clock import SystemClock
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.messages.verdicts import VerificationState

    clock, never = SystemClock(), threading.Event()
    with CopyProgress(status.name, quiet=quiet, doing="verifying") as progress:
        while status.state is VerificationState.RUNNING:
            _draw(progress, status)
            clock.wait(never, POLL_SECONDS)
            status = client.verification(name)
        _draw(progress, status)
    return status


def _draw(progress: CopyProgress, status: VerificationStatus) -> None:
    from secondsite.gateway.messages.gateway import FirstCopy

    copy = None
    if status.total_bytes:
        copy = FirstCopy(
            done_bytes=status.done_bytes,
            total_bytes=status.total_bytes,
            bytes_per_second=status.bytes_per_second,
            seconds_left=status.seconds_left,
        )
    progress.show(copy, status.doing or "waiting")


def _print_status(status: VerificationStatus) -> None:
    from secondsite.base.errors import RemoteError

    if status.error is not None:
        print_error(RemoteError(dict(status.error)))
    if status.report is not None:
        _print_report(status.report)


# -- here, with the store and its key ---------------------------------------------------------------


def _offline(where: StoreAndKey, machine: str | None, wish: _Wish, listing: Listing) -> int:
    rescue = where.open()
    chosen = [rescue.resolve(machine)] if machine else [replica.machine for replica in rescue.replicas()]
    if machine is None and (wish.base or wish.trusted or wish.point):
        raise InvalidInput(what="--base, --trust or --point", why="they are of one machine: name it")
    reports: list[VerificationReport] = []
    for identity in chosen:
        reports.append(_verify_here(rescue, identity, wish, quiet=listing.json))
        if not listing.json:
            _print_report(reports[-1])
    if listing.json:
        print_json(reports)
    return int(max(report.outcome for report in reports))


def _verify_here(rescue: Rescue, machine: MachineId, wish: _Wish, *, quiet: bool) -> VerificationReport:
    from secondsite.base.clock import SystemClock
    from secondsite.cli.common.progress import CopyProgress
    from secondsite.gateway.target.bases import base_opener
    from secondsite.gateway.target.verdict_of import report_of
    from secondsite.journal.chain import Journal
    from secondsite.journal.keys import KeyRing
    from secondsite.journal.scrub import scrub

    points: list[int] | None = None
    if wish.point is not None:
        points = [rescue.choose(machine, wish.point).number]
    elif wish.all_points:
        points = [found.number for found in Journal(rescue.store, machine, rescue.vault).points()]
    journal = Journal(rescue.store, machine, rescue.vault)
    with CopyProgress(machine, quiet=quiet, doing="verifying") as progress, _told(progress) as tell:
        report = scrub(
            journal,
            KeyRing(rescue.store, machine, rescue.vault),
            base_opener(journal, moved_bases(wish.base)),
            clock=SystemClock(),
            points=points,
            trusted=wish.trusted,
            progress=tell,
            on_unpinned=tell_unpinned,
        )
    return report_of(report)


@contextlib.contextmanager
def _told(progress: CopyProgress) -> Iterator[Callable[[Position], None]]:
    """Draws positions with rate and time left."""
    from secondsite.base.clock import SystemClock
    from secondsite.gateway.messages.gateway import FirstCopy

    clock = SystemClock()
    began = clock.monotonic()

    def tell(position: Position) -> None:
        seconds = clock.monotonic() - began
        rate = position.done_bytes / seconds if seconds > 0 else 0.0
        copy = FirstCopy(
            done_bytes=position.done_bytes,
            total_bytes=position.total_bytes,
            bytes_per_second=rate,
            seconds_left=(position.total_bytes - position.done_bytes) / rate if rate else None,
        )
        progress.show(copy if position.total_bytes else None, position.doing)

    yield tell


def _trusted(text: str | None) -> Trusted | None:
    from secondsite.journal.scrub import Trusted

    if text is None:
        return None
    number, _, digest = text.partition(":")
    if not (number.isdecimal() and len(digest) == 64 and not digest.strip("0123456789abcdef")):
        raise InvalidInput(what=f"--trust {text[:100]!r}", why="it is not NUMBER:HASH as verify prints it")
    return Trusted(int(number), digest)


# -- what is printed --------------------------------------------------------------------------------


def _print_report(report: VerificationReport) -> None:
    from secondsite.base.units import format_bytes, format_seconds
    from secondsite.gateway.messages.verdicts import spans_text

    name = report.name or report.machine
    rate = f"{format_bytes(report.bytes_per_second)}/s"
    print(
        f"{name}: {report.objects} objects, {format_bytes(report.bytes)} read"
        f" in {format_seconds(report.seconds)} ({rate})"
    )
    if not report.points:
        print("  it has no points yet")
    elif report.lost:
        print(f"  points lost:     {spans_text(report.lost)}")
    if report.proved:
        print(f"  points proved:   {spans_text(report.proved)} hold what was committed")
    if report.unproved:
        print(f"  points unproved: {spans_text(report.unproved)} read well, but nothing says what they held")
    if report.reread:
        print(f"  read whole:      {spans_text(report.reread)}")
    for note in report.notes:
        print(f"  note: {note}")
    for damaged in report.damaged[:DAMAGED_PRINTED_MAX]:
        cost = f"costs points {spans_text(damaged.points)}" if damaged.points else "costs no point"
        print(
            f"  DAMAGED {damaged.kind} {damaged.object}\n    {damaged.why}\n    {cost}{_where(damaged.lost)}"
        )
    more = len(report.damaged) - DAMAGED_PRINTED_MAX + report.more_damaged
    if more > 0:
        print(f"  and {more} damaged objects more; --json has them")
    if report.missing:
        print(f"  the newest point lacks{_where(report.missing)}: a gateway asks the source for it again")
    if report.trust:
        print(f"  trust next time: {report.trust}")
    if not report.damaged:
        print("  nothing is damaged")
    sys.stdout.flush()


def _where(lost: tuple[LostRanges, ...]) -> str:
    from secondsite.base.units import format_bytes

    parts = []
    for found in lost:
        shown = ", ".join(f"{start}..{end}" for start, end in found.ranges[:4])
        more = len(found.ranges) - 4 + found.more
        parts.append(
            f"{format_bytes(found.bytes)} of {found.disk} ({shown}{f' and {more} more' if more > 0 else ''})"
        )
    return f", {'; '.join(parts)}" if parts else ""
