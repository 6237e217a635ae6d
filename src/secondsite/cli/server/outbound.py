"""``secondsite gateway proxy`` and ``outbound``: how a gateway goes out, and all that goes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table
from secondsite.cli.server.enrol import DEFAULT_TLS

if TYPE_CHECKING:
    from secondsite.gateway.uplink.proxy import ProxyWay

DEFAULT_CONFIG = Path("/etc/secondsite/gateway.toml")


def proxy(
    action: Literal["show", "try", "direct", "default", "custom"] = "show",
    url: str | None = None,
    /,
    *,
    credentials: Path | None = None,
    directory: Path = DEFAULT_TLS,
    listing: Listing = LISTING,
) -> None:
    """Show or change, on the gateway's own machine, how it goes to its server; tried before it is saved.

    The server is reached that way with the gateway's own certificate; when that fails nothing is changed. A
    running gateway follows with its next request, without a restart.

    For example:

        secondsite gateway proxy show

        secondsite gateway proxy custom http://proxy.example:3128 --credentials /etc/secondsite/proxy

        secondsite gateway proxy direct

    Parameters
    ----------
    action
        show; try (reach the server as it is set now); direct (no proxy); default (as the environment of this
        command says: https_proxy, all_proxy, no_proxy); custom (URL).
    url
        With custom: http://HOST:PORT.
    credentials
        With custom or default: file with USER:PASSWORD, mode 0600. It is read for every connection: changing
        the password in it needs no command.
    directory
        Where the gateway was enrolled into.
    """
    from secondsite.gateway.common.enrolfiles import load_membership
    from secondsite.gateway.uplink.proxy import (
        ProxyWay,
        change_way,
        check_credentials,
        environment_way,
        try_way,
    )

    found = load_membership(directory)
    if (url is None) is (action == "custom"):
        why = "custom takes http://HOST:PORT" if url is None else f"{action} takes no address"
        raise InvalidInput(what=f"gateway proxy {action}", why=why)
    if credentials is not None and action not in {"custom", "default"}:
        raise InvalidInput(what=f"gateway proxy {action}", why="--credentials goes with custom or default")
    now = ProxyWay.of(found)
    if action in {"show", "try"}:
        if action == "try":
            try_way(directory, now)
        _tell(found.server, now, listing, tried=action == "try")
        return
    file = None if credentials is None else check_credentials(credentials)
    wanted = ProxyWay(url, file)
    if action == "default":
        said = environment_way(found.server)
        wanted = ProxyWay(said.url, file if said.url is not None else None)
    elif action == "direct":
        wanted = ProxyWay()
    change_way(directory, wanted)
    _tell(found.server, wanted, listing, tried=True)


def _tell(server: str, way: ProxyWay, listing: Listing, *, tried: bool) -> None:
    if listing.json:
        shown = None if way.credentials is None else str(way.credentials)
        print_json({"server": server, "proxy": way.url, "credentials": shown, "tried": tried})
        return
    print(f"the gateway goes to {server} {way.words}" + (": it answers" if tried else ""))
    if way.credentials is not None:
        print(f"with the credentials in {way.credentials}, read for every connection")


def outbound(*, config: Path = DEFAULT_CONFIG, listing: Listing = LISTING) -> None:
    """Print all connections that this gateway opens, from its real configuration: the list for a firewall.

    For example:

        secondsite gateway outbound

        secondsite gateway outbound --config /etc/secondsite/gateway.toml --json

    Parameters
    ----------
    config
        The gateway's configuration.
    """
    from secondsite.gateway.common.config import load_config
    from secondsite.gateway.uplink.outbound import traffic_of

    found = traffic_of(load_config(config))
    if listing.json:
        print_json(found)
        return
    print_table(
        ["TO", "HOST", "PORT>", "PROTOCOL", "THROUGH", "WHAT TRAVELS", "SET BY"],
        (
            (one.purpose, one.host, one.port, one.protocol, one.through, one.carries, one.source)
            for one in found.outbound
        ),
        empty="It opens no connection.",
    )
    for one in found.inbound:
        print(f"in: {one.purpose} connect to {one.host}:{one.port} ({one.protocol}), {one.source}")
