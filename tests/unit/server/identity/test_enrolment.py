"""Who gets a certificate, and each reason why not."""

from __future__ import annotations

import base64
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from sqlalchemy import inspect, text

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.identity import errors
from secondsite.server.identity.envelopes import EnvelopeUnopened, MasterKeyMissing, open_master_key
from secondsite.server.identity.service import Identity
from secondsite.transfer import enrolment as wire
from secondsite.transfer.certificates import request_for
from secondsite.transfer.registration import RegistrationKey, parse_key
from support.identity import DAY, URL, NewGateway, der, heartbeat, open_identity, prove, serials


def test_a_gateway_enrols_and_is_known_by_its_certificate(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    got = NewGateway(identity).enrol(key, clock, friendly_name="Gateway im Süden")
    certificate = x509.load_pem_x509_certificate(got.certificate.encode())
    authority = x509.load_pem_x509_certificate(got.authority.encode())
    certificate.verify_directly_issued_by(authority)
    assert certificate.not_valid_after_utc == clock.utc() + timedelta(days=30)
    who = identity.identify(der(got.certificate))
    assert who is not None
    assert (who.name, who.friendly_name) == ("gateway-a", "Gateway im Süden")
    shown = identity.gateways.get("gateway-a")
    assert (shown.state.value, shown.vault, shown.site) == ("Registered", "North", "site a")
    assert shown.contact is None


def test_one_key_enrols_several_gateways_until_it_ends(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    NewGateway(identity, "gateway-a").enrol(key, clock)
    clock.advance(5 * DAY - 1)
    NewGateway(identity, "gateway-b").enrol(key, clock)
    assert identity.keys.of_vault("North")[0].uses == 2
    clock.advance(1)
    with pytest.raises(errors.RegistrationKeyExpired) as refused:
        NewGateway(identity, "gateway-c").enrol(key, clock)
    said = " ".join(refused.value.sentences())
    assert "2026-01-06 00:00 UTC" in said
    assert "5 days" in said
    assert [found.name for found in identity.gateways.page()] == ["gateway-a", "gateway-b"]


def test_the_end_is_the_servers_word_not_the_keys(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    """The end inside the key is for people: a key edited to last longer is signed by nobody, and does not."""
    clock.advance(6 * DAY)
    longer = RegistrationKey(key.id, key.url, clock.utc() + timedelta(days=9), key.authority, key.secret)
    with pytest.raises(errors.RegistrationKeyExpired):
        NewGateway(identity).enrol(longer, clock)


def test_a_revoked_key_enrols_nobody(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    NewGateway(identity).enrol(key, clock)
    identity.keys.revoke("North", key.id)
    with pytest.raises(errors.RegistrationKeyRevoked):
        NewGateway(identity, "gateway-b").enrol(key, clock)
    assert identity.gateways.get("gateway-a").state.value == "Registered"
    assert identity.keys.of_vault("North")[0].state(clock.utc()) == "Revoked"
    with pytest.raises(errors.RegistrationKeyUnknown):
        identity.keys.revoke("North", "0" * 32)


def test_a_request_counts_once(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    request = NewGateway(identity).request(key, clock)
    identity.enrolment.enrol(request)
    with pytest.raises(errors.EnrolmentReplayed, match="used before"):
        identity.enrolment.enrol(request)


def test_a_refused_request_is_no_more_use_than_an_accepted_one(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    NewGateway(identity).enrol(key, clock)
    request = NewGateway(identity).request(key, clock)
    with pytest.raises(errors.GatewayNameTaken):
        identity.enrolment.enrol(request)
    with pytest.raises(errors.EnrolmentReplayed):
        identity.enrolment.enrol(request)


def test_a_nonce_spelled_otherwise_is_the_same_nonce(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    gateway = NewGateway(identity)
    request = gateway.request(key, clock)
    identity.enrolment.enrol(request)
    for nonce in (request.nonce + "=", request.nonce[:10] + "!" + request.nonce[10:]):
        with pytest.raises(errors.EnrolmentReplayed):
            identity.enrolment.enrol(prove(request.model_copy(update={"nonce": nonce}), key))


def test_a_nonce_ends_after_five_minutes(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    gateway = NewGateway(identity)
    old = gateway.request(key, clock)
    clock.advance(301)
    fresh = old.model_copy(update={"sent_at": wire.time_text(clock.utc())})
    with pytest.raises(errors.EnrolmentReplayed, match="five minutes"):
        identity.enrolment.enrol(prove(fresh, key))


def test_a_nonce_of_another_key_or_server_is_none(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    other = identity.enrolment.challenge(wire.Hello(key_id="0" * 32)).nonce
    forged = base64.urlsafe_b64encode(bytes(40)).decode().rstrip("=")
    for nonce in (other, forged, "x", "ä"):
        with pytest.raises(errors.EnrolmentReplayed):
            NewGateway(identity).enrol(key, clock, nonce=nonce)


@pytest.mark.parametrize("field", ["name", "site", "friendly_name", "version", "sent_at", "request"])
def test_the_proof_binds_all_that_is_said(
    identity: Identity, key: RegistrationKey, clock: FakeClock, field: str
) -> None:
    gateway = NewGateway(identity)
    request = gateway.request(key, clock)
    said = {
        "request": request_for(ec.generate_private_key(ec.SECP256R1()), gateway.name).decode(),
        "sent_at": wire.time_text(clock.utc() + timedelta(seconds=1)),
        "version": "0.0.9",
    }.get(field, "gateway-z")
    with pytest.raises(errors.RegistrationKeyRefused):
        identity.enrolment.enrol(request.model_copy(update={field: said}))
    with pytest.raises(errors.GatewayUnknown):
        identity.gateways.get(gateway.name)


def test_nobody_without_the_secret_enrols(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    guessed = RegistrationKey(key.id, key.url, key.ends_at, key.authority, bytes(32))
    unknown = RegistrationKey("0" * 32, key.url, key.ends_at, key.authority, key.secret)
    said = []
    for wrong in (guessed, unknown):
        with pytest.raises(errors.RegistrationKeyRefused) as refused:
            NewGateway(identity).enrol(wrong, clock)
        said.append(refused.value.sentences())
    assert said[0] == said[1]  # whether there is such a key is not told


def test_what_the_database_holds_does_not_enrol(
    identity: Identity, database: Database, key: RegistrationKey, clock: FakeClock
) -> None:
    """All of the database, read by a thief: neither the key's secret nor the authority's key is in it."""
    NewGateway(identity).enrol(key, clock)
    dump = _everything(database)
    authority_key = identity.authority._signer.key
    secret_number = f"{authority_key.private_numbers().private_value:064x}"
    assert "-----BEGIN CERTIFICATE-----" in dump  # it did look
    for secret in (key.secret.hex(), base64.b64encode(key.secret).decode(), key.text(), secret_number):
        assert secret not in dump
        assert secret.upper() not in dump
    assert "PRIVATE KEY" not in dump


def _everything(database: Database) -> str:
    found = []
    with database.read() as connection:
        for table in inspect(connection).get_table_names():
            found += [str(tuple(row)) for row in connection.execute(text(f"SELECT * FROM {table}"))]
    return "\n".join(found)


def test_the_same_request_again_gives_the_same_certificate(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    """The answer was lost on its way: the gateway asks again with the key pair it kept."""
    gateway = NewGateway(identity)
    first = gateway.enrol(key, clock)
    clock.advance(60)
    assert gateway.enrol(key, clock).certificate == first.certificate
    assert identity.keys.of_vault("North")[0].uses == 1


def test_a_name_that_is_taken_is_given_by_a_key_made_for_it_alone(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    first = NewGateway(identity).enrol(key, clock)
    thief = NewGateway(identity)
    with pytest.raises(errors.GatewayNameTaken):
        thief.enrol(key, clock)
    again, _ = identity.keys.create("North", url=URL, by="maria", for_gateway="gateway-a")
    with pytest.raises(errors.RegistrationKeyForAnother):
        NewGateway(identity, "gateway-b").enrol(again, clock)
    second = thief.enrol(again, clock)
    who = identity.identify(der(second.certificate))
    assert who is not None
    assert who.name == "gateway-a"
    with pytest.raises(errors.GatewayRevoked, match="enrolled again"):
        identity.identify(der(first.certificate))
    with pytest.raises(errors.GatewayUnknown):
        identity.keys.create("North", url=URL, by="maria", for_gateway="gateway-c")


@pytest.mark.parametrize("seconds", [301, -301, 86400])
def test_a_clock_that_is_off_is_refused_with_both_times(
    identity: Identity, key: RegistrationKey, clock: FakeClock, seconds: int
) -> None:
    there = clock.utc() + timedelta(seconds=seconds)
    with pytest.raises(wire.ClockOff) as refused:
        NewGateway(identity).enrol(key, clock, sent_at=wire.time_text(there))
    said = refused.value.sentences()[0]
    assert f"{there:%Y-%m-%d %H:%M:%S} UTC at the gateway" in said
    assert "2026-01-01 00:00:00 UTC at the server" in said


def test_five_minutes_are_accepted(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    for name, seconds in (("gateway-a", 300), ("gateway-b", -300)):
        there = wire.time_text(clock.utc() + timedelta(seconds=seconds))
        NewGateway(identity, name).enrol(key, clock, sent_at=there)


@pytest.mark.parametrize(("version", "what"), [("1.5.0", "the server"), ("1.2.9", "the gateway")])
def test_versions_that_do_not_fit_are_refused_with_the_order(
    database: Database, tmp_path: Path, clock: FakeClock, version: str, what: str
) -> None:
    identity = open_identity(database, tmp_path, clock, version="1.4.0")
    identity.vaults.create("North")
    key, _ = identity.keys.create("North", url=URL, by="maria")
    with pytest.raises(errors.VersionRefused) as refused:
        NewGateway(identity).enrol(key, clock, version=version)
    assert f"Update {what} first" in refused.value.sentences()[2]
    assert "server, then gateways, then agents" in refused.value.sentences()[2]
    got = NewGateway(identity).enrol(key, clock, version="1.3.0")
    who = identity.identify(der(got.certificate))
    assert who is not None
    with pytest.raises(errors.VersionRefused):
        identity.heartbeat(who, heartbeat(clock, version=version), address="192.0.2.1")
    # it is heard all the same: the list shows why nothing works with it
    contact = identity.gateways.get("gateway-a").contact
    assert contact is not None
    assert contact.version == version


@pytest.mark.parametrize("field", ["name", "version", "sent_at", "request", "site"])
def test_what_does_not_parse_is_refused(
    identity: Identity, key: RegistrationKey, clock: FakeClock, field: str
) -> None:
    for nonsense in ("Ü" * 20 + "\r\nx", "-----BEGIN CERTIFICATE-----\n----", "\0" * 30):
        with pytest.raises(InvalidInput):
            NewGateway(identity).enrol(key, clock, **{field: nonsense})


def test_only_p256_keys_whose_holder_asks(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        name = x509.Name([])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        from cryptography.hazmat.primitives import hashes, serialization

        pem = request.sign(other, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        with pytest.raises(InvalidInput, match="P-256"):
            NewGateway(identity).enrol(key, clock, request=pem)


def test_a_certificate_is_renewed_for_a_new_key_pair(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    gateway = NewGateway(identity)
    first = gateway.enrol(key, clock)
    clock.advance(20 * DAY)
    who = identity.identify(der(first.certificate))
    assert who is not None
    second = gateway.renew(who, clock)
    assert second.certificate != first.certificate
    assert (
        x509.load_pem_x509_certificate(second.certificate.encode()).public_key() == gateway.key.public_key()
    )
    # both are good until the first one ends: the answer may not have arrived
    assert identity.identify(der(first.certificate)) is not None
    assert identity.identify(der(second.certificate)) is not None
    shown = identity.gateways.get("gateway-a")
    assert shown.certificate_until == clock.utc() + timedelta(days=30)
    with pytest.raises(wire.ClockOff):
        gateway.renew(who, clock, ahead=400)


def test_a_gateway_in_a_loop_gets_no_certificates_without_end(
    identity: Identity, key: RegistrationKey, clock: FakeClock
) -> None:
    gateway = NewGateway(identity)
    who = identity.identify(der(gateway.enrol(key, clock).certificate))
    assert who is not None
    for _ in range(19):
        gateway.renew(who, clock)
    with pytest.raises(errors.TooManyCertificates):
        gateway.renew(who, clock)
    clock.advance(30 * DAY + 1)
    gateway.renew(who, clock)  # those that ended do not count


def test_a_key_of_a_deleted_vault_is_none(identity: Identity, key: RegistrationKey, clock: FakeClock) -> None:
    request = NewGateway(identity).request(key, clock)
    identity.vaults.delete("North")
    with pytest.raises(errors.RegistrationKeyRefused):
        identity.enrolment.enrol(request)


def test_a_second_server_of_the_database_is_the_same_authority(
    identity: Identity, database: Database, tmp_path: Path, key: RegistrationKey, clock: FakeClock
) -> None:
    other = open_identity(database, tmp_path, clock)
    assert other.authority.pem == identity.authority.pem
    request = NewGateway(identity).request(key, clock)
    got = other.enrolment.enrol(request)
    with pytest.raises(errors.EnrolmentReplayed):
        identity.enrolment.enrol(request)
    other.gateways.revoke("gateway-a", why="stolen")
    with pytest.raises(errors.GatewayRevoked):
        identity.identify(der(got.certificate))
    assert serials(identity.revocations().pem) == serials(other.revocations().pem) != set()


def test_a_server_does_not_start_with_another_master_key(
    identity: Identity, database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "master.key"
    path.unlink()
    with pytest.raises(MasterKeyMissing):
        open_identity(database, tmp_path, clock)
    open_master_key(path, create=True)
    with pytest.raises(EnvelopeUnopened):
        open_identity(database, tmp_path, clock)


def test_nothing_secret_is_said_or_logged(
    identity: Identity, key: RegistrationKey, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = NewGateway(identity)
    got = gateway.enrol(key, clock)
    said = [repr(identity.authority), repr(identity.authority.master), repr(got), repr(key)]
    said += [repr(record) for record in identity.keys.of_vault("North")]
    clock.advance(6 * DAY)
    for wrong in ({}, {"name": "Ä"}, {"nonce": "x"}):
        with pytest.raises(SecondsiteError) as refused:
            gateway.enrol(key, clock, **wrong)
        said.append(str(refused.value.as_dict()))
    text = "\n".join([caplog.text, *said])
    private = f"{gateway.key.private_numbers().private_value:x}"
    for secret in (
        key.text(),
        key.secret.hex(),
        repr(key.secret),
        private,
        identity.authority.master.secret.hex(),
    ):
        assert secret not in text
    assert parse_key(key.text()).secret == key.secret  # what was looked for is what a key holds
