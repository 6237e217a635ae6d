"""How a route says who may use it, and how it learns who does.

    @router.get("/vaults/{vault}")
    def show(vault: VaultPath, caller: Annotated[Caller, requires(Operation.VAULT_READ)]) -> VaultView: ...

Without a `vault` in its path the operation is one on the server itself. `requires_somewhere` lets through who
may do it on any vault: the route then shows `caller.vaults(operation)` only. `requires_on_job` asks for the
role on the vault of the job in the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cryptography import x509
from fastapi import Depends, Request

from secondsite.server.api.errors import CertificateRequired, Forbidden, Unauthenticated
from secondsite.server.api.listener import CERTIFICATE_KEY
from secondsite.server.api.services import Services
from secondsite.server.jobs import records
from secondsite.server.jobs.errors import JobNotFound
from secondsite.server.people.roles import EVERYWHERE, TABLE, Actor, Caller, Operation


def services_of(request: Request) -> Services:
    """What the routes are a face of."""
    found: Services = request.app.state.services
    return found


# What only looks things up is async: FastAPI sends every plain function through a worker thread.
async def _services(request: Request) -> Services:
    return services_of(request)


TheServices = Annotated[Services, Depends(_services)]


def caller_of(request: Request) -> Caller:
    """Who makes the request. Raises Unauthenticated."""
    caller = request.scope["state"].get("caller")
    if not isinstance(caller, Caller):
        raise Unauthenticated(why="it has no token")
    return caller


def request_id_of(request: Request) -> str:
    """The id of the request, also in the answer's x-request-id."""
    return str(request.scope["state"].get("request_id", ""))


def address_of(request: Request) -> str:
    """Where the request came from."""
    return request.client.host if request.client else ""


def actor_of(request: Request, caller: Caller) -> Actor:
    """Who does it, for the audit log."""
    return Actor(caller.name, caller.via, address_of(request), request_id_of(request))


async def _actor(request: Request) -> Actor:
    return actor_of(request, caller_of(request))


TheActor = Annotated[Actor, Depends(_actor)]


def _vault_in(request: Request) -> str | None:
    named: str | None = request.path_params.get("vault")
    if named is None or named == EVERYWHERE:
        return None
    return vault_in(request, named)


def vault_in(request: Request, named: str) -> str:
    """The id of the vault that the path names: looked up once a request. Raises VaultUnknown."""
    state: dict[str, object] = request.scope["state"]
    known = state.get(_VAULT)
    if not isinstance(known, str):
        known = state[_VAULT] = services_of(request).vault_id(named)
    return str(known)


def refuse(caller: Caller, operation: Operation, vault: str | None) -> Forbidden:
    """What is raised where somebody may not. vault: its id; None: the server itself."""
    return Forbidden(
        who=caller.name,
        operation=operation.value,
        where="here" if vault is None else f"in the vault {vault}",
        roles=", ".join(sorted(role.value for role in TABLE[operation])),
    )


def requires(operation: Operation) -> Any:
    """A dependency that gives the caller when they may do `operation`, and refuses others."""

    def check(request: Request) -> Caller:
        caller = caller_of(request)
        vault = _vault_in(request)
        if not caller.may(operation, vault):
            raise refuse(caller, operation, vault)
        return caller

    return Depends(_marked(check, operation.value))


def requires_somewhere(operation: Operation) -> Any:
    """As `requires`, for who may do `operation` on at least one vault."""

    def check(request: Request) -> Caller:
        caller = caller_of(request)
        if caller.vaults(operation) == frozenset():
            raise refuse(caller, operation, None)
        return caller

    return Depends(_marked(check, operation.value))


def requires_on_job(operation: Operation) -> Any:
    """As `requires`, on the vault of the job that the path names; a job of no vault needs a role everywhere.

    Who may not see the job is told that there is none. Raises Forbidden or JobNotFound.
    """

    def check(request: Request) -> Caller:
        caller = caller_of(request)
        if caller.vaults(operation) == frozenset():
            raise refuse(caller, operation, None)
        named = str(request.path_params.get("job"))
        with services_of(request).database.read() as connection:
            vault = records.get(connection, named).vault
        if not caller.may(operation, vault):
            if not caller.may(Operation.JOB_READ, vault):
                raise JobNotFound(job=named)
            raise refuse(caller, operation, vault)
        return caller

    return Depends(_marked(check, operation.value))


def requires_login() -> Any:
    """A dependency that gives the caller, whoever it is: for what is their own."""

    async def check(request: Request) -> Caller:
        return caller_of(request)

    return Depends(_marked(check, SELF))


_VAULT = "vault_id"  # in a request's state
SELF = "self"
PUBLIC = "public"
CERTIFICATE = "certificate"
# What a route's dependencies say about who may use it: an operation's name, or one of the three words above.
_MARKS: dict[Callable[..., Any], str] = {}


def _marked(check: Callable[[Request], Any], mark: str) -> Callable[[Request], Any]:
    _MARKS[check] = mark
    return check


def mark_of(check: Callable[..., Any] | None) -> str | None:
    """What `requires` and its like said of a dependency."""
    return None if check is None else _MARKS.get(check)


async def _anybody(request: Request) -> None:
    """Nothing to check; the mark says that this was decided, not forgotten."""


def public() -> Any:
    """For a route's `dependencies`: anybody may use it."""
    return Depends(_marked(_anybody, PUBLIC))


def peer_certificate(request: Request) -> x509.Certificate:
    """The certificate the connection was made with, its chain and dates checked by TLS; not its revocation.

    Raises CertificateRequired.
    """
    der = request.scope["state"].get(CERTIFICATE_KEY)
    if not isinstance(der, bytes):
        raise CertificateRequired
    return x509.load_der_x509_certificate(der)


_marked(peer_certificate, CERTIFICATE)
PeerCertificate = Annotated[x509.Certificate, Depends(peer_certificate)]
