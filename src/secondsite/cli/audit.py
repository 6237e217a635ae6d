"""``secondsite audit``: who did what, from where, and that nobody changed the log of it."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from secondsite.base.errors import InvalidInput
from secondsite.cli.common import LISTING, Listing
from secondsite.cli.output import print_json, print_table, short_time
from secondsite.cli.reach import SERVER_REACH, ServerReach


def list_audit(
    *,
    user: str | None = None,
    operation: str | None = None,
    limit: int = 1000,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List what was done, oldest first.

    For example:

        secondsite audit list

        secondsite audit list --user maria --operation role.grant --json

    Parameters
    ----------
    user
        Only what this user did.
    operation
        Only this operation.
    limit
        At most so many rows.
    """
    with reach.open() as server:
        found = list(islice(server.audit(actor=user, operation=operation), limit))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NUMBER>", "AT", "WHO", "FROM", "DID", "TO", "VAULT", "OUTCOME"],
        (
            (
                entry.number,
                short_time(entry.at),
                entry.actor,
                entry.address,
                entry.operation,
                entry.target,
                entry.vault,
                entry.outcome,
            )
            for entry in found
        ),
        empty="Nothing was done yet.",
    )


def verify(
    *, anchor: str | None = None, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Check every row of the audit log. Exit code 6 and the first row that does not hold when it was changed.

    Keep the anchor it prints somewhere else: given another time, it also tells a log that was put back whole
    to an older state.

    For example:

        secondsite audit verify

        secondsite audit verify --anchor 1718:9f2c...

    Parameters
    ----------
    anchor
        NUMBER:DIGEST, as printed by an earlier run.
    """
    with reach.open() as server:
        found = server.verify_audit(anchor)
    if listing.json:
        print_json(found)
    else:
        print(f"the audit log holds: {found.entries} rows")
        if found.entries:
            print(f"anchor: {found.entries}:{found.digest}")


def export(file: Path | None = None, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Write the whole audit log as JSON lines; their digests can be checked by anybody (docs/server.md).

    For example:

        secondsite audit export audit.jsonl

        secondsite audit export | tail -1

    Parameters
    ----------
    file
        Where to; standard output when not given. Must not exist.
    """
    with reach.open() as server:
        if file is None:
            for piece in server.export_audit():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        try:
            with file.open("xb") as out:
                for piece in server.export_audit():
                    out.write(piece)
        except FileExistsError:
            raise InvalidInput(what=f"the file {file}", why="it exists") from None
    print(f"the audit log is in {file}")
