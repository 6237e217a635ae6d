"""Routes to prove a gateway's recovery key: the caller computes the proof, the key stays with them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.itembodies import ChallengeView, ProofBody
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.providers import ThePlace
from secondsite.server.api.uplink import calls_of
from secondsite.server.api.vaults import note
from secondsite.server.jobs.service import Jobs
from secondsite.server.operations.asking import read_answer
from secondsite.server.operations.keyproof import PROVE_KEY, KeyFile, ProveKey
from secondsite.server.people.roles import Caller, Operation

router = APIRouter(prefix="/api/v1", tags=["recovery keys"])

Prover = Annotated[Caller, requires(Operation.KEY_PROVE)]
_KEY = "/vaults/{vault}/recoveryServicesProviders/{provider}/recoveryKey"
ASK_SECONDS = 20.0


class _Question(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    key_id: str
    nonce: str


@router.post(_KEY + "/challenge")
def challenge_recovery_key(
    caller: Prover,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    services: TheServices,
) -> ChallengeView:
    """Ask a gateway for a question that only a holder of its recovery key can answer."""
    gateway = place.gateways.get(place.name)
    answer = calls_of(services).ask_now(gateway.id, "/v1/challenge", seconds_max=ASK_SECONDS)
    found = read_answer(gateway.name, answer, _Question)
    return ChallengeView(key_id=found.key_id, nonce=found.nonce)


@router.post(_KEY + "/proof", status_code=202, responses=ACCEPTED)
def prove_recovery_key(  # noqa: PLR0917 - called by name, by the framework
    caller: Prover,  # noqa: ARG001 - the check is what it is for
    place: ThePlace,
    body: ProofBody,
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Give a gateway the answer; from then on it may seal what it protects."""
    gateway = place.gateways.get(place.name)
    named = body.key_file
    file = KeyFile(path=named.path, device=named.device, inode=named.inode, host=named.host)
    given = ProveKey(
        vault=gateway.vault_id,
        gateway=gateway.id,
        gateway_name=gateway.name,
        nonce=body.nonce,
        proof=body.proof,
        key_file=file,
    )
    written = note(services, actor, Operation.KEY_PROVE, file=body.key_file.path)

    def start(jobs: Jobs, connection: Connection) -> str:
        identity = jobs.start(connection, PROVE_KEY, given, actor.name, vault=gateway.vault_id)
        written(connection, gateway.vault_id, gateway.name)
        return identity

    return accepted(services, response, start)
