"""What ties a gateway to the server it belongs to, made from its configuration."""

from __future__ import annotations

import random
from collections.abc import Sequence

from secondsite.gateway.common.config import ServerSettings
from secondsite.gateway.common.enrolgate import Gate
from secondsite.gateway.common.eventfiles import EventFiles
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.parts.common import Parts
from secondsite.gateway.parts.target import Target
from secondsite.gateway.reverse.failingover import FailingOver
from secondsite.gateway.source.runtime import Protections
from secondsite.gateway.uplink.backups import ServerBackups
from secondsite.gateway.uplink.calls import Uplink, Wishes, over_socket
from secondsite.gateway.uplink.connection import EnrolledClients, ServerCalls
from secondsite.gateway.uplink.enrolkeeper import ServerKeeper, facts_of
from secondsite.gateway.uplink.eventlink import EventLink, ServerEvents
from secondsite.gateway.uplink.link import ServerLink
from secondsite.gateway.uplink.serverside import ServerSide, open_link, peer_rules
from secondsite.journal.store import ObjectStore
from secondsite.transfer.serverclaims import ServerClaim, newest_claims


class ServerParts:
    """Opened one after the other by `main.Gateway`, the keeper first; stopped by the parts' `stop`."""

    def __init__(self, parts: Parts, settings: ServerSettings, event_files: EventFiles) -> None:
        self._parts = parts
        self._settings = settings
        self._event_files = event_files
        self._clients = EnrolledClients(settings.directory)
        self.link: ServerLink | None = None
        self._store: ObjectStore | None = None

    def keep(self, protections: Protections | None) -> Gate:
        """Stay in touch."""
        parts, listen = self._parts, self._parts.config.listen
        keeper = ServerKeeper(
            self._settings.directory,
            clock=parts.clock,
            events=parts.events,
            chance=random.Random(),  # noqa: S311 - spreads renewals, guards nothing
            facts=lambda: facts_of(protections.statuses() if protections else ()),
            url=listen.advertise if listen is not None else None,
            on_generation=self._heard,
            claims=self._claims,
        )
        keeper.start()
        parts.stop.callback(keeper.close)
        return keeper.check_may_work

    def backups(self, store: ObjectStore) -> ServerBackups:
        """Keep the server's; and obey the claim of a standby that took over."""
        self._store = store
        return ServerBackups(store, self._clients.open, self._parts.events)

    def _claims(self) -> Sequence[ServerClaim]:
        return newest_claims(self._store) if self._store is not None else ()

    def answer(self) -> None:
        """Do what the server asks for, on the control API, which answers from now on; bring it the events."""
        parts, clients = self._parts, self._clients
        uplink = Uplink(
            ServerCalls(clients.open, clients.serial),
            over_socket(parts.config.control_socket),
            Fences(parts.config.state_dir / "fences.json"),
            parts.clock,
            Wishes(lambda: self.link.known() if self.link else -1, self._heard),
        )
        uplink.start()
        parts.stop.callback(uplink.close)
        port = ServerEvents(clients.open, clients.serial)
        link = EventLink(port, parts.events, self._event_files, parts.clock)
        link.start()
        parts.stop.callback(link.close)

    def follow(
        self,
        protections: Protections | None,
        target: Target | None,
        guard: RecoveryKeyGuard,
        *,
        gate: Gate,
        failing_over: FailingOver,
    ) -> None:
        """Follow what the server wants, and report."""
        parts = self._parts
        received = target.received if target is not None else None
        side = ServerSide(
            parts.config.name,
            parts.desired,
            protections,
            target.recovery if target is not None else None,
            guard,
            gate,
            target.deletions if target is not None else None,
            rules=peer_rules(parts.config),
            set_rules=received.receiver.set_peers if received is not None else None,
            events=parts.events,
            failing_over=failing_over,
        )
        self.link = open_link(side, self._settings, parts.clock)
        if target is not None:
            target.deletions.on_deleted = self.link.hurry
            target.recovery.on_test = self.link.hurry
        self.link.start()
        parts.stop.callback(self.link.close)

    def _heard(self, generation: int) -> None:
        if self.link is not None:
            self.link.heard(generation)
