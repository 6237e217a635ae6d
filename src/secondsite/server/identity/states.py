"""A gateway's registration as a table: state x event -> state. An event a state does not list is illegal."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from secondsite.server.identity.errors import GatewayTransition


class GatewayState(enum.Enum):
    """Whether a gateway may work for this server."""

    REGISTERED = "Registered"
    REVOKED = "Revoked"  # its certificates are not trusted; it may enrol again
    UNREGISTERED = "Unregistered"  # it left its vault; what is known of it stays until it is removed


class GatewayEvent(enum.Enum):
    """What can happen to one; the value completes "cannot be ..."."""

    ENROLLED = "enrolled again"
    REVOKED = "revoked"
    UNREGISTERED = "unregistered"
    REMOVED = "removed"


_S, _E = GatewayState, GatewayEvent
# None: it is gone afterwards.
TABLE: Mapping[GatewayState, Mapping[GatewayEvent, GatewayState | None]] = {
    _S.REGISTERED: {
        _E.ENROLLED: _S.REGISTERED,
        _E.REVOKED: _S.REVOKED,
        _E.UNREGISTERED: _S.UNREGISTERED,
    },
    _S.REVOKED: {
        _E.ENROLLED: _S.REGISTERED,
        _E.REVOKED: _S.REVOKED,
        _E.UNREGISTERED: _S.UNREGISTERED,
        _E.REMOVED: None,
    },
    _S.UNREGISTERED: {
        _E.ENROLLED: _S.REGISTERED,
        _E.UNREGISTERED: _S.UNREGISTERED,
        _E.REMOVED: None,
    },
}


def after(name: str, state: GatewayState, event: GatewayEvent) -> GatewayState | None:
    """The state an event leads to. Raises GatewayTransition, naming what is possible."""
    row = TABLE[state]
    if event not in row:
        possible = ", ".join(sorted(known.value for known in row))
        raise GatewayTransition(name=name, event=event.value, state=state.value, possible=possible)
    return row[event]
