"""``secondsite gateway enrol`` and the rest: gateways enter a vault, are seen, and leave it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import UNKNOWN, print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach, read_secret

if TYPE_CHECKING:
    from secondsite.client.client import ServerClient
    from secondsite.client.vaults import Provider

DEFAULT_TLS = Path("/etc/secondsite/tls")
REFRESH_SECONDS_MAX = 60.0
STANDARD_INPUT = Path("-")


class GatewayNotListed(SecondsiteError):
    """None that the caller may see."""

    code = "gateway.not-listed"
    outcome = Outcome.NOT_FOUND
    happened = "There is no gateway {name!r} that you may see."
    cause = "A mistyped name, it was removed, or its vault is not yours."
    action = "See `secondsite gateway list`; its own name counts, not the friendly one."


class NoReport(SecondsiteError):
    """Asked to report, and nothing came."""

    code = "gateway.silent"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway {name} did not report within {seconds} s; its last contact was {last}."
    cause = "It is not running, or cannot reach the server."
    action = "Look at its log at the site. It reports by itself once it reaches the server."


def enrol(
    *,
    key_file: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    name: str,
    site: str,
    friendly_name: str | None = None,
    out: Path = DEFAULT_TLS,
    server: str | None = None,
    proxy: str | None = None,
    proxy_credentials: Path | None = None,
    publish: Literal["all", "none"] = "all",
    replace: bool = False,
    listing: Listing = LISTING,
) -> None:
    """Enrol this gateway into a vault, with a registration key made by `secondsite vault key`.

    The gateway's private key is made here and stays here. The server is known by the fingerprint in the key.
    Writes the files that [tls] in the gateway's configuration names: NAME.crt, NAME.key (mode 0600),
    authority.crt and revoked.pem. With `[server] directory = "OUT"` the running gateway renews its
    certificate by itself at two thirds of its 30 days, and is seen at the server.

    For example:

        secondsite gateway enrol --key-file north.key --name gateway-a --site north

        secondsite gateway enrol --key-file - --name gateway-a --site north --out /etc/secondsite/tls

        secondsite gateway enrol --key-file north.key --name gateway-a --site north
        --proxy http://proxy.example:3128 --proxy-credentials /etc/secondsite/proxy

    Parameters
    ----------
    key_file
        File with the registration key; - reads standard input. Never an argument: others see those.
    name
        The gateway's name in its certificate and configuration: a DNS name in lower case.
    site
        The site it is at.
    friendly_name
        For people; the name when not given.
    out
        Directory for its files, made when it is not there.
    server
        Another address of the same server than the one in the key.
    proxy
        http://HOST:PORT of a proxy to go through; tried at once.
    proxy_credentials
        File with USER:PASSWORD for the proxy, mode 0600; read again for every connection.
    publish
        all: the server may know and offer the machines of this gateway's hosts at once; none: not before
        `secondsite cloud publish`.
    replace
        Enrol again over an enrolment that is there, with a key made with --again; it stays in use until then.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.gateway.uplink.enrol import NewMember
    from secondsite.gateway.uplink.enrol import enrol as run
    from secondsite.gateway.uplink.enrolclient import Way
    from secondsite.transfer.registration import parse_key, server_url

    text = sys.stdin.read(8192) if key_file == STANDARD_INPUT else read_secret(key_file)
    key = parse_key(text)
    way = Way(server_url(server) if server else key.url, proxy, proxy_credentials)
    member = run(
        key,
        NewMember(name, friendly_name or name, site, publish),
        out,
        way=way,
        clock=SystemClock(),
        credentials=proxy_credentials.resolve() if proxy_credentials else None,
        replace=replace,
    )
    if listing.json:
        shown = {"name": member.name, "gatewayId": member.gateway_id, "vault": member.vault}
        print_json({**shown, "server": member.server, "directory": str(out)})
        return
    print(f"{member.name} is registered in the vault {member.vault} of {member.server}")
    print(f"its files are in {out}; its configuration needs")
    print(f'  [server]\n  directory = "{out}"')


def list_gateways(
    *, vault: str | None = None, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """List the gateways (recovery services providers) a server knows, and when they were last heard of.

    For example:

        secondsite gateway list

        secondsite gateway list --vault North --json

    Parameters
    ----------
    vault
        Of this vault only.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        found = list(vaults.providers(server, vault))
    if listing.json:
        print_json(found)
        return
    print_table(
        [
            "NAME",
            "FRIENDLY NAME",
            "VAULT",
            "SITE",
            "STATE",
            "CONNECTION",
            "LAST CONTACT",
            "VERSION",
            "HEALTH",
        ],
        (
            (
                one.name,
                one.friendly_name,
                one.vault,
                one.site,
                one.state,
                one.connection_status,
                short_time(one.last_contact) if one.last_contact else "never",
                one.version if one.version_fit == "Fits" else f"{one.version} ({one.version_fit})",
                one.health,
            )
            for one in found
        ),
        empty="No gateway is registered. Make a key with `secondsite vault key VAULT --out FILE`.",
    )


def show(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show one gateway.

    For example:

        secondsite gateway show gateway-a

    Parameters
    ----------
    name
        The gateway's name.
    """
    with reach.open() as server:
        _print(_find(server, name), listing)


def rename(name: str, to: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Give a gateway another friendly name; its own name is in its certificate and stays.

    For example:

        secondsite gateway rename gateway-a "Rack 7, north"

    Parameters
    ----------
    name
        The gateway's name.
    to
        Its new friendly name.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        _print(vaults.rename_provider(server, _find(server, name), to), listing)


def refresh(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Ask a gateway to report now, and wait until it did.

    For example:

        secondsite gateway refresh gateway-a

    Parameters
    ----------
    name
        The gateway's name.
    """
    from secondsite.base.clock import SystemClock
    from secondsite.client import vaults

    clock, never = SystemClock(), threading.Event()
    with reach.open() as server:
        found = vaults.refresh_provider(server, _find(server, name))
        asked, deadline = found.refresh_asked, clock.monotonic() + REFRESH_SECONDS_MAX
        if not listing.json:
            print(f"waiting for {name} to report", file=sys.stderr)
        while found.refresh_answered < asked:
            if clock.monotonic() > deadline:
                last = short_time(found.last_contact) if found.last_contact else "never"
                raise NoReport(name=name, seconds=round(REFRESH_SECONDS_MAX), last=last)
            clock.wait(never, 0.5)
            found = vaults.show_provider(server, found)
    _print(found, listing)


def revoke(
    name: str, /, *, why: str = "", reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """Revoke a gateway's certificates: refused here at once, by other gateways within seconds.

    For example:

        secondsite gateway revoke gateway-a --why "its host was stolen"

    Parameters
    ----------
    name
        The gateway's name.
    why
        The reason, also for the gateway's own people.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        _print(vaults.revoke_provider(server, _find(server, name), why=why), listing)


def unregister(
    name: str,
    /,
    *,
    why: str = "",
    in_use: bool = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Take a gateway out of its vault: it takes no new work. What is known of it stays until it is removed.

    For example:

        secondsite gateway unregister gateway-a --why "the site is given up"

    Parameters
    ----------
    name
        The gateway's name.
    why
        The reason, also for the gateway's own people.
    in_use
        Also while something needs it, which is then no longer protected, or while it has not learnt that
        machines of it were taken over: should it return, they would run twice.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        found = _find(server, name)
        _print(vaults.unregister_provider(server, found, why=why, in_use=in_use), listing)


def remove(name: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Remove a gateway that is unregistered or revoked, with all that the server keeps of it.

    Nothing at its site is touched. Its certificates stay refused.

    For example:

        secondsite gateway remove gateway-a

    Parameters
    ----------
    name
        The gateway's name.
    """
    from secondsite.client import vaults

    with reach.open() as server:
        vaults.remove_provider(server, _find(server, name))
    print(f"gateway {name} is removed")


def _find(server: ServerClient, name: str) -> Provider:
    from secondsite.client import vaults

    if not name:
        raise InvalidInput(what="the gateway's name", why="it is empty")
    found = vaults.provider(server, name)
    if found is None:
        raise GatewayNotListed(name=name)
    return found


def _print(found: Provider, listing: Listing) -> None:
    if listing.json:
        print_json(found)
        return
    state = found.state + (f" ({found.state_reason})" if found.state_reason else "")
    print(f"{found.name} ({found.friendly_name}) at {found.site}, vault {found.vault}")
    print(f"state: {state}, since {short_time(found.state_since)}")
    last = short_time(found.last_contact) if found.last_contact else "never"
    print(f"connection: {found.connection_status}, last contact {last}, from {found.address or UNKNOWN}")
    print(f"version: {found.version} ({found.version_fit})")
    print(f"certificate: until {short_time(found.certificate_until)}")
    items = UNKNOWN if found.protected_items is None else found.protected_items
    print(f"health: {found.health}, protected machines: {items}")
    if found.clock_seconds is not None and abs(found.clock_seconds) > 60:
        print(f"its clock is {found.clock_seconds:+.0f} s off the server's")
