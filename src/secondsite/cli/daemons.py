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


def guard(*, uri: str, socket: Path, scratch: Path) -> int:
    """Run the guard of a hypervisor host: it ends overdue backup jobs and thaws guests, whatever else dies.

    The gateway starts it; by hand it is only needed where the host's own supervisor is to start it.

    For example:

        secondsite guard --uri qemu:///system --socket /run/secondsite/guard.sock --scratch /srv/scratch

    Parameters
    ----------
    uri
        libvirt URI of the host.
    socket
        Where the gateway reaches the guard.
    scratch
        The volume that holds the scratch files of backup jobs.
    """
    from secondsite.fabrics.libvirt.guard import run

    return run(uri=uri, socket_path=socket, scratch_dir=scratch)
