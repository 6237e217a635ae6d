"""``secondsite gateway`` and ``guard``: the long-running roles."""

from __future__ import annotations

from pathlib import Path


def gateway(*, config: Path) -> int:
    """Run the gateway of a site until SIGTERM.

    For example:

        secondsite gateway --config /etc/secondsite/gateway.toml

    Parameters
    ----------
    config
        Its configuration, TOML.
    """
    from secondsite.gateway.main import run

    return run(config)


def guard(*, uri: str, socket: Path, scratch: Path, socket_dir: Path, event_log: Path) -> int:
    """Run the guard of a hypervisor host: it ends overdue backup jobs and thaws guests, whatever else dies.

    The gateway starts it; by hand it is only needed where the host's own supervisor is to start it.

    For example:

        secondsite guard --uri qemu:///system --socket /run/secondsite/guard.sock --scratch /srv/scratch
        --socket-dir /run/secondsite --event-log /var/lib/secondsite/guard.log

    Parameters
    ----------
    uri
        libvirt URI of the host.
    socket
        Where the gateway reaches the guard.
    scratch
        The volume that holds the scratch files of backup jobs.
    socket_dir
        Where the sockets of backup jobs lie.
    event_log
        Where the guard writes what it did.
    """
    from secondsite.fabrics.libvirt.guard import main

    options = {
        "--uri": uri,
        "--socket": socket,
        "--scratch": scratch,
        "--socket-dir": socket_dir,
        "--event-log": event_log,
    }
    return main([word for pair in options.items() for word in map(str, pair)])
