"""Routes that gateways use themselves: to enrol, to renew, to be heard of, to fetch the revocation list."""

from __future__ import annotations

import logging
from typing import Annotated

from cryptography.hazmat.primitives import serialization
from fastapi import APIRouter, Depends, Request

from secondsite.base.errors import SecondsiteError
from secondsite.server.api.access import (
    PeerCertificate,
    TheServices,
    address_of,
    public,
    request_id_of,
)
from secondsite.server.api.errors import CertificateRequired
from secondsite.server.api.vaults import identity_of, note
from secondsite.server.identity.gateways import GatewayIdentity
from secondsite.server.people.roles import Actor, Operation
from secondsite.transfer import enrolment as wire
from secondsite.transfer.incarnation import INCARNATION_HEADER, parse_incarnation

log = logging.getLogger(__name__)

router = APIRouter(tags=["enrolment"])


def gateway_of(certificate: PeerCertificate, services: TheServices, request: Request) -> GatewayIdentity:
    """The registered gateway that makes the request; its certificate is not revoked at this moment.

    Raises CertificateRequired, GatewayRevoked, GatewayUnregistered, GatewayRemoved or ServerSuperseded.
    """
    if services.survival is not None:
        services.survival.life.heard(parse_incarnation(request.headers.get(INCARNATION_HEADER)))
    who = identity_of(services).identify(certificate.public_bytes(serialization.Encoding.DER))
    if who is None:
        raise CertificateRequired
    return who


TheGateway = Annotated[GatewayIdentity, Depends(gateway_of)]


@router.get(wire.PATH_AUTHORITY, dependencies=[public()])
def authority(services: TheServices) -> wire.AuthorityAnswer:
    """The authority's certificate and the server's time. Compare its fingerprint with a key's."""
    return identity_of(services).enrolment.authority()


@router.post(wire.PATH_CHALLENGES, dependencies=[public()])
def challenge(body: wire.Hello, services: TheServices) -> wire.Challenge:
    """A nonce to prove a registration key with, good once, for five minutes."""
    return identity_of(services).enrolment.challenge(body)


@router.post(wire.PATH_CERTIFICATES, status_code=201, dependencies=[public()])
def enrol(body: wire.Enrol, request: Request, services: TheServices) -> wire.Enrolled:
    """A certificate for a new gateway that proves a registration key."""
    actor = Actor(
        f"gateway:{body.name}", f"registration-key:{body.key_id}", address_of(request), request_id_of(request)
    )
    written = note(services, actor, Operation.PROVIDER_WRITE, enrolled=True, version=body.version)
    try:
        return identity_of(services).enrolment.enrol(body, note=written)
    except SecondsiteError as error:
        log.warning("enrolment of %s refused: %s", body.name[:64], error.code)
        raise


@router.post(wire.PATH_RENEW, status_code=201)
def renew(body: wire.Renew, who: TheGateway, services: TheServices) -> wire.Enrolled:
    """The next certificate of a registered gateway."""
    return identity_of(services).enrolment.renew(who, body)


@router.post(wire.PATH_HEARTBEATS)
def heartbeat(
    body: wire.Heartbeat,
    request: Request,
    who: TheGateway,
    certificate: PeerCertificate,
    services: TheServices,
) -> wire.HeartbeatAnswer:
    """A gateway lives; the answer says what is wanted of it."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    answer = identity_of(services).heartbeat(who, body, address=address_of(request), certificate_der=der)
    if services.survival is not None:
        answer = answer.model_copy(update={"servers": tuple(services.survival.standbys.addresses())})
    if services.items is None:
        return answer
    generation = services.items.wanted.generation(who.id, who.vault_id)
    return answer.model_copy(update={"generation": generation})


@router.post(wire.PATH_REVOCATIONS)
def take_revocations(
    body: wire.KnownRevocations,
    who: TheGateway,  # noqa: ARG001 - only a gateway may
    services: TheServices,
) -> wire.RevocationsAnswer:
    """What a gateway knows to be revoked, for a server restored from a backup; the newest list of both."""
    return identity_of(services).take_revocations(body)


@router.get(wire.PATH_TRUST)
def trust(who: TheGateway, services: TheServices) -> wire.TrustAnswer:  # noqa: ARG001
    """The authorities a gateway is to trust, the one that signs first."""
    return identity_of(services).trust()


@router.get(wire.PATH_REVOCATIONS)
def revocations(who: TheGateway, services: TheServices) -> wire.RevocationsAnswer:  # noqa: ARG001
    """The newest revocation list, signed by the authority."""
    return identity_of(services).revocations()
