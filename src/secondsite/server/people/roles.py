"""Who may do what: one table, roles by operations. Pure; every route names its operation, a test tries all.

A role is held on one vault, or everywhere. What belongs to no vault (users, the server itself) needs a role
held everywhere.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

EVERYWHERE = "*"


class Role(enum.StrEnum):
    """What a person is, on a vault or everywhere."""

    OWNER = "owner"  # everything, people included
    CONTRIBUTOR = "contributor"  # sets up and changes what is protected and how
    OPERATOR = "operator"  # runs tests, failovers and jobs; changes no set-up
    APPROVER = "approver"  # lets go on what waits for a second person; runs nothing
    READER = "reader"  # sees


class Operation(enum.StrEnum):
    """What a route does. Named after the resource and what happens to it."""

    SERVER_READ = "server.read"
    SERVER_BACKUP = "server.backup"
    SERVER_HAND_OVER = "server.hand-over"
    AUTHORITY_ROTATE = "authority.rotate"
    USER_READ = "user.read"
    USER_WRITE = "user.write"
    ROLE_WRITE = "role.write"
    TOKEN_WRITE = "token.write"  # noqa: S105 - the name of an operation
    LOGIN_READ = "login.read"
    LOGIN_WRITE = "login.write"
    AUDIT_READ = "audit.read"
    VAULT_READ = "vault.read"
    VAULT_CREATE = "vault.create"
    VAULT_WRITE = "vault.write"
    VAULT_DELETE = "vault.delete"
    KEY_WRITE = "registration-key.write"
    PROVIDER_READ = "provider.read"
    PROVIDER_WRITE = "provider.write"
    PROVIDER_REVOKE = "provider.revoke"
    POLICY_READ = "policy.read"
    POLICY_WRITE = "policy.write"
    INVENTORY_REFRESH = "inventory.refresh"
    CLOUD_READ = "cloud.read"
    CLOUD_WRITE = "cloud.write"
    PAIR_WRITE = "pair.write"
    MAPPING_WRITE = "mapping.write"
    POINT_TAKE = "point.take"
    ITEM_READ = "item.read"
    ITEM_WRITE = "item.write"
    ITEM_OPERATE = "item.operate"
    ITEM_TEST = "item.test"
    ITEM_FAILOVER = "item.failover"
    ITEM_DISABLE = "item.disable"
    KEY_PROVE = "recovery-key.prove"
    EVENT_READ = "event.read"
    ALERT_READ = "alert.read"
    ALERT_WRITE = "alert.write"
    JOB_READ = "job.read"
    JOB_OPERATE = "job.operate"
    JOB_ANSWER = "job.answer"
    APPROVAL_GIVE = "approval.give"
    APPROVAL_WRITE = "approval.write"


_O, _C, _P, _A, _R = Role.OWNER, Role.CONTRIBUTOR, Role.OPERATOR, Role.APPROVER, Role.READER

TABLE: dict[Operation, frozenset[Role]] = {
    Operation.SERVER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.SERVER_BACKUP: frozenset({_O, _C, _P}),
    Operation.SERVER_HAND_OVER: frozenset({_O}),
    Operation.AUTHORITY_ROTATE: frozenset({_O}),
    Operation.USER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.USER_WRITE: frozenset({_O}),
    Operation.ROLE_WRITE: frozenset({_O}),
    Operation.TOKEN_WRITE: frozenset({_O}),
    Operation.LOGIN_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.LOGIN_WRITE: frozenset({_O}),
    Operation.AUDIT_READ: frozenset({_O, _A, _R}),
    Operation.VAULT_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.VAULT_CREATE: frozenset({_O, _C}),
    Operation.VAULT_WRITE: frozenset({_O, _C}),
    Operation.VAULT_DELETE: frozenset({_O}),
    Operation.KEY_WRITE: frozenset({_O, _C}),
    Operation.PROVIDER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.PROVIDER_WRITE: frozenset({_O, _C}),
    Operation.PROVIDER_REVOKE: frozenset({_O, _C}),
    Operation.POLICY_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.POLICY_WRITE: frozenset({_O, _C}),
    Operation.INVENTORY_REFRESH: frozenset({_O, _C, _P}),
    Operation.CLOUD_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.CLOUD_WRITE: frozenset({_O, _C}),
    Operation.PAIR_WRITE: frozenset({_O, _C}),
    Operation.MAPPING_WRITE: frozenset({_O, _C}),
    Operation.POINT_TAKE: frozenset({_O, _C, _P}),
    Operation.ITEM_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.ITEM_WRITE: frozenset({_O, _C}),
    Operation.ITEM_OPERATE: frozenset({_O, _C, _P}),
    Operation.ITEM_TEST: frozenset({_O, _C, _P}),
    Operation.ITEM_FAILOVER: frozenset({_O, _C, _P}),
    Operation.ITEM_DISABLE: frozenset({_O, _C}),
    Operation.KEY_PROVE: frozenset({_O, _C, _P}),
    Operation.EVENT_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.ALERT_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.ALERT_WRITE: frozenset({_O, _C}),
    Operation.JOB_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.JOB_OPERATE: frozenset({_O, _C, _P}),
    Operation.JOB_ANSWER: frozenset({_O, _C, _P}),
    Operation.APPROVAL_GIVE: frozenset({_O, _A}),
    Operation.APPROVAL_WRITE: frozenset({_O}),
}


@dataclass(frozen=True, order=True)
class Grant:
    """A role held on a vault (its id), or EVERYWHERE."""

    vault: str
    role: Role


@dataclass(frozen=True)
class Caller:
    """Somebody who proved who they are, and what that allows.

    A token may be limited to one vault, to one role, or both: it allows what its user may do *and* its limits
    let through.
    """

    id: str
    name: str
    via: str  # what proved it: "token:<id>", "session:<id>"
    grants: frozenset[Grant]
    vault_limit: str | None = None
    role_limit: Role | None = None

    def may(self, operation: Operation, vault: str | None) -> bool:
        """Whether they may, on the vault with this id; None: on the server itself."""
        if self.vault_limit is not None and vault != self.vault_limit:
            return False
        roles = TABLE[operation]
        if self.role_limit is not None and self.role_limit not in roles:
            return False
        return any(grant.role in roles for grant in self.grants if grant.vault in (EVERYWHERE, vault))

    def vaults(self, operation: Operation) -> frozenset[str] | None:
        """The ids of the vaults they may do it on; None: on all."""
        if self.may(operation, None):
            return None
        named = {grant.vault for grant in self.grants if grant.vault != EVERYWHERE}
        if self.vault_limit is not None:
            named.add(self.vault_limit)
        return frozenset(vault for vault in named if self.may(operation, vault))


@dataclass(frozen=True)
class Actor:
    """Who does something, as the audit log names them."""

    name: str
    via: str  # "token:<id>", "session:<id>", "certificate:<serial>", "server"
    address: str = ""
    request_id: str = ""


THE_SERVER = Actor("server", "server")
