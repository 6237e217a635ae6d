"""``secondsite session``: who is logged in from where."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach


def list_sessions(
    *, user: str | None = None, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """List sessions that are alive: one's own, or as an owner another user's.

    For example:

        secondsite session list

        secondsite session list --user maria

    Parameters
    ----------
    user
        Whose; one's own when not given.
    """
    from secondsite.client import sessions

    with reach.open() as server:
        found = sessions.sessions(server, user)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["ID", "FROM", "BEGAN", "USED", "ENDS", ""],
        (
            (
                one.id,
                one.address,
                short_time(one.created_at),
                short_time(one.used_at) if one.used_at else "",
                short_time(one.expires_at),
                "this one" if one.current else "",
            )
            for one in found
        ),
        empty="There are no sessions.",
    )


def end(
    session: str | None = None,
    /,
    *,
    all_: Annotated[bool, Parameter(name="--all", negative="")] = False,
    user: str | None = None,
    reach: ServerReach = SERVER_REACH,
) -> None:
    """End a session at once, or all of them; of one's own all but the one in use.

    For example:

        secondsite session end 0123456789abcdef

        secondsite session end --all --user maria

    Parameters
    ----------
    session
        Its id, from `secondsite session list`.
    all_
        All of them.
    user
        Whose; one's own when not given.
    """
    from secondsite.client import sessions

    if (session is None) is not all_:
        raise InvalidInput(what="what to end", why="give a session's id, or --all")
    with reach.open() as server:
        if session is None:
            sessions.end_sessions(server, user)
        else:
            sessions.end_session(server, session, user)
    print("the sessions are ended" if session is None else f"session {session} is ended")


def rules(
    *,
    one: Annotated[bool | None, Parameter(negative="--several")] = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Show what holds for sessions, or say whether a user may have one only.

    For example:

        secondsite session rules

        secondsite session rules --one

    Parameters
    ----------
    one
        A log-in ends the user's other sessions; with --several it leaves them.
    """
    from secondsite.client import sessions

    with reach.open() as server:
        if one is None:
            found = sessions.session_rules(server)
        else:
            found = sessions.change_session_rules(server, one_session=one)
    if listing.json:
        print_json(found)
    else:
        print(f"sessions of a user at once: {'one' if found.one_session else 'several'}")
