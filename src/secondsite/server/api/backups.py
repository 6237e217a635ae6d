"""Routes of the server's own backups: those taken, taking one now, and the parts that gateways fetch."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.enrolment import TheGateway
from secondsite.server.api.errors import NotReady
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import View
from secondsite.server.api.services import Services
from secondsite.server.api.vaults import note
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.backup import BackupServer
from secondsite.server.people.roles import Caller, Operation
from secondsite.server.survival.backups import BACKUP_JOB, Backup, Backups
from secondsite.server.survival.rotation import Rotation
from secondsite.transfer.backups import PATH_PARTS

router = APIRouter(tags=["server"])

Reader = Annotated[Caller, requires(Operation.SERVER_READ)]
Saver = Annotated[Caller, requires(Operation.SERVER_BACKUP)]
Rotator = Annotated[Caller, requires(Operation.AUTHORITY_ROTATE)]
BackupPath = Annotated[str, Path(alias="backup", pattern=r"^[0-9a-f]{32}$", description="A backup's id.")]
Number = Annotated[int, Path(ge=0, le=1 << 20, description="Which part, from 0.")]
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The part's bytes"}
}


class PlaceView(View):
    """Where a backup went, or why it did not."""

    gateway: str
    store: str
    problem: str


class BackupView(View):
    """A backup of the server."""

    id: str
    name: str
    job: str
    made_at: datetime
    incarnation: int
    size: int
    sha256: str
    kept_at: datetime | None
    places: list[PlaceView]

    @classmethod
    def of(cls, backup: Backup) -> BackupView:
        """As it goes out."""
        return cls.model_validate(backup)


def backups_of(services: Services) -> Backups:
    """The server's backups. Raises NotReady."""
    if services.survival is None:
        raise NotReady(why="it takes no backups")
    return services.survival.backups


@router.get("/api/v1/server/backups")
def list_backups(
    asked: AskedPage,
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[BackupView]:
    """The newest first; where each is kept."""
    found = backups_of(services).newest(asked.limit + 1, before=asked.after_text())
    shown = found[: asked.limit]
    link = asked.link(shown[-1].made_at) if len(found) > len(shown) else None
    return Page(value=[BackupView.of(one) for one in shown], next_link=link)


@router.post("/api/v1/server/backups", status_code=202, responses=ACCEPTED)
def take_backup(
    caller: Saver,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Back the server up now, to every gateway with a store and the place its configuration names."""
    written = note(services, actor, Operation.SERVER_BACKUP)

    def start(jobs: Jobs, connection: Connection) -> str:
        identity = jobs.start(connection, BACKUP_JOB, BackupServer(), actor.name)
        written(connection, "", "server")
        return identity

    return accepted(services, response, start)


class AuthorityView(View):
    """An authority of the server."""

    id: str
    phase: Literal["Next", "Current", "Retiring", "Retired"]
    since: datetime
    fingerprint: str = Field(description="SHA-256 of its certificate, hexadecimal.")
    valid_until: datetime
    waits_for: list[str] = Field(description="Gateways that have not followed to where it goes on.")


def _rotation(services: Services) -> Rotation:
    if services.survival is None:
        raise NotReady(why="it has no authority of its own")
    return services.survival.rotation


@router.get("/api/v1/server/authorities")
def list_authorities(
    asked: AskedPage,  # noqa: ARG001 - a server has a few, ever: one page
    caller: Reader,  # noqa: ARG001 - the check is what it is for
    services: TheServices,
) -> Page[AuthorityView]:
    """The server's authorities, oldest first, and for whom a rotation waits."""
    found = _rotation(services).status()
    return Page(value=[AuthorityView.model_validate(one) for one in found], next_link=None)


@router.post("/api/v1/server/authorities", status_code=202)
def rotate_authority(
    caller: Rotator,  # noqa: ARG001 - the check is what it is for
    actor: TheActor,
    services: TheServices,
) -> Page[AuthorityView]:
    """Put another authority in the place of the one in use, step by step, as gateways follow."""
    rotation = _rotation(services)
    written = note(services, actor, Operation.AUTHORITY_ROTATE)

    def begin(connection: Connection) -> None:
        rotation.begin(connection)
        written(connection, "", "server")

    services.database.run(begin)
    if services.identity is not None:
        services.identity.authority.look()
    return Page(value=[AuthorityView.model_validate(one) for one in rotation.status()], next_link=None)


@router.get(PATH_PARTS + "/{backup}/parts/{number}", response_class=Response, responses=_BYTES)
def backup_part(
    backup: BackupPath,
    number: Number,
    who: TheGateway,  # noqa: ARG001 - only a gateway may
    services: TheServices,
) -> Response:
    """Some bytes of a backup that a gateway was asked to keep; sealed with a key no gateway has."""
    data = backups_of(services).part(backup, number)
    return Response(data, media_type="application/octet-stream")
