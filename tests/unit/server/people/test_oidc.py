"""Log-ins at a real OIDC provider over TLS on loopback: what is right lets in, and every lie does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from joserfc import jwt

from secondsite.base.clock import FakeClock
from secondsite.base.errors import InvalidInput
from secondsite.server.api.errors import TooManyRequests, Unauthenticated
from secondsite.server.api.services import Services
from secondsite.server.database.engine import open_database
from secondsite.server.database.tables_logins import oidc_logins
from secondsite.server.database.tables_logins import oidc_provider as provider_table
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.people.oidc_errors import (
    OidcLoginWrong,
    OidcNoDevices,
    OidcNone,
    OidcNoRole,
    OidcRefused,
    OidcUnreachable,
)
from secondsite.server.people.oidc_login import BEGUN_MAX, OidcLogins, Wait
from secondsite.server.people.oidc_provider import KEYS_AGAIN_SECONDS, Settings
from secondsite.server.people.oidc_settings import Mapped, OidcSettings
from secondsite.server.people.oidc_tokens import AGE_SECONDS_MAX, CLOCKS_APART_SECONDS
from secondsite.server.people.roles import THE_SERVER, Actor, Grant, Role
from secondsite.server.people.tokens import NewToken
from support.databases import Databases
from support.oidc import (
    CLIENT_ID,
    CLIENT_SECRET,
    OidcProvider,
    Somebody,
    oidc_provider,
    unsigned,
    with_another_key,
    with_public_key,
)
from support.server import make_services, user_with

REDIRECT = "http://127.0.0.1:40001/callback"
SOMEWHERE = Actor("", "oidc", "192.0.2.7", "r1")
OPERATORS = Mapped("dr-operators", Grant("*", Role.OPERATOR))


@dataclass
class Rig:
    """A server's log-ins, and a provider."""

    provider: OidcProvider
    services: Services
    settings: OidcSettings
    logins: OidcLogins
    clock: FakeClock

    def configure(self, **other: Any) -> None:
        values = {
            "issuer": self.provider.issuer,
            "client_id": CLIENT_ID,
            "secret": CLIENT_SECRET,
            "authority": self.provider.authority,
        }
        self.settings.set(THE_SERVER, Settings(**{**values, **other}))

    def come(self, **other: Any) -> NewToken:
        """Log in with a browser, all as it should be but what is given."""
        begun = self.logins.begin(REDIRECT, address="192.0.2.7")
        brought = self.provider.browse(begun.url)
        values = {"code": brought["code"], "state": brought["state"], "issuer": brought.get("iss"), **other}
        return self.logins.finish(begun.id, begun.secret, actor=SOMEWHERE, **values)

    def roles(self, made: NewToken) -> set[Grant]:
        return set(self.services.tokens.caller(made.text).grants)

    def refused(self, why: str, **other: Any) -> None:
        before = [user.name for user in self.services.users.page(after=None, limit=100)]
        with pytest.raises(OidcLoginWrong) as error:
            self.come(**other)
        assert why in str(error.value.fields["why"]), error.value.fields["why"]
        assert [user.name for user in self.services.users.page(after=None, limit=100)] == before
        row = list(self.services.audit.entries())[-1]
        assert (row.operation, row.outcome, row.address) == ("session.create", "refused", "192.0.2.7")


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    # what is asked of a database here is the same on both; the test over the API has PostgreSQL, too
    with databases.ready("sqlite") as found:
        yield found


@pytest.fixture
def rig(url: str, tmp_path: Path) -> Iterator[Rig]:
    clock = FakeClock()
    database = open_database(url, clock)
    services = make_services(database, tmp_path)
    master = MasterKey(bytes(range(32)))
    settings = OidcSettings(database, services.audit, master)
    logins = OidcLogins(database, services.audit, services.sessions, master, settings)
    with oidc_provider(clock.utc) as provider:
        made = Rig(provider, services, settings, logins, clock)
        made.configure()
        settings.map(THE_SERVER, OPERATORS)
        yield made
    database.close()


def test_somebody_comes_in_and_is_known_again(rig: Rig) -> None:
    first = rig.come()
    caller = rig.services.tokens.caller(first.text)
    assert (caller.name, caller.via) == ("maria", f"session:{first.token.id}")
    assert rig.roles(first) == {OPERATORS.grant}
    assert rig.services.users.get("maria").display_name == "Maria Schmidt"
    rig.provider.person.name = "another-name"  # theirs to change: it is still who they were
    assert rig.services.tokens.caller(rig.come().text).id == caller.id
    assert rig.services.audit.verify().entries > 0


def test_a_name_or_an_address_makes_nobody_somebody_else(rig: Rig) -> None:
    """The provider's people cannot take over a user who is here already by calling themselves so."""
    user_with(rig.services, "maria", Grant("*", Role.OWNER))
    made = rig.come()
    assert rig.services.tokens.caller(made.text).name == "maria-2"
    assert rig.roles(made) == {OPERATORS.grant}
    rig.provider.person = Somebody(subject="other", name="maria")
    assert rig.services.tokens.caller(rig.come().text).name == "maria-3"
    rig.provider.person = Somebody(subject="third", name="Ma ria<\x1b[31m>/../ÄÖ")
    assert rig.services.tokens.caller(rig.come().text).name == "ma-ria-31m"
    rig.provider.person = Somebody(subject="fourth", name="server")
    assert rig.services.tokens.caller(rig.come().text).name == "server-2"


def test_groups_give_roles_and_take_them_again(rig: Rig) -> None:
    rig.settings.map(THE_SERVER, Mapped("readers", Grant("north", Role.READER)))
    rig.settings.map(THE_SERVER, Mapped("*", Grant("south", Role.READER)))
    rig.provider.person.groups = ["readers", "dr-operators"]
    everything = {OPERATORS.grant, Grant("north", Role.READER), Grant("south", Role.READER)}
    assert rig.roles(rig.come()) == everything
    rig.services.users.grant(THE_SERVER, "maria", Grant("east", Role.APPROVER))
    rig.provider.person.groups = []
    assert rig.roles(rig.come()) == {Grant("south", Role.READER), Grant("east", Role.APPROVER)}
    rig.settings.unmap(THE_SERVER, Mapped("*", Grant("south", Role.READER)))
    assert rig.roles(rig.come()) == {Grant("east", Role.APPROVER)}


def test_who_has_no_role_stays_out_and_gets_no_user(rig: Rig) -> None:
    rig.provider.person.groups = ["others"]
    with pytest.raises(OidcNoRole) as refused:
        rig.come()
    assert refused.value.fields["groups"] == "others"
    assert [user.name for user in rig.services.users.page(after=None, limit=9)] == []
    rig.provider.person.groups = ["dr-operators"]
    made = rig.come()
    rig.provider.person.groups = []
    with pytest.raises(OidcNoRole):
        rig.come()
    assert (
        rig.services.tokens.caller(made.text).grants == frozenset()
    )  # taken although the log-in was refused


def test_a_disabled_user_stays_out(rig: Rig) -> None:
    made = rig.come()
    rig.services.users.change(THE_SERVER, "maria", disabled=True)
    with pytest.raises(Unauthenticated):
        rig.services.tokens.caller(made.text)
    rig.refused("disabled")


LIES: list[tuple[dict[str, Any], str]] = [
    ({"iss": "https://elsewhere.example"}, "claims"),
    ({"iss": None}, "claims"),
    ({"aud": "another-client"}, "claims"),
    ({"aud": None}, "claims"),
    ({"aud": ["another-client"]}, "claims"),
    ({"aud": [CLIENT_ID, "another"]}, "for several"),
    ({"aud": [CLIENT_ID, "another"], "azp": "another"}, "for another"),
    ({"azp": "another"}, "for another"),
    ({"nonce": "of another log-in"}, "of another log-in"),
    ({"nonce": None}, "of another log-in"),
    ({"sub": None}, "claims"),
    ({"sub": ""}, "claims"),
    ({"sub": "x" * 256}, "names nobody"),
    ({"sub": 7}, "claims"),
    ({"exp": None}, "claims"),
    ({"iat": None}, "claims"),
    ({"groups": {"a": 1}}, "no list"),
]


def test_a_token_that_is_not_ours_is_refused(rig: Rig) -> None:
    for claims, why in LIES:
        rig.provider.lies.claims = claims
        rig.refused(why)
    rig.provider.lies.claims = {}
    assert rig.come().text


def test_times_of_a_token(rig: Rig) -> None:
    now = int(rig.clock.utc().timestamp())
    apart = CLOCKS_APART_SECONDS
    for claims in (
        {"exp": now - apart},
        {"iat": now + apart + 1},
        {"nbf": now + apart + 1},
        {"iat": now - AGE_SECONDS_MAX - apart - 1},
    ):
        rig.provider.lies.claims = dict(claims)
        rig.refused("made too long ago" if claims.get("iat", now) < now else "claims")
    rig.provider.lies.claims = {"exp": now - apart + 1, "iat": now + apart}
    assert rig.come().text


def test_signatures_that_are_none(rig: Rig) -> None:
    key = rig.provider.keys[0]
    for sign in (unsigned, with_public_key(key), with_another_key("one"), with_another_key("unknown")):
        rig.provider.lies.sign = sign
        rig.refused("not signed")

    def changed(claims: dict[str, Any]) -> str:
        head, _, signature = jwt.encode({"alg": "RS256", "kid": "one"}, claims, key).split(".")
        other = jwt.encode({"alg": "RS256", "kid": "one"}, {**claims, "sub": "somebody"}, key).split(".")[1]
        return f"{head}.{other}.{signature}"

    rig.provider.lies.sign = changed
    rig.refused("not signed")
    rig.provider.lies.sign = lambda _claims: "no token at all"
    rig.refused("not signed")
    rig.provider.lies.sign = lambda _claims: "x" * 70_000
    rig.refused("larger")


def test_a_rotated_key_is_found_and_a_withdrawn_one_counts_no_more(rig: Rig) -> None:
    old = rig.provider.keys[0]
    rig.come()
    asked = rig.provider.seen.count("keys")
    rig.clock.advance(KEYS_AGAIN_SECONDS)
    rig.provider.rotate()
    assert rig.come().text
    assert rig.provider.seen.count("keys") == asked + 1
    # signed with the one that was taken away; and keys nobody has do not make us ask without end
    rig.provider.lies.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": old.kid}, claims, old)
    for _ in range(3):
        rig.refused("not signed")
    assert rig.provider.seen.count("keys") == asked + 1


def test_a_log_in_counts_once_and_for_its_maker(rig: Rig) -> None:
    begun = rig.logins.begin(REDIRECT, address="192.0.2.7")
    brought = rig.provider.browse(begun.url)
    answer = {"code": brought["code"], "state": brought["state"], "issuer": brought["iss"]}

    def refused(secret: str) -> None:
        with pytest.raises(OidcLoginWrong):
            rig.logins.finish(begun.id, secret, actor=SOMEWHERE, **answer)

    refused("somebody else's")
    refused("")
    assert rig.logins.finish(begun.id, begun.secret, actor=SOMEWHERE, **answer).text
    refused(begun.secret)
    # the same code, through a log-in of its own
    with pytest.raises(OidcRefused, match="invalid_grant"):
        rig.come(code=brought["code"])


def test_mixed_up_answers_are_refused_and_spent(rig: Rig) -> None:
    rig.refused("another log-in", state="x" * 43)
    rig.refused("another provider", issuer="https://attacker.example")
    rig.refused("does not say which provider", issuer=None)
    mine, theirs = (rig.logins.begin(REDIRECT, address="192.0.2.7") for _ in range(2))
    brought = rig.provider.browse(theirs.url)
    # somebody's code with one's own log-in: its state is another's, and so are verifier and nonce
    with pytest.raises(OidcLoginWrong):
        rig.logins.finish(
            mine.id, mine.secret, code=brought["code"], state=brought["state"], issuer=None, actor=SOMEWHERE
        )
    with pytest.raises(OidcLoginWrong, match="used already"):
        rig.logins.finish(mine.id, mine.secret, code="x", state=mine.state, issuer=None, actor=SOMEWHERE)
    again = rig.logins.begin(REDIRECT, address="192.0.2.7")
    with pytest.raises(OidcRefused, match="PKCE"):
        rig.logins.finish(
            again.id,
            again.secret,
            code=brought["code"],
            state=again.state,
            issuer=rig.provider.issuer,
            actor=SOMEWHERE,
        )


def test_a_log_in_is_not_finished_late(rig: Rig) -> None:
    begun = rig.logins.begin(REDIRECT, address="192.0.2.7")
    brought = rig.provider.browse(begun.url)
    rig.clock.advance(601)
    with pytest.raises(OidcLoginWrong):
        rig.logins.finish(
            begun.id, begun.secret, code=brought["code"], state=brought["state"], issuer=None, actor=SOMEWHERE
        )


REDIRECTS = [
    "https://127.0.0.1:40001/callback",
    "http://127.0.0.1:40001/callback/../x",
    "http://127.0.0.1:40001/callback?x=1",
    "http://attacker.example:40001/callback",
    "http://127.0.0.1.attacker.example:1/callback",
    "http://127.0.0.1@attacker.example:1/callback",
    "http://127.0.0.1:40001/callback\n",
]


def test_a_redirect_is_loopback(rig: Rig) -> None:
    for redirect in REDIRECTS:
        with pytest.raises(InvalidInput):
            rig.logins.begin(redirect, address="192.0.2.7")


def test_nobody_begins_without_end(rig: Rig) -> None:
    for _ in range(BEGUN_MAX):
        rig.logins.begin(REDIRECT, address="192.0.2.9")
    with pytest.raises(TooManyRequests):
        rig.logins.begin(REDIRECT, address="192.0.2.9")
    rig.logins.begin(REDIRECT, address="192.0.2.10")


def test_a_device_waits_until_the_person_agrees(rig: Rig) -> None:
    begun = rig.logins.begin_device(address="192.0.2.7")
    assert begun.user_code == "WDJB-MJHT"
    with pytest.raises(OidcLoginWrong):
        rig.logins.finish_device(begun.id, "somebody else's", actor=SOMEWHERE)
    assert rig.logins.finish_device(begun.id, begun.secret, actor=SOMEWHERE) == Wait(5)
    asked = rig.provider.seen.count("token")
    assert rig.logins.finish_device(begun.id, begun.secret, actor=SOMEWHERE) == Wait(
        6
    )  # too early: not asked
    assert rig.provider.seen.count("token") == asked
    rig.provider.agreed = True
    rig.clock.advance(5)
    made = rig.logins.finish_device(begun.id, begun.secret, actor=SOMEWHERE)
    assert isinstance(made, NewToken)
    assert rig.roles(made) == {OPERATORS.grant}
    with pytest.raises(OidcLoginWrong):
        rig.logins.finish_device(begun.id, begun.secret, actor=SOMEWHERE)
    # a browser's log-in is not ended as a device's
    browser = rig.logins.begin(REDIRECT, address="192.0.2.7")
    with pytest.raises(OidcLoginWrong):
        rig.logins.finish_device(browser.id, browser.secret, actor=SOMEWHERE)


def test_a_provider_without_device_codes(rig: Rig) -> None:
    rig.provider.devices = False
    rig.configure()
    with pytest.raises(OidcNoDevices):
        rig.logins.begin_device(address="192.0.2.7")


def test_settings_are_tried_before_they_are_kept(rig: Rig) -> None:
    with pytest.raises(OidcRefused, match="invalid_client"):
        rig.configure(secret="another")
    with pytest.raises(OidcUnreachable, match="certificate"):
        rig.configure(authority="")
    with pytest.raises(InvalidInput):
        rig.configure(issuer=rig.provider.issuer.replace("https", "http"))
    with pytest.raises(InvalidInput):
        rig.configure(authority="no certificate")
    with pytest.raises(OidcUnreachable, match="calls itself"):
        rig.configure(issuer=rig.provider.address + "/realms")
    rig.provider.calls_itself = "https://elsewhere.example"
    with pytest.raises(OidcUnreachable, match="calls itself"):
        rig.configure()
    rig.provider.calls_itself = None
    rig.provider.keys = []
    with pytest.raises(OidcUnreachable, match="no key"):
        rig.configure()
    rig.provider.rotate()
    rig.clock.advance(KEYS_AGAIN_SECONDS)
    assert rig.come().text  # what was set first still is
    rig.settings.remove(THE_SERVER)
    with pytest.raises(OidcNone):
        rig.come()


def test_no_secret_is_kept_plain_nor_said(rig: Rig) -> None:
    begun = rig.logins.begin(REDIRECT, address="192.0.2.7")
    device = rig.logins.begin_device(address="192.0.2.7")
    rig.come()
    with rig.services.database.read() as connection:
        kept = str(connection.execute(sa.select(provider_table)).all())
        kept += str(connection.execute(sa.select(oidc_logins)).all())
    codes = list(rig.provider.codes)
    for secret in (CLIENT_SECRET, begun.secret, begun.state, device.secret, *codes):
        assert secret not in kept
        assert secret not in str([begun, device, rig.settings.provider().settings])
        assert secret not in str(list(rig.services.audit.entries()))


def test_a_session_lasts_as_it_is_set(rig: Rig) -> None:
    rig.configure(session_minutes=30)
    made = rig.come()
    rig.clock.advance(29 * 60)
    assert rig.services.tokens.caller(made.text).name == "maria"
    rig.clock.advance(61)
    with pytest.raises(Unauthenticated, match="expired"):
        rig.services.tokens.caller(made.text)
