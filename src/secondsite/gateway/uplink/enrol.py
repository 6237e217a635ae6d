"""Enrolment from the gateway's side: ``secondsite gateway enrol``.

The private key is made here and stays here. What travels is a request for a certificate, signed with the
registration key over a nonce of the server; the registration key itself does not travel either.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from secondsite import __version__
from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import replace_file
from secondsite.gateway.common.enrolerrors import EnrolledAlready, NotEnrolled
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, Membership, load_membership
from secondsite.gateway.common.incarnation import forget_incarnation
from secondsite.gateway.uplink.enrolclient import ServerClient, Way, first_contact, trusting_client
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import request_for
from secondsite.transfer.pki import AUTHORITY_CERTIFICATE, gateway_name
from secondsite.transfer.registration import RegistrationKey


@dataclass(frozen=True)
class NewMember:
    """What a gateway is to be."""

    name: str  # a DNS name in lower case, for its certificate
    friendly_name: str
    site: str
    publish: Literal["all", "none"] = "all"  # whether the server may know its machines at once


def enrol(
    key: RegistrationKey,
    member: NewMember,
    directory: Path,
    *,
    way: Way,
    clock: Clock,
    credentials: Path | None = None,
    replace: bool = False,
    version: str = __version__,
) -> Membership:
    """Enrol with the server the key is from, and leave everything in `directory`.

    Cut off anywhere and run again it goes on with the same key pair, and gets the same certificate.

    credentials: the proxy's, remembered by their file's name.
    replace: over an enrolment that is there, which stays in use until this one has succeeded.

    Raises:
        EnrolledAlready, ServerUnreachable, ServerNotTrusted, ClockOff, RemoteError (the server's reason).
    """
    files = EnrolmentFiles(directory, gateway_name(member.name))
    if not replace:
        _check_new(directory)
    answer = first_contact(way, key)
    wire.check_clocks(clock.utc(), wire.parse_time(answer.server_time))
    pair = files.next_key()
    client = trusting_client(way, answer.certificate, system_trust=key.system_trust)
    try:
        enrolled = _ask(client, key, member, pair=pair, clock=clock, version=version)
    finally:
        client.close()
    if enrolled.authority != answer.certificate:
        raise InvalidInput(what="the server's answer", why="it is of another authority than before")
    # the one the key names comes first; others it vouches for by its TLS connection
    trusted = enrolled.trust if enrolled.trust.startswith(enrolled.authority) else enrolled.authority
    replace_file(directory / AUTHORITY_CERTIFICATE, trusted.encode(), mode=0o644)
    files.take_revocations(enrolled.revocations)
    files.take(enrolled.certificate, authority_pem=enrolled.authority)
    membership = Membership(
        server=way.server,
        system_trust=key.system_trust,
        proxy=way.proxy,
        proxy_credentials=credentials,
        name=member.name,
        friendly_name=member.friendly_name,
        gateway_id=enrolled.gateway_id,
        vault=enrolled.vault,
        site=member.site,
    )
    forget_incarnation(directory)
    files.save(membership)
    return membership


def renew(
    client: ServerClient, files: EnrolmentFiles, *, clock: Clock, version: str = __version__
) -> x509.Certificate:
    """The next certificate, for a new key pair, put in use. Cut off anywhere it may be run again.

    Raises what `ServerClient` raises.
    """
    pair = files.next_key()
    asked = wire.Renew(
        version=version,
        sent_at=wire.time_text(clock.utc()),
        request=request_for(pair, files.name).decode(),
    )
    enrolled = client.post(wire.PATH_RENEW, asked, wire.Enrolled)
    authority = files.tls.authority.read_text()
    return files.take(enrolled.certificate, authority_pem=authority)


def _ask(
    client: ServerClient,
    key: RegistrationKey,
    member: NewMember,
    *,
    pair: ec.EllipticCurvePrivateKey,
    clock: Clock,
    version: str,
) -> wire.Enrolled:
    challenge = client.post(wire.PATH_CHALLENGES, wire.Hello(key_id=key.id), wire.Challenge)
    asked = wire.Enrol(
        key_id=key.id,
        nonce=challenge.nonce,
        name=member.name,
        friendly_name=member.friendly_name,
        site=member.site,
        version=version,
        sent_at=wire.time_text(clock.utc()),
        request=request_for(pair, member.name).decode(),
        proof="-",
        publish=member.publish,
    )
    proof = wire.encode_proof(key.sign(wire.proof_message(asked)))
    return client.post(wire.PATH_CERTIFICATES, asked.model_copy(update={"proof": proof}), wire.Enrolled)


def _check_new(directory: Path) -> None:
    with contextlib.suppress(NotEnrolled):
        found = load_membership(directory)
        raise EnrolledAlready(directory=directory, name=found.name, server=found.server)
