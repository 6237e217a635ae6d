"""Routes by which gateways fetch what is asked of them, and answer it."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from secondsite.server.api.access import TheServices
from secondsite.server.api.enrolment import TheGateway
from secondsite.server.api.errors import NotReady
from secondsite.server.api.services import Services
from secondsite.server.calls.service import Calls as CallBook
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.transfer.calls import PATH_ANSWERS, PATH_ASK, Answer, Ask, Calls

router = APIRouter(tags=["uplink"])

# What another server of the same database made rings no bell here, so it is looked for.
LOOK_SECONDS = 1.0
LOOK_ALONE_SECONDS = 10.0  # SQLite: there is no other server


def calls_of(services: Services) -> CallBook:
    """The server's calls. Raises NotReady."""
    if services.calls is None:
        raise NotReady(why="it asks nothing of gateways")
    return services.calls


@router.post(PATH_ASK)
async def ask(body: Ask, request: Request, who: TheGateway, services: TheServices) -> Calls:
    """What the gateway is to do next; waits for it as long as the gateway says."""
    book, clock = calls_of(services), services.clock
    look = LOOK_ALONE_SECONDS if services.database.is_sqlite else LOOK_SECONDS
    if services.inventory_reader is not None:
        services.inventory_reader.here(who.id)
    deadline, asked_at = clock.monotonic() + body.wait_seconds, services.database.now()
    with book.bells.listening_async(who.id) as rung:
        while True:
            rung.clear()
            found = await run_in_threadpool(partial(book.ready, who.id, body, asked_at=asked_at))
            wanted = await run_in_threadpool(_generation, services, who, body.generation)
            left, news = deadline - clock.monotonic(), wanted > body.generation
            if found or news or left <= 0 or book.bells.closed or await request.is_disconnected():
                return Calls(calls=tuple(found), generation=wanted)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rung.wait(), min(look, left))


def _generation(services: Services, who: GatewayIdentity, heard: int) -> int:
    """Of what is wanted of the gateway; -1 where it does not ask, or nothing is wanted of gateways here."""
    if heard < 0 or services.items is None:
        return -1
    return services.items.wanted.known(who.id)  # a peer that moved is told of with a heartbeat


@router.post(PATH_ANSWERS, status_code=204)
def answer(body: Answer, who: TheGateway, services: TheServices) -> None:
    """What came of a call; the first answer counts."""
    calls_of(services).answer(who.id, body)
