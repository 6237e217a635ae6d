"""``secondsite server backup`` and the rest: the server's state is kept, and brought back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.server.enrol import DEFAULT_TLS

if TYPE_CHECKING:
    from secondsite.server.config import ServerConfig


def backup(
    *,
    out: Path | None = None,
    config: Path | None = None,
    no_wait: Annotated[bool, Parameter(negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Back the server up now: into the stores of its gateways, or with --out into a file on its own machine.

    A server does it every hour by itself. What it makes is sealed with a key made of `master.key`, which is
    not in it: keep a copy of that elsewhere.

    For example:

        secondsite server backup

        secondsite server backup --out /mnt/usb/server.ssbk

    Parameters
    ----------
    out
        The file to make, on the server's own machine; also while the server is stopped.
    config
        With --out: the server's configuration; as for `secondsite server`.
    no_wait
        Start the job and return.
    """
    if out is None:
        from secondsite.cli.server.jobs import started
        from secondsite.client.survival import take_backup

        if config is not None:
            raise InvalidInput(
                what="--config", why="it goes with --out; without it the running server is asked"
            )
        with reach.open() as server:
            return started(server, take_backup(server), listing, no_wait=no_wait)
    from secondsite.server.config import load_config
    from secondsite.server.survival.offline import backup_to_file

    made = backup_to_file(load_config(config), out)
    if listing.json:
        print_json(made)
    else:
        print(f"{out}: {made.rows} rows, {made.size} bytes, of {made.made_at}")
    return 0


def backups(
    *,
    store: str | None = None,
    credentials: Path | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """List the server's backups and where they are kept; or, without any server, those in a store.

    For example:

        secondsite server backups

        secondsite server backups --store file:///srv/replicas

    Parameters
    ----------
    store
        A store to look into: file:///directory, s3://bucket/prefix or az://container/prefix.
    credentials
        With --store: a file with the object store's variables.
    """
    if store is not None:
        _list_store(store, credentials, listing)
        return
    from secondsite.client.survival import backups as listed

    with reach.open() as server:
        found = list(listed(server))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MADE AT", "NAME", "BYTES>", "INCARNATION>", "KEPT AT"],
        (
            (
                short_time(one.made_at),
                one.name,
                one.size,
                one.incarnation,
                ", ".join(place.gateway or place.store for place in one.places if place.store) or "nowhere",
            )
            for one in found
        ),
        empty="There is no backup. Take one with `secondsite server backup`.",
    )


def _list_store(url: str, credentials: Path | None, listing: Listing) -> None:
    from secondsite.journal.stores import open_store
    from secondsite.server.survival.instore import stored_backups

    opened = open_store(url, create=False, credentials=credentials)
    try:
        found = list(stored_backups(opened))
    finally:
        opened.close()
    if listing.json:
        print_json(found)
        return
    print_table(
        ["MADE AT", "NAME", "KIND", "BYTES>", "SERVER", "INCARNATION>", "MASTER KEY"],
        (
            (
                short_time(one.made_at) if one.made_at else one.problem,
                one.name,
                "copy" if one.kind == "copies" else "backup",
                one.size,
                one.server,
                one.incarnation,
                one.master_key,
            )
            for one in found
        ),
        empty="There is no backup of a server in this store.",
    )


def restore(
    *,
    from_: str,
    master_key: Path,
    backup: str | None = None,
    credentials: Path | None = None,
    config: Path | None = None,
    listing: Listing = LISTING,
) -> None:
    """Bring a backup of the server into an empty database, on the same or another machine, under any address.

    Kept as they were: vaults, gateways and their certificates, people, what is protected, the audit log. Jobs
    that were under way are marked for a person. The original must not run any more; where it does, gateways
    obey the restored one only.

    For example:

        secondsite server restore --from /mnt/usb/server.ssbk --master-key /mnt/usb/master.key

        secondsite server restore --from file:///srv/replicas --master-key /mnt/usb/master.key

    Parameters
    ----------
    from_
        The backup's file, or a store that has some: file:///directory, s3://bucket/prefix or
        az://container/prefix; of a store the newest one is taken.
    master_key
        The master key of the server that made it.
    backup
        With a store: the name of another one than the newest (`secondsite server backups --store`).
    credentials
        With a store: a file with the object store's variables.
    config
        The configuration of the server to be; as for `secondsite server`.
    """
    from secondsite.server.config import load_config
    from secondsite.server.survival.offline import restore_server

    settings = load_config(config)
    with _file(from_, backup, credentials, settings) as path:
        done = restore_server(settings, path, master_key)
    found = done.restored
    left = found.aftermath.jobs_for_a_person
    if listing.json:
        shown = {"backup": found.head.id, "madeAt": found.contents.made_at, "rows": found.rows}
        number = found.aftermath.incarnation
        print_json({**shown, "database": done.database, "incarnation": number, "jobsForAPerson": left})
        return
    print(f"restored {found.rows} rows of {found.contents.made_at} into {done.database}")
    print(f"the master key is in {done.master_key}")
    if left:
        print(f"{left} jobs were under way then: see `secondsite job list --state Failed`")
    print("start it with `secondsite server`; gateways find it under its old address, or tell each, there:")
    print(f"  secondsite gateway server {settings.reached_at()}")


@contextlib.contextmanager
def _file(place: str, name: str | None, credentials: Path | None, settings: ServerConfig) -> Iterator[Path]:
    from secondsite.server.survival.instore import fetched

    if "://" in place or Path(place).is_dir():
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        url = place if "://" in place else str(Path(place).resolve())
        with fetched(url, name, credentials, settings.state_dir) as path:
            yield path
        return
    if name is not None or credentials is not None:
        raise InvalidInput(
            what="--backup and --credentials", why="they go with a store, and --from is a file"
        )
    yield Path(place)


def move(url: str, /, *, directory: Path = DEFAULT_TLS, listing: Listing = LISTING) -> None:
    """Tell this gateway, on its own machine, the server's new address: it was restored elsewhere, or moved.

    The server must show a certificate of the authority this gateway trusts, and take the gateway's. A running
    gateway follows within seconds; replication goes on meanwhile.

    For example:

        secondsite gateway server https://new.example

    Parameters
    ----------
    url
        https://HOST or https://HOST:PORT.
    directory
        Where the gateway was enrolled into.
    """
    from secondsite.gateway.uplink.moving import move_server

    moved = move_server(directory, url)
    if listing.json:
        print_json({"name": moved.name, "server": moved.server})
        return
    print(f"{moved.name} uses its server at {moved.server} from now on")
