"""``secondsite alert``: who is told of what happens."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from secondsite.cli.common.gateways import LISTING, Listing, parse_duration
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach, read_secret
from secondsite.cli.server.jobs import NoWait, started


def add_channel(
    name: str,
    /,
    *,
    address_file: Path,
    per_hour: int | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a channel that alerts can be sent to. Its address is a secret: it is given in a file, never shown.

    Addresses are written as apprise writes them: mailtos://USER:PASSWORD@HOST?to=WHO for mail,
    jsons://HOST/PATH for a web hook, and one for each of some hundred services (docs/monitoring.md).

    For example:

        secondsite alert channel add on-call --address-file on-call.address

        pass show on-call | secondsite alert channel add on-call --address-file /dev/stdin

    Parameters
    ----------
    name
        What to call it.
    address_file
        File with the address in its first line; /dev/stdin for a pipe.
    per_hour
        Messages at most, 30 when not given; what is more is put together into one.
    """
    from secondsite.client.alerts import add_channel as add

    address = read_secret(address_file)
    with reach.open() as server:
        made = add(server, name, address, per_hour=per_hour)
    if listing.json:
        print_json(made)
    else:
        print(f"{made.name} sends by {made.service}; try it: secondsite alert channel test {made.name}")


def list_channels(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List where alerts go, and how the last delivery went.

    For example:

        secondsite alert channel list

        secondsite alert channel list --json
    """
    from secondsite.client.alerts import channels

    with reach.open() as server:
        found = channels(server)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["CHANNEL", "BY", "AN HOUR>", "WAITING>", "SENT", "FAILED", "WHY"],
        (
            (
                one.name,
                one.service,
                one.per_hour,
                one.waiting,
                short_time(one.sent_at) if one.sent_at else "never",
                short_time(one.failed_at) if one.failed_at else "never",
                one.problem,
            )
            for one in found
        ),
        empty="There are no channels: nobody is told of anything.",
    )


def send_test(
    name: str,
    /,
    *,
    no_wait: NoWait = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> int:
    """Send a test message, and say whether the service took it.

    For example:

        secondsite alert channel test on-call

    Parameters
    ----------
    name
        The channel.
    no_wait
        Return at once.
    """
    from secondsite.client import alerts

    with reach.open() as server:
        return started(server, alerts.send_test(server, name), listing, no_wait=no_wait)


def remove_channel(name: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Forget a channel with its rules and what waits for it.

    For example:

        secondsite alert channel remove on-call

    Parameters
    ----------
    name
        The channel.
    """
    from secondsite.client.alerts import remove_channel as remove

    with reach.open() as server:
        remove(server, name)
    print(f"{name} is gone, and its rules with it")


def add_rule(
    name: str,
    channel: str,
    /,
    *,
    severity: Literal["Information", "Warning", "Critical"] = "Warning",
    code: list[str] | None = None,
    vault: str = "",
    provider: str = "",
    quiet: str | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Say which events are told by a channel, from now on. What is left out limits nothing.

    The first event of a kind is told at once; more of the same within the quiet time is counted and told as
    one message. When it is over, that is told too.

    For example:

        secondsite alert rule add nights on-call --severity Critical

        secondsite alert rule add links ops --code "ship.*" --provider gateway-a --quiet 1h

    Parameters
    ----------
    name
        What to call the rule.
    channel
        Where to.
    severity
        Events at least so severe.
    code
        Only with this code, or beginning with what stands before a *; may be repeated.
    vault
        Only of this vault, by id or name.
    provider
        Only of this gateway.
    quiet
        How long more of the same is counted: 15m when not given, up to 1d, 0s to be told of each.
    """
    from secondsite.client.alerts import add_rule as add

    seconds = None if quiet is None else round(parse_duration(quiet, "--quiet"))
    with reach.open() as server:
        made = add(
            server,
            name,
            channel,
            severity=severity,
            codes=code or (),
            vault=vault,
            gateway=provider,
            quiet_seconds=seconds,
        )
    if listing.json:
        print_json(made)
    else:
        print(f"{made.name} tells {made.channel} from now on")


def list_rules(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List which events go where.

    For example:

        secondsite alert rule list

        secondsite alert rule list --json
    """
    from secondsite.client.alerts import rules

    with reach.open() as server:
        found = rules(server)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["RULE", "TO", "SEVERITY", "CODES", "VAULT", "GATEWAY", "QUIET>", "WORKS"],
        (
            (
                one.name,
                one.channel,
                one.severity,
                " ".join(one.codes) or "any",
                one.vault or "any",
                one.gateway or "any",
                f"{one.quiet_seconds // 60} min",
                "yes" if one.enabled else "rests",
            )
            for one in found
        ),
        empty="There are no rules: nobody is told of anything.",
    )


def rest_rule(
    name: str, /, *, again: Annotated[bool, Parameter(negative="")] = False, reach: ServerReach = SERVER_REACH
) -> None:
    """Let a rule rest: it tells nothing, and forgets what it counted, until it works again.

    For example:

        secondsite alert rule rest nights

        secondsite alert rule rest nights --again

    Parameters
    ----------
    name
        The rule.
    again
        It works again.
    """
    from secondsite.client.alerts import enable_rule

    with reach.open() as server:
        made = enable_rule(server, name, enabled=again)
    print(f"{made.name} {'works' if made.enabled else 'rests'}")


def remove_rule(name: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Forget a rule.

    For example:

        secondsite alert rule remove nights

    Parameters
    ----------
    name
        The rule.
    """
    from secondsite.client.alerts import remove_rule as remove

    with reach.open() as server:
        remove(server, name)
    print(f"{name} is gone")


def list_alerts(*, limit: int = 50, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List what was sent and what waits, newest last.

    For example:

        secondsite alert list

        secondsite alert list --limit 500 --json

    Parameters
    ----------
    limit
        At most so many.
    """
    from secondsite.client.alerts import alerts

    with reach.open() as server:
        found = list(islice(alerts(server), max(limit, 0)))[::-1]
    if listing.json:
        print_json(found)
        return
    print_table(
        ["WHEN", "TO", "WHAT", "SENT", "JOB"],
        (
            (
                short_time(one.at),
                one.channel,
                one.title,
                short_time(one.sent_at) if one.sent_at else ("under way" if one.job else "waits"),
                one.job,
            )
            for one in found
        ),
        empty="Nothing was sent yet.",
    )
