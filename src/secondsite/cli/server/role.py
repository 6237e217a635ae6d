"""``secondsite server``: the long-running role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def server(
    *,
    config: Path | None = None,
    standby: Annotated[bool, Parameter(negative="")] = False,
    new_setup_token: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run the server until SIGTERM: who is who, what is protected, every operation as a job.

    Without a configuration it uses /etc/secondsite/server.toml where there is one, and defaults otherwise:
    SQLite in /var/lib/secondsite/server, port 443. The first start makes the user `owner` and writes a set-up
    token to the file setup-token there; `secondsite login` takes it, once.

    For example:

        secondsite server

        secondsite server --config /etc/secondsite/server.toml

        secondsite server --standby

        secondsite server --new-setup-token

    Parameters
    ----------
    config
        Its configuration, TOML.
    standby
        A new machine: be a standby from now on, also after a restart, until it takes over. It needs a section
        [standby] in its configuration, and the active server's master.key in its state directory.
    new_setup_token
        Run nothing: make another set-up token for the owner, for who has lost every other way in.
    """
    if new_setup_token:
        from secondsite.server.main import new_setup_token as make

        print(f"a new set-up token is in {make(config)}; it is good once, for seven days")
        return 0
    from secondsite.server.main import run

    return run(config, standby=standby)
