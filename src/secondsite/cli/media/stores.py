"""``secondsite store``: whether a journal may live in a store, found out by trying."""

from __future__ import annotations

import contextlib
from pathlib import Path

from secondsite.base.errors import Outcome
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table


def check(
    store: str,
    /,
    *,
    credentials: Path | None = None,
    lock_days: int = 0,
    listing: Listing = LISTING,
) -> int:
    """Try everything a journal relies on in a store, and say whether one may live there.

    Writes small objects below probe/ and removes them again; touches nothing else. Endpoint and credentials
    come from the environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY, ...) or from a file, never from
    the command line. A gateway does the same once before it uses a store.

    For example:

        secondsite store check s3://replicas/site-b

        secondsite store check s3://replicas/site-b --lock-days 30 --credentials /etc/secondsite/s3.env

        secondsite store check az://replicas/site-b --json

    Parameters
    ----------
    store
        s3://bucket/prefix, az://container/prefix, file:///directory, or a directory's path.
    credentials
        A file of AWS_... or AZURE_... NAME=VALUE lines, readable by its owner only.
    lock_days
        Also require object lock, as a gateway with store_lock_days set does; 0: report it only.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.journal.probe import Verdict, probe_store
    from secondsite.journal.store_local import STAGING
    from secondsite.journal.stores import local_directory, open_store

    url = store if "://" in store else str(Path(store).resolve())
    directory = local_directory(url)
    if directory is not None:
        open_store(url, create=False).close()  # a mistyped name is told, not made
    fresh = directory is not None and not (directory / STAGING).exists()
    opened = open_store(url, credentials=credentials, lock_days=lock_days)
    try:
        found = probe_store(opened, lock_days=lock_days, clock=SystemClock())
    finally:
        opened.close()
        if directory is not None and fresh:
            with contextlib.suppress(OSError):  # a gateway has begun to use it
                (directory / STAGING).rmdir()
    if listing.json:
        print_json(found)
    else:
        print_table(
            ["CHECK", "FOUND", "DETAIL"],
            ((one.name, one.finding.value, one.detail) for one in found.checks),
            empty="Nothing could be tried.",
        )
        print()
        print(f"{found.url}: {found.verdict.value}" + "".join(f"\n  {reason}" for reason in found.reasons))
    return int(Outcome.REFUSED if found.verdict is Verdict.REFUSED else Outcome.OK)
