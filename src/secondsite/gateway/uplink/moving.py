"""The server has another address: told to a gateway by hand, believed only once the server proved itself."""

from __future__ import annotations

from pathlib import Path

from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership, load_membership
from secondsite.gateway.uplink.enrolclient import Way, enrolled_client
from secondsite.transfer import enrolment as wire
from secondsite.transfer.registration import server_url


def move_server(directory: Path, url: str) -> Membership:
    """Have the gateway enrolled in `directory` use the same server at another address from now on.

    Whoever answers there must show a certificate of the gateway's own authority, take the gateway's, and be
    no earlier life of the server than the gateway has met. A running gateway follows with its next heartbeat.

    Raises NotEnrolled, InvalidInput, TwoServers, or what `ServerClient` raises; nothing was changed then.
    """
    found = load_membership(directory)
    files = EnrolmentFiles(directory, found.name)
    files.settle()
    moved = found.model_copy(update={"server": server_url(url)})
    way = Way(moved.server, found.proxy, found.proxy_credentials)
    client = enrolled_client(way, files.tls, system_trust=found.system_trust)
    try:
        client.get(wire.PATH_REVOCATIONS, wire.RevocationsAnswer)
    finally:
        client.close()
    files.save(moved)
    return moved
