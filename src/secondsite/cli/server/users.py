"""``secondsite user``: who may come in, and what they may do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach, ask_password

if TYPE_CHECKING:
    from secondsite.client.messages import User

RoleName = Literal["owner", "contributor", "operator", "approver", "reader"]


def list_users(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """List users and the roles they hold.

    For example:

        secondsite user list
    """
    with reach.open() as server:
        found = list(server.users())
    if listing.json:
        print_json(found)
        return
    print_table(
        ["NAME", "DISPLAY NAME", "ROLES", "PASSWORD", "STATE", "MADE"],
        (
            (
                user.name,
                user.display_name,
                ", ".join(role.text() for role in user.roles) or "none",
                "yes" if user.has_password else "no",
                "disabled" if user.disabled else "active",
                short_time(user.created_at),
            )
            for user in found
        ),
        empty="There are no users.",
    )


def show(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show one user.

    For example:

        secondsite user show maria

    Parameters
    ----------
    name
        The user's name.
    """
    with reach.open() as server:
        _tell(server.user(name), listing)


def create(
    name: str,
    /,
    *,
    display_name: str = "",
    password: Annotated[bool, Parameter(negative="")] = False,
    password_file: Path | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make a user. Without a password it comes in with tokens only; roles are given with `user grant`.

    For example:

        secondsite user create maria --display-name "Maria Schmidt" --password

        secondsite user create backup-robot

    Parameters
    ----------
    name
        In lower case: letters, digits, . _ @ and -. It never changes.
    display_name
        For people to read.
    password
        Ask for a password.
    password_file
        File with the password in its first line, instead of asking.
    """
    secret = None
    if password or password_file is not None:
        secret = ask_password(password_file, whose=name, twice=True)
    with reach.open() as server:
        _tell(server.create_user(name, display_name=display_name, password=secret), listing)


def grant(
    name: str,
    role: RoleName,
    /,
    *,
    vault: str = "*",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Give a user a role: owner, contributor, operator, approver or reader.

    An owner does everything, a contributor sets up what is protected, an operator runs tests, failovers and
    jobs, an approver lets go on what waits for a second person, a reader sees.

    For example:

        secondsite user grant maria operator

        secondsite user grant maria owner --vault "North"

    Parameters
    ----------
    name
        The user's name.
    role
        The role.
    vault
        On this vault only; on everything otherwise.
    """
    with reach.open() as server:
        _tell(server.grant_role(name, role, vault=vault), listing)


def withdraw(
    name: str,
    role: RoleName,
    /,
    *,
    vault: str = "*",
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Take a role from a user, at once.

    For example:

        secondsite user withdraw maria operator

    Parameters
    ----------
    name
        The user's name.
    role
        The role.
    vault
        The one on this vault; the one on everything otherwise.
    """
    with reach.open() as server:
        _tell(server.withdraw_role(name, role, vault=vault), listing)


def password(
    name: str | None = None,
    /,
    *,
    password_file: Path | None = None,
    before_file: Path | None = None,
    reach: ServerReach = SERVER_REACH,
) -> None:
    """Give a user, or oneself, another password. Sessions end.

    For example:

        secondsite user password

        secondsite user password maria

    Parameters
    ----------
    name
        The user's name; oneself when not given.
    password_file
        File with the new password in its first line, instead of asking.
    before_file
        One's own: file with the password before, instead of asking.
    """
    with reach.open() as server:
        if name is not None:
            server.set_password(name, ask_password(password_file, whose=name, twice=True))
        else:
            me = server.me().name
            before = ""
            if server.user(me).has_password:
                before = ask_password(before_file, whose=f"{me}, as it is now", twice=False)
            server.set_own_password(
                ask_password(password_file, whose=f"{me}, from now on", twice=True), before
            )
    print("the password was changed")


def disable(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Keep a user out, at once; tokens, sessions and passwords stop working, roles stay.

    For example:

        secondsite user disable maria

    Parameters
    ----------
    name
        The user's name.
    """
    with reach.open() as server:
        _tell(server.change_user(name, disabled=True), listing)


def enable(name: str, /, *, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Let a disabled user in again.

    For example:

        secondsite user enable maria

    Parameters
    ----------
    name
        The user's name.
    """
    with reach.open() as server:
        _tell(server.change_user(name, disabled=False), listing)


def remove(name: str, /, *, reach: ServerReach = SERVER_REACH) -> None:
    """Remove a user with tokens and roles; the audit log keeps the name.

    For example:

        secondsite user remove maria

    Parameters
    ----------
    name
        The user's name.
    """
    with reach.open() as server:
        server.remove_user(name)
    print(f"{name} was removed")


def _tell(user: User, listing: Listing) -> None:
    if listing.json:
        print_json(user)
        return
    shown = f" ({user.display_name})" if user.display_name else ""
    state = ", disabled" if user.disabled else ""
    roles = ", ".join(role.text() for role in user.roles) or "no roles"
    print(f"{user.name}{shown}{state}: {roles}")
