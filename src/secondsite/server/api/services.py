"""What the API is a face of: one object a server, put together by its main, reached by every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from secondsite.base.clock import Clock
from secondsite.server.api.metrics import Metrics
from secondsite.server.calls.service import Calls
from secondsite.server.database.engine import Database
from secondsite.server.events.service import Events
from secondsite.server.identity.service import Identity
from secondsite.server.inventory.reader import InventoryReader
from secondsite.server.inventory.service import Inventories
from secondsite.server.items.together import ItemParts
from secondsite.server.jobs.service import Jobs
from secondsite.server.mappings.topology import Topology
from secondsite.server.people.approvals import Approvals
from secondsite.server.people.audit import Audit
from secondsite.server.people.login import Logins
from secondsite.server.people.oidc_login import OidcLogins
from secondsite.server.people.oidc_settings import OidcSettings
from secondsite.server.people.sessions import Sessions
from secondsite.server.people.tokens import Tokens
from secondsite.server.people.users import Users
from secondsite.server.policies.service import Policies
from secondsite.server.survival.service import Survival
from secondsite.server.telling import Telling


def _nothing() -> None:
    """No worker."""


def _as_given(text: str) -> str:
    return text


@dataclass
class Services:
    """The parts of a server. `checks` raise a SecondsiteError while the server cannot work."""

    clock: Clock
    database: Database
    metrics: Metrics
    audit: Audit
    users: Users
    tokens: Tokens
    logins: Logins
    sessions: Sessions
    events: Events
    telling: Telling | None = None
    identity: Identity | None = None  # None: a server without enrolment (tests)
    calls: Calls | None = None
    inventories: Inventories | None = None
    inventory_reader: InventoryReader | None = None
    topology: Topology | None = None
    survival: Survival | None = None
    checks: list[Callable[[], None]] = field(default_factory=list)
    policies: Policies | None = None
    items: ItemParts | None = None
    jobs: Jobs | None = None
    approvals: Approvals | None = None
    oidc_settings: OidcSettings | None = None
    oidc: OidcLogins | None = None
    nudge_jobs: Callable[[], None] = _nothing  # a job may be due: this server's worker looks at once
    # a vault's id by its id or name, whatever a path names it by; roles are held on ids
    vault_id: Callable[[str], str] = _as_given
