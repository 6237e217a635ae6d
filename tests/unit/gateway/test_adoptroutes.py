"""Who may name which images for an adoption: a person at the machine any, a server those of its pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from secondsite.base.errors import SecondsiteError
from secondsite.gateway.control.adoptroutes import AdoptionRoutes
from secondsite.gateway.messages.adoption import ASKED_BY, SERVER, AdoptImage, AdoptRequest
from secondsite.model.ids import DiskId

MACHINE = "00000000-0000-4000-8000-000000000001"


class _Adoptions:
    """Notes what it was to begin with."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def all(self) -> list[Any]:
        return []

    def begin(self, machine: str, name: str, request: AdoptRequest) -> dict[str, str]:
        self.begun += [image.path for image in request.images.values()]
        return {"machine": machine, "name": name}


class _NoReplicas:
    def machines(self) -> list[tuple[str, str]]:
        return []


def _client(adoptions: _Adoptions, pool: Path, path: Path) -> TestClient:
    async def read(_request: Request) -> AdoptRequest:
        return AdoptRequest(images={DiskId("vda"): AdoptImage(path=str(path), format="raw")})

    async def answer(function: Any, status: int) -> Response:
        try:
            return JSONResponse(function(), status)
        except SecondsiteError as error:
            return JSONResponse(error.as_dict(), 409)

    routes = AdoptionRoutes(
        "b",
        adoptions,  # type: ignore[arg-type]
        lambda role: SecondsiteError(role=role),
        _NoReplicas,  # type: ignore[arg-type]
        read,
        answer,
        lambda: [pool],
    )
    table = [Route(path, handler, methods=[method]) for method, path, handler in routes.table()]
    return TestClient(Starlette(routes=table))


@pytest.mark.parametrize(
    ("named", "allowed"),
    [
        ("pool/vda.raw", True),
        ("pool/deep/vda.raw", True),
        ("elsewhere/vda.raw", False),
        ("pool/../elsewhere/vda.raw", False),
        ("pool/link.raw", False),  # a link that leads out
        ("pool2/vda.raw", False),  # begins with the pool's name
    ],
)
def test_a_server_names_images_of_pools_and_a_person_any(
    tmp_path: Path, *, named: str, allowed: bool
) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "link.raw").symlink_to(tmp_path / "elsewhere" / "vda.raw")
    adoptions = _Adoptions()
    client = _client(adoptions, tmp_path / "pool", tmp_path / named)
    answer = client.post(f"/v1/adoptions/{MACHINE}", headers={ASKED_BY: SERVER})
    assert answer.status_code == (202 if allowed else 409), answer.text
    assert bool(adoptions.begun) is allowed
    if not allowed:
        assert answer.json()["code"] == "adopt.image-refused"
    assert client.post(f"/v1/adoptions/{MACHINE}").status_code == 202
