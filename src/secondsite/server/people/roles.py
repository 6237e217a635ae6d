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
    USER_READ = "user.read"
    USER_WRITE = "user.write"
    ROLE_WRITE = "role.write"
    TOKEN_WRITE = "token.write"  # noqa: S105 - the name of an operation
    AUDIT_READ = "audit.read"
    VAULT_READ = "vault.read"
    VAULT_CREATE = "vault.create"
    VAULT_WRITE = "vault.write"
    VAULT_DELETE = "vault.delete"
    KEY_WRITE = "registration-key.write"
    PROVIDER_READ = "provider.read"
    PROVIDER_WRITE = "provider.write"
    PROVIDER_REVOKE = "provider.revoke"
    INVENTORY_REFRESH = "inventory.refresh"
    POINT_TAKE = "point.take"
    JOB_READ = "job.read"
    JOB_OPERATE = "job.operate"
    JOB_ANSWER = "job.answer"


_O, _C, _P, _A, _R = Role.OWNER, Role.CONTRIBUTOR, Role.OPERATOR, Role.APPROVER, Role.READER

TABLE: dict[Operation, frozenset[Role]] = {
    Operation.SERVER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.USER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.USER_WRITE: frozenset({_O}),
    Operation.ROLE_WRITE: frozenset({_O}),
    Operation.TOKEN_WRITE: frozenset({_O}),
    Operation.AUDIT_READ: frozenset({_O, _A, _R}),
    Operation.VAULT_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.VAULT_CREATE: frozenset({_O, _C}),
    Operation.VAULT_WRITE: frozenset({_O, _C}),
    Operation.VAULT_DELETE: frozenset({_O}),
    Operation.KEY_WRITE: frozenset({_O, _C}),
    Operation.PROVIDER_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.PROVIDER_WRITE: frozenset({_O, _C}),
    Operation.PROVIDER_REVOKE: frozenset({_O, _C}),
    Operation.INVENTORY_REFRESH: frozenset({_O, _C, _P}),
    Operation.POINT_TAKE: frozenset({_O, _C, _P}),
    Operation.JOB_READ: frozenset({_O, _C, _P, _A, _R}),
    Operation.JOB_OPERATE: frozenset({_O, _C, _P}),
    Operation.JOB_ANSWER: frozenset({_O, _C, _P, _A}),
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
