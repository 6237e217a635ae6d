"""What goes out of a gateway, from its real configuration: the list for a firewall, and what travels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.desired import DesiredState
from secondsite.gateway.common.enrolerrors import NotEnrolled
from secondsite.gateway.common.enrolfiles import Membership, load_membership
from secondsite.gateway.uplink.whichserver import known_servers
from secondsite.journal.store_object_clients import AZURE_ENDPOINTS, S3_ENDPOINTS, s3_region
from secondsite.journal.store_object_settings import S3, Credentials, ObjectPlace, parse_place
from secondsite.journal.stores import local_directory
from secondsite.transfer.wire import PORT

_SERVER = "names, versions, health, counts, inventories, events, answers to calls; never disk content"
_PEER = "sealed segments and manifests of protected machines, hashes of blocks; never plain disk content"
_STORE = "sealed segments, manifests and keys wrapped with the vault key"


class Outbound(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One connection that this gateway opens. through: the proxy it goes through; empty: directly."""

    purpose: str
    host: str
    port: int
    protocol: str
    through: str
    carries: str
    source: str  # which setting says so


class Inbound(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What others connect to here."""

    purpose: str
    host: str
    port: int
    protocol: str
    source: str


class Traffic(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All of it. Nothing else is opened by the gateway itself."""

    gateway: str
    outbound: tuple[Outbound, ...]
    inbound: tuple[Inbound, ...]


def traffic_of(config: GatewayConfig) -> Traffic:
    """What this configuration, and what the server said so far, makes the gateway connect to."""
    inbound: tuple[Inbound, ...] = ()
    if config.listen is not None:
        inbound = (
            Inbound(
                purpose="gateways of other sites",
                host=config.listen.host,
                port=config.listen.port,
                protocol="HTTPS, mutual TLS 1.3",
                source="[listen]",
            ),
        )
    return Traffic(gateway=config.name, outbound=tuple(_outbound(config)), inbound=inbound)


def _outbound(config: GatewayConfig) -> Iterator[Outbound]:
    membership = _membership(config)
    if membership is not None and config.server is not None:
        yield from _server(membership)
        yield from _standbys(membership, known_servers(config.server.directory))
    known = {name: (url, "[peers]") for name, url in config.peers.items()}
    for name, url in _told(config):
        known.setdefault(name, (url, "said by the server"))
    for name, (url, source) in sorted(known.items()):
        parts = urlsplit(url)
        yield Outbound(
            purpose=f"gateway {name}",
            host=parts.hostname or "",
            port=parts.port or PORT,
            protocol="HTTPS, mutual TLS 1.3",
            through="",
            carries=_PEER,
            source=source,
        )
    yield from _store(config)


def _server(membership: Membership) -> Iterator[Outbound]:
    parts = urlsplit(membership.server)
    yield Outbound(
        purpose="the server",
        host=parts.hostname or "",
        port=parts.port or 443,
        protocol="HTTPS, mutual TLS",
        through=membership.proxy or "",
        carries=_SERVER,
        source="[server] directory, membership.json",
    )
    if membership.proxy is not None:
        proxy = urlsplit(membership.proxy)
        yield Outbound(
            purpose="the proxy to the server",
            host=proxy.hostname or "",
            port=proxy.port or 3128,
            protocol="HTTP CONNECT; what goes through it stays TLS",
            through="",
            carries="the server's name and port, the proxy's credentials",
            source="membership.json",
        )


def _standbys(membership: Membership, urls: Sequence[str]) -> Iterator[Outbound]:
    for url in urls:
        if url == membership.server:
            continue
        parts = urlsplit(url)
        yield Outbound(
            purpose="the server at another address, or a standby of it",
            host=parts.hostname or "",
            port=parts.port or 443,
            protocol="HTTPS, mutual TLS",
            through=membership.proxy or "",
            carries="whether it is active; once it is, all that the server gets",
            source="said by the server",
        )


def _membership(config: GatewayConfig) -> Membership | None:
    if config.server is None:
        return None
    with contextlib.suppress(NotEnrolled):  # not yet: then nothing goes to a server
        return load_membership(config.server.directory)
    return None


def _told(config: GatewayConfig) -> Iterator[tuple[str, str]]:
    """Gateways that the server named. Raises DesiredDamaged."""
    path: Path = config.state_dir / "desired.json"
    if path.exists():
        for peer in DesiredState(path).everything().peers:
            if peer.name != config.name:
                yield peer.name, peer.url


def _store(config: GatewayConfig) -> Iterator[Outbound]:
    if config.store is None or local_directory(config.store) is not None:
        return
    place = parse_place(config.store)
    parts = urlsplit(_endpoint(place, Credentials(config.store_credentials).read()))
    secure = parts.scheme != "http"
    yield Outbound(
        purpose=f"the store {config.store}",
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        protocol="HTTPS" if secure else "HTTP",
        through="",
        carries=_STORE,
        source="store, store_credentials",
    )


def _endpoint(place: ObjectPlace, variables: dict[str, str]) -> str:
    """Where the object store answers: as its variables say, else the provider's own address."""
    names = S3_ENDPOINTS if place.scheme == S3 else AZURE_ENDPOINTS
    said = next((variables[name] for name in names if variables.get(name)), None)
    if said is not None:
        return said
    if place.scheme == S3:
        host = f"s3.{s3_region(variables)}.amazonaws.com"
        hosted = variables.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in {"1", "true", "yes"}
        return f"https://{place.bucket}.{host}" if hosted else f"https://{host}"
    names = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
    account = next((variables[name] for name in names if variables.get(name)), "ACCOUNT")
    return f"https://{account}.blob.core.windows.net"
