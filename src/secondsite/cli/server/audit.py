"""``secondsite audit``: who did what, from where, and that nobody changed the log of it."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach

_ANCHOR = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})\Z")


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
    file: Path | None = None,
    /,
    *,
    anchor: str | None = None,
    master_key: Path | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Check every row of the audit log. Exit code 6 and the first row that does not hold when it was changed.

    Keep the anchor it prints somewhere else: given another time, it also tells a log that was put back whole
    to an older state. Of a file that `audit export` wrote it needs no server; whether the file's end was cut
    off is told by an anchor alone, whether somebody made all of it anew by the server's master key.

    For example:

        secondsite audit verify

        secondsite audit verify --anchor 1718:9f2c...

        secondsite audit verify audit.jsonl --anchor 1718:9f2c...

    Parameters
    ----------
    file
        An export to check instead of the server's log.
    anchor
        NUMBER:DIGEST, as printed by an earlier run.
    master_key
        With a file: the server's master.key, to check the seals, too.
    """
    if file is not None:
        _verify_file(file, anchor, master_key, listing)
        return
    if master_key is not None:
        raise InvalidInput(what="--master-key", why="the server checks its seals itself; it goes with a file")
    with reach.open() as server:
        found = server.verify_audit(anchor)
    if listing.json:
        print_json(found)
    else:
        _tell("the audit log holds", found.entries, found.digest)


def _verify_file(file: Path, anchor: str | None, master_key: Path | None, listing: Listing) -> None:
    from secondsite.model.auditlog import LINE_BYTES_MAX, SEAL_PURPOSE, check_export

    known = key = None
    if anchor is not None:
        match = _ANCHOR.match(anchor)
        if match is None:
            raise InvalidInput(what=f"--anchor {anchor[:100]!r}", why="it is not NUMBER:DIGEST")
        known = (int(match[1]), match[2])
    if master_key is not None:
        from secondsite.server.identity.envelopes import open_master_key

        key = open_master_key(master_key, create=False).derive(SEAL_PURPOSE)
    try:
        with file.open("rb") as opened:
            # one byte more than a row has: a line without an end is not read whole
            found = check_export(
                iter(lambda: opened.readline(LINE_BYTES_MAX + 1), b""), anchor=known, key=key
            )
    except FileNotFoundError:
        raise InvalidInput(what=f"the file {file}", why="there is no such file") from None
    except OSError as error:
        raise InvalidInput(what=f"the file {file}", why=error.strerror or str(error)) from None
    if listing.json:
        print_json({"entries": found.entries, "digest": found.digest, "sealed": found.sealed})
        return
    _tell(f"the export holds{', seals and all' if found.sealed else ''}", found.entries, found.digest)
    if known is None:
        print(
            "whether rows are missing at its end: give --anchor, from `secondsite audit verify` at the server"
        )


def _tell(what: str, entries: int, digest: str) -> None:
    print(f"{what}: {entries} rows")
    if entries:
        print(f"anchor: {entries}:{digest}")


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
