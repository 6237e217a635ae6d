"""The hosts a gateway connects to: other gateways, its server and that one's standbys, or a proxy."""

from __future__ import annotations

import functools
from urllib.parse import urlsplit

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.common.resolving import Unresolved, unresolved
from secondsite.gateway.uplink.whichserver import known_servers


def hosts_of(config: GatewayConfig, desired: DesiredState) -> dict[str, str]:
    """What each is -> its name or address, as of now."""
    told = {peer.name: peer.url for peer in desired.everything().peers}
    urls = {f"gateway {name}": url for name, url in {**told, **config.peers}.items()}
    if config.server is not None:
        try:
            member = load_membership(config.server.directory)
        except (SecondsiteError, OSError):  # that it is not enrolled is told by others
            pass
        else:
            if member.proxy is not None:  # it is asked for the server's name, and resolves that itself
                urls["proxy"] = member.proxy
            else:
                urls["server"] = member.server
                others = (url for url in known_servers(config.server.directory) if url != member.server)
                urls |= {f"standby server {url}": url for url in others}
    found = {what: urlsplit(url).hostname or "" for what, url in urls.items()}
    return {what: host for what, host in found.items() if host}


def names_of(config: GatewayConfig, desired: DesiredState, clock: Clock) -> Unresolved:
    """Looks which of them do not resolve, each time it is called."""
    return functools.partial(_look, config, desired, clock)


def _look(config: GatewayConfig, desired: DesiredState, clock: Clock) -> tuple[str, ...]:
    return unresolved(hosts_of(config, desired), clock)
