"""Which gateways protect a machine and keep its replica: those named, else those its clouds suggest."""

from __future__ import annotations

from collections.abc import Sequence

from secondsite.model.items import FORGETTABLE
from secondsite.server.api.errors import NotReady
from secondsite.server.api.itembodies import NewItemBody
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import identity_of
from secondsite.server.identity.errors import GatewayUnknown
from secondsite.server.identity.gateways import Gateway
from secondsite.server.items.records import Item


def ends_of(services: Services, vault_id: str, body: NewItemBody) -> tuple[Gateway, Gateway]:
    """Source and target. Where the machine's cloud decides, it is the gateway closest to the machine's host,
    and one of the cloud it is paired with that was heard of lately.

    Raises GatewayUnknown, NoGateway, NotPaired.
    """
    source, target = body.provider, body.target_provider
    if source is None or target is None:
        if services.topology is None:
            raise NotReady(why="it knows no clouds")
        mappings = services.topology.mappings
        with services.database.read() as connection:
            choice = mappings.choose_gateway(connection, body.machine)
            source = source or choice.name
            if target is None:
                pair = mappings.require_pair(connection, choice)
                target = _first_here(services, [gateway.name for gateway in pair.target.gateways])
    return gateway_in(services, vault_id, source), gateway_in(services, vault_id, target)


def gateway_in(services: Services, vault_id: str, name: str) -> Gateway:
    """A gateway that is of the vault. Raises GatewayUnknown."""
    found = identity_of(services).gateways.get(name)
    if found.vault_id != vault_id:
        raise GatewayUnknown(name=name)
    return found


def is_here(services: Services, name: str) -> bool:
    """Whether a gateway was heard of lately; one that was removed was not."""
    try:
        contact = identity_of(services).gateways.get(name).contact
    except GatewayUnknown:
        return False
    return contact is not None and contact.connected(services.clock.utc())


def reachable_of(services: Services, items: Sequence[Item]) -> frozenset[str]:
    """The ids of those, among the ones of which it decides what may be asked, that a gateway can be asked of.

    Each gateway is looked up once: nearly always there is no such item, and nothing is asked.
    """
    standing = [item for item in items if item.state in FORGETTABLE]
    names = {name for item in standing for name in (item.source_name, item.target_name)}
    here = {name: is_here(services, name) for name in names}
    return frozenset(item.id for item in standing if here[item.source_name] or here[item.target_name])


def _first_here(services: Services, names: Sequence[str]) -> str:
    """The first that was heard of lately, else the first: the job's look says what is wrong with it."""
    if not names:
        raise GatewayUnknown(name="of the paired cloud")
    return next((name for name in names if is_here(services, name)), names[0])
