"""``secondsite token``: how programs, and people without a password, come in."""

from __future__ import annotations

from pathlib import Path

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json, print_table, short_time
from secondsite.cli.common.reach import SERVER_REACH, ServerReach
from secondsite.cli.server.users import RoleName


def list_tokens(
    *, user: str | None = None, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING
) -> None:
    """List API tokens: one's own, or as an owner another user's. Never their text.

    For example:

        secondsite token list

        secondsite token list --user backup-robot

    Parameters
    ----------
    user
        Whose; one's own when not given.
    """
    with reach.open() as server:
        found = server.tokens(user)
    if listing.json:
        print_json(found)
        return
    print_table(
        ["ID", "NAME", "LIMITED TO", "MADE", "EXPIRES", "USED"],
        (
            (
                token.id,
                token.name,
                ", ".join(text for text in (token.role, token.vault) if text),
                short_time(token.created_at),
                short_time(token.expires_at),
                "never" if token.used_at is None else short_time(token.used_at),
            )
            for token in found
        ),
        empty="There are no tokens.",
    )


def create(
    name: str,
    /,
    *,
    user: str | None = None,
    days: int = 90,
    vault: str | None = None,
    role: RoleName | None = None,
    out: Path | None = None,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Make an API token. It is shown this once: give --out, or keep what is printed.

    For example:

        secondsite token create deploy --days 30 --role operator --out deploy.token

        secondsite token create metrics --user prometheus --role reader --out /etc/prometheus/secondsite

    Parameters
    ----------
    name
        What it is for.
    user
        Whose; one's own when not given.
    days
        How long it is valid, 1 to 3650.
    vault
        Limit it to this vault.
    role
        Limit it to what this role may do.
    out
        Write it to this file, readable for this user only, instead of printing it. Must not exist.
    """
    from secondsite.base.files import create_file

    if out is not None and out.exists():
        raise InvalidInput(what=f"--out {out}", why="the file exists")
    with reach.open() as server:
        made = server.create_token(name, user=user, days=days, vault=vault, role=role)
        if out is not None and not create_file(out, f"{made.text}\n".encode(), mode=0o600):
            server.remove_token(made.id, user=user)
            raise InvalidInput(what=f"--out {out}", why="the file exists")
    if listing.json:
        print_json({"id": made.id, "expiresAt": made.expires_at, **({} if out else {"text": made.text})})
    elif out is not None:
        print(f"token {made.id} is in {out}, valid until {short_time(made.expires_at)}")
    else:
        print(made.text)


def remove(token: str, /, *, user: str | None = None, reach: ServerReach = SERVER_REACH) -> None:
    """End an API token at once.

    For example:

        secondsite token remove 0123456789abcdef

    Parameters
    ----------
    token
        Its id, from `secondsite token list`.
    user
        Whose; one's own when not given.
    """
    with reach.open() as server:
        server.remove_token(token, user=user)
    print(f"token {token} is no longer valid")
