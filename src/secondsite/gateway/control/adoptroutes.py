"""The control API's part about adopting existing copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.gateway.adopt.service import Adoptions
from secondsite.gateway.common.names import resolve
from secondsite.gateway.messages.adopterrors import ImageRefused
from secondsite.gateway.messages.adoption import ASKED_BY, SERVER, AdoptRequest
from secondsite.gateway.recovery.recover import Recovery
from secondsite.model.ids import MachineId, disk_id, machine_id

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class AdoptionRoutes:
    """Its handlers. The functions are `control`'s: how a body is read, and a call answered."""

    gateway: str
    adoptions: Adoptions | None
    missing: Callable[[str], SecondsiteError]
    recovery: Callable[[], Recovery]
    read: Callable[[Request], Awaitable[AdoptRequest]]
    answer: Callable[[Callable[[], object], int], Awaitable[Response]]
    pools: Callable[[], Sequence[Path]]  # where the storage pools of this site lie

    def table(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler."""
        return [
            ("GET", "/v1/adoptions", self.list),
            ("GET", "/v1/adoptions/{machine}", self.show),
            ("POST", "/v1/adoptions/{machine}", self.begin),
            ("DELETE", "/v1/adoptions/{machine}", self.cancel),
        ]

    async def list(self, _request: Request) -> Response:
        """All of them."""
        return await self.answer(lambda: self._service().all(), 200)

    async def show(self, request: Request) -> Response:
        """A machine's."""
        return await self.answer(lambda: self._service().show(self._machine(request)[0]), 200)

    async def begin(self, request: Request) -> Response:
        """Begin; ask with GET how far it is."""
        body = await self.read(request)

        def run() -> object:
            adoptions = self._service()
            if not body.images:
                raise InvalidInput(what="the adoption", why="it names no image")
            for disk in body.images:
                disk_id(disk)
            if request.headers.get(ASKED_BY) == SERVER:
                self._require_in_pools(body)
            return adoptions.begin(*self._machine(request), body)

        return await self.answer(run, 202)

    async def cancel(self, request: Request) -> Response:
        """Give it up."""
        return await self.answer(lambda: self._service().cancel(self._machine(request)[0]), 200)

    def _require_in_pools(self, body: AdoptRequest) -> None:
        """A server names what is to be read of this machine: images of its pools, and no other file."""
        pools = [pool.resolve() for pool in self.pools()]
        for image in body.images.values():
            path = Path(image.path).resolve()
            if not any(path.is_relative_to(pool) for pool in pools):
                why = "a server may name images in this site's storage pools only"
                raise ImageRefused(path=image.path, why=why)

    def _service(self) -> Adoptions:
        if self.adoptions is None:
            raise self.missing("replica store with a listener")
        return self.adoptions

    def _machine(self, request: Request) -> tuple[MachineId, str]:
        """Id and name: of a machine the store or an adoption knows, or an id nobody was told of yet."""
        text = request.path_params["machine"]
        known = {
            **{found.machine: found.name for found in self._service().all()},
            **dict(self.recovery().machines()),
        }
        try:
            machine = machine_id(text)
        except InvalidInput:
            machine = resolve(text, known.items(), kind="machine", where=f"gateway {self.gateway}")
        return machine, known.get(machine, machine)
