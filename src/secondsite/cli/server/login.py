"""``secondsite login``, ``logout`` and ``whoami``: this user's way to the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from secondsite.base.errors import InvalidInput
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_json
from secondsite.cli.common.reach import SERVER_REACH, ServerReach, ask_password, read_secret

if TYPE_CHECKING:
    from secondsite.client.login import Login

SETUP_PREFIX = "sse_"
AUTHORITY_NAME = "authority.crt"


def login(
    *,
    server: str = "https://localhost",
    token_file: Path | None = None,
    user: str | None = None,
    password_file: Path | None = None,
    authority: Path | None = None,
    oidc: Annotated[bool, Parameter(negative="")] = False,
    device: Annotated[bool, Parameter(negative="")] = False,
    reach: ServerReach = SERVER_REACH,
    listing: Listing = LISTING,
) -> None:
    """Log in at a server, and keep the way to it for all commands of this user.

    With a token from a file, with a user name and a password that is asked for, or at the OIDC provider that
    the server knows, in a browser here or (--device) elsewhere. The set-up token of a new
    server is exchanged for an API token of its owner; with --password-file the owner gets that password, too.
    Written to ~/.config/secondsite/client.json, readable for this user only.

    For example:

        secondsite login --token-file /var/lib/secondsite/server/setup-token

        secondsite login --server https://server.example --token-file token --authority authority.crt

        secondsite login --server https://server.example --user maria

        secondsite login --server https://server.example --oidc

        secondsite login --server https://server.example --oidc --device

    Parameters
    ----------
    server
        Its address, https://HOST or https://HOST:PORT.
    token_file
        File with a token in its first line; /dev/stdin reads standard input.
    user
        Log in with this user's password instead: a session of 12 hours.
    password_file
        File with the password in its first line, instead of asking.
    authority
        The server's authority.crt (from its state directory); one beside the token's file is found by itself.
    oidc
        Log in at the provider instead; a page of it opens in this machine's browser.
    device
        With --oidc, for a machine without a browser: enter a code on any other.
    """
    from secondsite.client.client import ServerClient
    from secondsite.client.login import Login, save_login

    if [token_file is not None, user is not None, oidc].count(True) != 1:
        raise InvalidInput(what="the log-in", why="give one of --token-file, --user and --oidc")
    if device and not oidc:
        raise InvalidInput(what="--device", why="it goes with --oidc")
    trusted = _authority(authority, token_file)
    if token_file is not None:
        token = read_secret(token_file)
        if token.startswith(SETUP_PREFIX):
            password = read_secret(password_file) if password_file else None
            with ServerClient.of(Login(server, "", trusted)) as client:
                token = client.set_up(token, password).text
    elif oidc:
        from secondsite.cli.common import browser

        with ServerClient.of(Login(server, "", trusted)) as client:
            token = browser.with_device(client) if device else browser.with_browser(client)
    else:
        assert user is not None
        password = ask_password(password_file, whose=user, twice=False)
        with ServerClient.of(Login(server, "", trusted)) as client:
            token = client.log_in(user, password).text
    made = Login(server, token, trusted)
    name = _check(made)
    path = save_login(made, reach.login)
    if listing.json:
        print_json({"server": server, "user": name, "file": str(path)})
    else:
        print(f"logged in at {server} as {name}; kept in {path}")


def logout(*, reach: ServerReach = SERVER_REACH) -> None:
    """Forget the log-in; a session ends at the server, too, an API token stays valid.

    For example:

        secondsite logout
    """
    from secondsite.client.client import ServerClient
    from secondsite.client.login import forget_login, load_login

    kept = load_login(reach.login)
    try:
        if kept.token.startswith("sss_"):
            with ServerClient.of(kept) as client:
                client.log_out()
    finally:
        forget_login(reach.login)
    print("logged out")


def whoami(*, reach: ServerReach = SERVER_REACH, listing: Listing = LISTING) -> None:
    """Show who the server takes this user for, and what they may do.

    For example:

        secondsite whoami
    """
    with reach.open() as client:
        me = client.me()
    if listing.json:
        print_json(me)
        return
    held = ", ".join(role.text() for role in me.roles) or "no roles"
    print(f"{me.name}: {held}")
    limits = [text for text in (me.role_limit, me.vault_limit and f"vault {me.vault_limit}") if text]
    if limits:
        print(f"the token is limited to: {', '.join(limits)}")


def _authority(given: Path | None, token_file: Path | None) -> str:
    beside = token_file.with_name(AUTHORITY_NAME) if token_file is not None else None
    file = given or (beside if beside is not None and beside.is_file() else None)
    if file is None:
        return ""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(what=f"the authority {file}", why=str(error)) from None


def _check(made: Login) -> str:
    """Whose the token is: a wrong one is told now, and not kept."""
    from secondsite.client.client import ServerClient

    with ServerClient.of(made) as client:
        return client.me().name
