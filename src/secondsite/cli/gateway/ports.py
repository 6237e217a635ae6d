"""``secondsite gateway check-port``: whether a gateway can listen where it is told to."""

from __future__ import annotations

from pathlib import Path

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json


def check_port(
    *,
    config: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    listing: Listing = LISTING,
) -> None:
    """Tell whether the port a gateway listens on is free, and who holds it if it is not.

    Run it on the gateway's own machine. Whether a firewall on the way lets others through is tried from the
    other side, by the gateway that is to reach this one.

    For example:

        secondsite gateway check-port --config /etc/secondsite/gateway.toml

        secondsite gateway check-port --port 9444

    Parameters
    ----------
    config
        Its configuration: `[listen]` of it is tried.
    host
        Another address than the configuration's; all of this machine's when neither is given.
    port
        Another port than the configuration's; 9443 when neither is given.
    """
    from secondsite.gateway.common.config import Listen, load_config
    from secondsite.gateway.common.listenport import check_port as check
    from secondsite.gateway.common.listenport import holder, is_ours

    listen = Listen() if config is None else load_config(config).listen
    if listen is None and port is None:
        raise InvalidInput(what=f"the configuration {config}", why="it has no [listen]: it receives nothing")
    asked_host = host or (listen or Listen()).host
    asked = port if port is not None else (listen or Listen()).port
    if not 0 < asked < 65536:
        raise InvalidInput(what=f"the port {asked}", why="a fixed one is from 1 to 65535")
    found = holder(asked_host, asked)
    ours = found is not None and is_ours(found)
    if not ours:
        check(asked_host, asked)
    if listing.json:
        print_json(
            {"host": asked_host, "port": asked, "free": not ours, "holder": found.text() if found else None}
        )
    elif found is not None and ours:
        print(f"port {asked} is held by the gateway that runs: process {found.pid}")
    else:
        print(f"port {asked} is free at {asked_host}")
