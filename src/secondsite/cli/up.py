"""``secondsite up``: everything of one site on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def up(
    *,
    join: Path | None = None,
    site: str | None = None,
    dir_: Path | None = None,
    address: str | None = None,
    listen: str = "0.0.0.0",  # noqa: S104 - the other site connects from anywhere; TLS and certificates guard it
    vault_key: Path | None = None,
    libvirt: Annotated[bool, Parameter(negative="--no-libvirt")] = True,
) -> int:
    """Run a server and a gateway on this machine, with nothing to configure, until Ctrl-C.

    The first start makes everything it needs below one directory: configurations, the vault and its recovery
    key, certificates, a local store; it finds the machine's libvirt. It prints what to do next. Started
    again it goes on with what is there. What ends by itself is started again.

    At the second site, with the join.key of the first: a gateway that belongs to the first one's server.

    For example:

        secondsite up

        secondsite up --join join.key --site b

    Parameters
    ----------
    join
        The file join.key of the first site, or a registration key (`secondsite vault key`).
    site
        The name of this site: a, and b with --join, when not given.
    dir_
        Where everything is kept: /var/lib/secondsite, or ~/.local/state/secondsite for others than root.
    address
        The name or address by which the other site reaches this machine; found by itself when not given.
    listen
        The address to listen on.
    vault_key
        The vault's recovery key, where --join is a bare registration key.
    libvirt
        Look for this machine's libvirt.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.up.first import Wanted
    from secondsite.up.place import Place, default_directory, own_address, site_name
    from secondsite.up.run import Options, run

    here = address or (own_address() if listen in ("0.0.0.0", "::") else listen)  # noqa: S104 - compared only
    wanted = Wanted(site_name(site or ("b" if join is not None else "a")), listen, here)
    options = Options(wanted, join, vault_key, libvirt)
    place = Place((dir_ or default_directory()).absolute())
    return run(place, options, clock=SystemClock(), tell=lambda line: print(line, flush=True))
