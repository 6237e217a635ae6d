"""Routes of the audit log: read, check, export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from secondsite.server.api.access import TheServices, requires
from secondsite.server.api.bodies import AuditVerified, AuditView
from secondsite.server.api.errors import InputRefused
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.people.audit import Audit
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

AuditReader = Annotated[Caller, requires(Operation.AUDIT_READ)]
Filter = Annotated[str | None, Query(max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")]


@router.get("")
def list_audit(
    page: AskedPage,
    caller: AuditReader,  # noqa: ARG001
    services: TheServices,
    actor: Filter = None,
    operation: Filter = None,
) -> Page[AuditView]:
    """What was done, oldest first."""
    found = services.audit.page(
        after=page.after_number() or 0, limit=page.limit, actor=actor, operation=operation
    )
    link = page.link(found[-1].number) if len(found) == page.limit else None
    return Page(value=[AuditView.of(entry) for entry in found], next_link=link)


@router.get("/verification")
def verify_audit(
    caller: AuditReader,  # noqa: ARG001
    services: TheServices,
    anchor: Annotated[
        str | None,
        Query(pattern=r"^[0-9]{1,18}:[0-9a-f]{64}$", description="NUMBER:DIGEST known from elsewhere."),
    ] = None,
) -> AuditVerified:
    """Check every row; the error names the first that does not hold."""
    known = None
    if anchor is not None:
        number, _, digest = anchor.partition(":")
        known = (int(number), digest)
        if known[0] == 0:
            raise InputRefused(where="anchor", why="numbers begin with 1")
    found = services.audit.verify(known)
    return AuditVerified(entries=found.entries, digest=found.digest)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "description": "Rows"}
    },
)
def export_audit(caller: AuditReader, services: TheServices) -> StreamingResponse:  # noqa: ARG001
    """All rows as JSON lines, oldest first; anybody can check their digests (docs/server.md)."""
    return StreamingResponse(_lines(services.audit), media_type="application/x-ndjson")


def _lines(audit: Audit) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for entry in audit.entries():
        yield encoder.encode(entry) + b"\n"
