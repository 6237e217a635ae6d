"""Whether a gateway has what it needs at its own place: a named list, each with the fix and whom to ask.

    GET /v1/readiness -> model.readiness.Readiness

Nothing is kept of it: what is tried is put back at once.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.base.units import MIB, format_bytes
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.config import GatewayConfig
from secondsite.gateway.common.resolving import Unresolved
from secondsite.gateway.common.room import free_bytes
from secondsite.gateway.control.checkroutes import Checks
from secondsite.gateway.source.peercheck import PeerChecks
from secondsite.journal.store import ObjectStore
from secondsite.journal.stores import local_directory
from secondsite.model.readiness import Check, Readiness
from secondsite.transfer.pki import read_certificate

# Certificates are renewed at two thirds of 30 days: one with less than this left was not.
CERTIFICATE_LEFT = dt.timedelta(days=3)
CACHE_BYTES_MIN = 64 * MIB
# No journal has such a key: machines are UUIDs.
PROBE_KEY = "readiness-probe"


def open_checks(
    config: GatewayConfig, fabric: Fabric | None, store: ObjectStore | None, clock: Clock, names: Unresolved
) -> Checks:
    """What the control API's checks stand on."""
    peers = PeerChecks(config.tls.files(), config.peers, version=__version__, clock=clock)
    return Checks(peers, lambda: look(config, fabric, store, clock, names))


def look(
    config: GatewayConfig,
    fabric: Fabric | None,
    store: ObjectStore | None,
    clock: Clock,
    names: Unresolved = lambda: (),
) -> Readiness:
    """Try everything now. names: which of the hosts it connects to do not resolve."""
    found = [*_own(config, clock), _names(names())]
    if store is not None:
        found += _store(config, store)
    if fabric is not None:
        found += fabric.readiness()
    return Readiness(gateway=config.name, at=clock.utc().isoformat(), checks=tuple(found))


def _own(config: GatewayConfig, clock: Clock) -> Iterator[Check]:
    yield _directory("gateway.state", "the gateway's state", config.state_dir)
    yield _directory("gateway.cache", "the cache of what waits for the link", config.cache_dir)
    free = free_bytes([config.cache_dir])
    if free is not None and free < CACHE_BYTES_MIN:
        yield Check(
            code="gateway.cache-room",
            title="room in the cache",
            ok=False,
            why=f"{config.cache_dir} has {format_bytes(free)} left",
            fix="Make room on that volume, or name another one as cache_dir.",
        )
    yield _certificate(config, clock)


def _names(unresolved: tuple[str, ...]) -> Check:
    title = "the names of gateways, server and proxy have addresses"
    if not unresolved:
        return Check(code="gateway.names", title=title, ok=True)
    return Check(
        code="gateway.names",
        title=title,
        ok=False,
        why="; ".join(unresolved),
        fix="Correct the name where it was given, or this host's DNS (/etc/resolv.conf and /etc/hosts).",
        ask="an entry in the DNS that this host asks, of its administrator",
    )


def _directory(code: str, title: str, path: Path) -> Check:
    title = f"{title} can be written ({path})"
    if os.access(path, os.W_OK | os.X_OK):
        return Check(code=code, title=title, ok=True)
    return Check(
        code=code,
        title=title,
        ok=False,
        why=f"the gateway's user (uid {os.geteuid()}) may not write into {path}, or it is not there",
        fix=f"`install -d -o {os.geteuid()} -m 0700 {path}`.",
        ask=f"write access to {path}, of the host's administrator",
    )


def _certificate(config: GatewayConfig, clock: Clock) -> Check:
    title = "the gateway's certificate is valid"
    try:
        until = read_certificate(config.tls.cert).valid_until
    except (SecondsiteError, OSError) as error:
        return Check(code="gateway.certificate", title=title, ok=False, why=str(error), fix=_ENROL)
    if until - clock.utc() < CERTIFICATE_LEFT:
        why = f"it ends at {until:%Y-%m-%d %H:%M} UTC and was not renewed"
        return Check(code="gateway.certificate", title=title, ok=False, why=why, fix=_ENROL)
    return Check(code="gateway.certificate", title=title, ok=True)


_ENROL = "See why it is not renewed (`secondsite events`), or enrol again (`secondsite vault key --again`)."


def _store(config: GatewayConfig, store: ObjectStore) -> Iterator[Check]:
    title = f"the store takes and gives back objects ({store.url})"
    try:
        # a key of its own process: two checks at once do not meet
        key = f"{PROBE_KEY}-{os.getpid()}-{os.urandom(4).hex()}"
        store.put(key, b"secondsite")
        read = store.get(key, size_bytes_max=100)
        if not config.store_lock_days:  # a locked one stays, and is ten bytes
            store.delete(key)
    except SecondsiteError as error:
        happened, cause, action = error.sentences()
        yield Check(
            code="store.write",
            title=title,
            ok=False,
            why=f"{happened} {cause}",
            fix=action,
            ask="the right to put, read and delete objects there, of the store's owner",
        )
    else:
        same = read == b"secondsite"
        why, fix = (
            ("", "") if same else ("it gave back other bytes", "Do not use it: `secondsite store check`.")
        )
        yield Check(code="store.write", title=title, ok=same, why=why, fix=fix)
    local = local_directory(store.url)
    if local is not None:
        yield _directory("store.directory", "the store's directory", local)
    if config.base_dir is not None:
        yield _directory("store.bases", "the directory of base images", config.base_dir)
