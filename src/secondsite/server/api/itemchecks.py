"""What the server itself knows before a failover: whether both gateways are in touch, and their versions."""

from __future__ import annotations

from collections.abc import Iterator

from secondsite.server.api.itemends import is_here
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.items.records import Item
from secondsite.server.operations.failoverparts import Check


def look_around(services: Services, item: Item, *, move: bool) -> tuple[Check, ...]:
    """Beside what the target looks at. move: in order, which needs the source's gateway."""
    return (_source(services, item, move=move), *_versions(services, item))


def _source(services: Services, item: Item, *, move: bool) -> Check:
    name = item.source_name
    if is_here(services, name):
        return Check(name="source", passed=True, required=move)
    if move:
        cause = f"gateway {name}, which would stop it in order, is not connected"
        action = "Bring it back; where its site is lost, fail over without it (unplannedFailover)."
    else:
        cause = f"gateway {name} is not connected: whether {item.name} still runs there cannot be known"
        action = "Look there by other means, if there are any; see what cannot be excluded."
    return Check(name="source", passed=False, required=move, cause=cause, action=action)


def _versions(services: Services, item: Item) -> Iterator[Check]:
    identity, wrong = identity_of(services), []
    for name in (item.source_name, item.target_name):
        try:
            version = identity.gateways.get(name).version
        except GatewayUnknown:
            continue  # one that was removed: `source`, or the question to the target, says so
        if version and not identity.enrolment.version_fit(version).works:
            wrong.append(f"gateway {name} has version {version}")
    cause = f"{', '.join(wrong)}: this server does not work with that" if wrong else ""
    action = "Update it, or go on at the target's own gateway (`secondsite failover`)." if wrong else ""
    yield Check(name="versions", passed=not wrong, required=False, cause=cause, action=action)
