"""``secondsite server rebuild``: a server from the replica stores alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import UNKNOWN, print_json, print_table, short_time

if TYPE_CHECKING:
    from secondsite.up.rebuild import Plan


def rebuild(
    *,
    store: list[str],
    key: Path,
    credentials: Path | None = None,
    apply: Annotated[bool, Parameter(negative="")] = False,
    vault: str = "Main",
    registration_key: Path | None = None,
    config: Path | None = None,
    listing: Listing = LISTING,
) -> None:
    """Make a server anew from replica stores, when it is lost and no backup of it is left.

    Without --apply: show what the stores tell, and change nothing. With it: make a vault in a new server, and
    a registration key with which the gateways enrol again; what they protect and keep they then report, and
    the server takes it over. People, policies by name, plans and the audit log were in the old server only.

    For example:

        secondsite server rebuild --store file:///srv/replicas --key /media/stick/vault.key

        secondsite server rebuild --store file:///srv/replicas --key /media/stick/vault.key --apply
        --registration-key /root/again.key

    Parameters
    ----------
    store
        A replica store, as in a gateway's configuration; may be given several times.
    key
        The vault's recovery key.
    credentials
        A file with the object store's variables.
    apply
        Make the vault and the registration key.
    vault
        The name of the vault to make.
    registration_key
        With --apply: the file to write the registration key to.
    config
        With --apply: the configuration of the server to be; as for `secondsite server`.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.server.config import load_config
    from secondsite.up.rebuild import plan
    from secondsite.up.rebuild import rebuild as run

    found = plan(store, key, credentials)
    if not apply:
        if listing.json:
            print_json(found)
        else:
            _show(found)
        return
    if registration_key is None:
        raise InvalidInput(
            what="the rebuild", why="--apply needs --registration-key FILE to write the key to"
        )
    done = run(found, load_config(config), vault=vault, key_out=registration_key, clock=SystemClock())
    if listing.json:
        print_json(done)
        return
    print(f"the vault {done.vault} is made; start the server, then at each gateway:")
    for name in [*done.gateways, "NAME"]:
        words = f"--key-file {registration_key.name} --name {name} --site SITE --replace"
        print(f"  secondsite gateway enrol {words}")
    print("NAME: also each gateway that only keeps replicas")
    print(f"{done.machines} machines are taken over as the gateways report them")


def _show(found: Plan) -> None:
    print_table(
        ["MACHINE", "WRITTEN BY", "POINTS>", "NEWEST", "DISKS>", "STORE"],
        (
            (
                one.name or one.machine,
                one.source or UNKNOWN,
                one.points,
                short_time(one.newest_at) if one.newest_at else one.problem,
                len(one.disks),
                one.store,
            )
            for one in found.machines
        ),
        empty="No machine.",
    )
    if found.backups:
        print(f"{found.backups} backups of a server lie there: `secondsite server restore` brings back more")
    print("nothing was changed; --apply makes a vault, and a key for these gateways to enrol again")
