"""Alerts from an event to a real mail server and a real web hook: jobs, storms, rates, failures, secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from secondsite.base.clock import FakeClock
from secondsite.model.events import Severity
from secondsite.server.alerts import delivery, sending
from secondsite.server.alerts.errors import AddressRefused, DeliveryFailed
from secondsite.server.alerts.rules import NewRule, Rule
from secondsite.server.alerts.service import Alerts
from secondsite.server.database.engine import Database, open_database
from secondsite.server.database.tables_events import ALERT_CHANNELS
from secondsite.server.events.service import Events, NewEvent, Search
from secondsite.server.identity.envelopes import MasterKey
from support.job_hand import HandWorker
from support.receivers import Hooks, Mails, mail_server, web_hook

INFO, WARNING, CRITICAL = Severity
MASTER = MasterKey(bytes(range(32)))


@pytest.fixture
def mails() -> Iterator[Mails]:
    with mail_server() as made:
        yield made


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    with web_hook() as made:
        yield made


class Rig:
    """Alerts whose jobs a test carries out by hand."""

    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.database = open_database(url, self.clock)
        self.events = Events(self.database)
        self.alerts = Alerts(self.database, MASTER, self.events)
        self.hand = HandWorker(self.database, self.alerts.definitions())
        self.alerts.connect(self.hand.jobs, lambda: None)
        self.alerts.look()

    def channel(self, address: str, name: str = "ops", per_hour: int = 30) -> None:
        add = self.alerts.channels.add
        self.database.run(lambda connection: add(connection, name, address, per_hour=per_hour, by="maria"))

    def rule(self, **values: Any) -> Rule:
        given = NewRule(**{"name": "all", "channel": "ops", **values})

        def work(connection: sa.Connection) -> Rule:
            channel = self.alerts.channels.get(connection, given.channel)
            return self.alerts.rules.add(connection, given, channel.id)

        return self.database.run(work)

    def say(self, code: str, severity: Severity = WARNING, text: str = "it is so", **values: Any) -> None:
        event = NewEvent(values.pop("vault", ""), severity, code, text, **values)
        self.database.run(lambda connection: self.events.write(connection, [event]))

    def tell(self) -> None:
        """What is new is looked at, and what is due is delivered."""
        self.alerts.look()
        self.hand.idle()

    def codes(self) -> list[str]:
        return [event.code for event in self.events.after(Search(), 0, limit=1000)]


@pytest.fixture
def rig(database_url: str) -> Iterator[Rig]:
    made = Rig(database_url)
    yield made
    made.database.close()


def test_by_mail(rig: Rig, mails: Mails) -> None:
    rig.channel(mails.address())
    rig.rule(severity=CRITICAL)
    rig.say("a.b", WARNING)
    rig.say("store.unfit", CRITICAL, "der Speicher ist voll: 空き容量なし", gateway="gateway-b")
    rig.tell()
    [mail] = mails.taken
    assert mail["subject"] == "[secondsite] Critical: store.unfit (gateway-b)"
    assert mail["to"] == "oncall@site.example"
    body = mail.get_body(("plain",))
    assert body is not None
    assert "der Speicher ist voll: 空き容量なし" in body.get_content()
    [channel] = rig.alerts.channels.list()
    assert (channel.service, channel.problem) == ("E-Mail", "")
    assert channel.sent_at is not None


def test_a_storm_is_one_message_and_a_digest_and_the_end_is_told(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address())
    rig.rule()
    for _ in range(18):
        rig.say("ship.link-trouble", gateway="gateway-a")
        rig.tell()
    rig.say("ship.link-trouble", gateway="gateway-b")
    rig.tell()
    assert hooks.titles == [
        "Warning: ship.link-trouble (gateway-a)",
        "Warning: ship.link-trouble (gateway-b)",
    ]
    rig.clock.advance(15 * 60 + 1)
    rig.tell()
    assert hooks.titles[2:] == ["17 more: ship.link-trouble (gateway-a)"]
    assert "It is not over." in hooks.taken[2]["message"]
    rig.say("ship.link-back", INFO, "the link is back", gateway="gateway-a")
    rig.tell()
    assert hooks.titles[3:] == ["Over: ship.link-trouble (gateway-a)"]
    assert hooks.taken[3]["type"] == "success"


def test_an_event_may_say_itself_what_is_over(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address())
    rig.rule()
    rig.say("transfer.refused", gateway="gateway-a", machine="m1", lasts=True)
    rig.tell()
    rig.clock.advance(3600)
    rig.say("replicate.recovered", INFO, gateway="gateway-a", machine="m2", ends="transfer.refused")
    rig.say("replicate.recovered", INFO, gateway="gateway-a", machine="m1", ends="transfer.refused")
    rig.tell()
    assert hooks.titles == [
        "Warning: transfer.refused (gateway-a, machine m1)",
        "Over: transfer.refused (gateway-a, machine m1)",
    ]


def test_what_a_rule_takes(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address(), per_hour=1000)
    rig.rule(name="mine", codes=("ship.*", "store.unfit"), vault="north", gateway="gateway-a")
    for code in ("ship.link-trouble", "ship", "store.unfit", "store.unfit-for-x"):
        rig.say(code, vault="north", gateway="gateway-a")
    rig.say("ship.other", vault="south", gateway="gateway-a")
    rig.say("ship.other", vault="north", gateway="gateway-b")
    rig.say("ship.quiet", INFO, vault="north", gateway="gateway-a")
    rig.tell()
    assert sorted(title.split()[1] for title in hooks.titles) == ["ship.link-trouble", "store.unfit"]
    rig.database.run(lambda connection: rig.alerts.rules.enable(connection, "mine", enabled=False))
    rig.say("ship.other", vault="north", gateway="gateway-a")
    rig.tell()
    assert len(hooks.taken) == 2


def test_many_subjects_at_once_are_put_together_by_the_channels_rate(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address(), per_hour=5)
    rig.rule()
    for number in range(100):
        rig.say("replicate.rpo-missed", CRITICAL if number == 50 else WARNING, machine=f"m{number}")
    rig.tell()
    assert len(hooks.taken) == 5
    [together] = [taken for taken in hooks.taken if "96 alerts, the worst is Critical" in taken["title"]]
    assert "- Warning: replicate.rpo-missed (machine m4)" in together["message"]
    assert "and 76 more" in together["message"]
    rig.say("a.b", machine="x")
    rig.say("a.c", machine="x")
    rig.tell()
    assert len(hooks.taken) == 5
    assert rig.alerts.channels.list()[0].waiting == 2
    rig.clock.advance(3600 + 1)
    rig.tell()
    # by then the quiet time of all of them is over as well, with nothing to add
    assert sorted(hooks.titles[5:]) == ["Warning: a.b (machine x)", "Warning: a.c (machine x)"]


def test_a_service_that_is_away_is_tried_again(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address())
    rig.rule()
    hooks.status = 503
    rig.say("a.b")
    rig.tell()
    assert hooks.taken == []
    assert "T0kenInThePath" not in rig.alerts.channels.list()[0].problem
    hooks.status = 200
    rig.clock.advance(5)
    rig.tell()
    assert hooks.titles == ["Warning: a.b"]
    assert "alert.failed" not in rig.codes()


def test_a_failure_is_an_event_and_makes_no_alert(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address())
    rig.rule(severity=INFO)
    hooks.status = 500
    rig.say("a.b")
    for _ in range(delivery.TRIES + 5):
        rig.tell()
        rig.clock.advance(61)
    assert rig.codes() == ["a.b", "alert.failed"]
    assert len(hooks.paths) == delivery.TRIES
    hooks.status = 200
    rig.clock.advance(3600)
    rig.tell()
    assert hooks.taken == []


def test_a_second_server_adds_nothing(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address())
    rig.rule()
    rig.say("a.b")
    other = Alerts(rig.database, MASTER, rig.events)
    other.connect(rig.hand.jobs, lambda: None)
    assert [rig.alerts.look(), other.look(), rig.alerts.look()] == [1, 0, 0]


def test_what_happened_before_there_were_alerts_is_not_told(database_url: str, hooks: Hooks) -> None:
    database = open_database(database_url, FakeClock())
    Events(database)
    database.run(lambda connection: Events(database).emit(connection, "", CRITICAL, "a.old", "long ago"))
    database.close()
    rig = Rig(database_url)
    rig.channel(hooks.address())
    rig.rule()
    rig.tell()
    assert hooks.taken == []
    rig.database.close()


@pytest.mark.parametrize(
    "address",
    [
        *("", "nonsense", "nothing://x", "syslog://", "dbus://", "json://", "x" * 3000),
        "json://a.example,json://b.example",
        "json://a.example\njson://b.example",
        "file:///etc/passwd",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        sending.service_of(address)
    assert len(address) < 10 or address not in json.dumps(caught.value.as_dict())


SECRETS = ("s3cretPassw0rd", "T0kenInThePath", "Qu3rySecret", "wr0ngPassword")


def test_no_secret_leaves(
    rig: Rig, mails: Mails, hooks: Hooks, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    rig.channel(mails.address("wr0ngPassword"), "mail")
    rig.channel(hooks.address(), "hook")
    hooks.status = 401
    for name in ("mail", "hook"):
        with rig.database.write() as connection:
            rig.alerts.test(connection, name, "maria")
    rig.hand.idle()
    channels = {channel.name: channel for channel in rig.alerts.channels.list()}
    assert channels["mail"].problem
    assert "401" in channels["hook"].problem or "Unauthorized" in channels["hook"].problem
    assert rig.codes() == ["alert.failed", "alert.failed"]
    seen = "".join([caplog.text, *capfd.readouterr(), repr(channels), _dump(rig.database)])
    for secret in SECRETS:
        assert secret not in seen


def _dump(database: Database) -> str:
    """Every text in every table."""
    found = []
    with database.read() as connection:
        for table in sa.inspect(connection).get_table_names():
            found += [str(row) for row in connection.execute(sa.text(f'SELECT * FROM "{table}"'))]
    return "\n".join(found)


def test_an_envelope_opens_at_its_place_only(rig: Rig, hooks: Hooks) -> None:
    rig.channel(hooks.address(), "one")
    rig.channel(hooks.address(), "two")
    with rig.database.read() as connection:
        rows = connection.execute(sa.select(ALERT_CHANNELS)).all()
        assert rows[0].envelope != rows[1].envelope
        assert rig.alerts.channels.address(connection, rows[0].id) == hooks.address()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Connection to 127.0.0.1 failed", "Connection to 127.0.0.1 failed"),
        ("no such user bob:hunter22", "no such user ***:***"),
        ("POST /tok/en1234?key=abcd", "POST /***/***?***=***"),
    ],
)
def test_reasons_are_cleaned(text: str, shown: str) -> None:
    assert sending.clean(text, "jsons://bob:hunter22@127.0.0.1/tok/en1234?key=abcd") == shown
    assert "TokA" not in sending.clean("slack://TokA/x", "slack://TokA/TokB")


def test_nobody_there(hooks: Hooks) -> None:
    with pytest.raises(DeliveryFailed) as caught:
        sending.send("ops", "json://127.0.0.1:1/x", title="t", body="b", severity=INFO)
    assert "127.0.0.1" in str(caught.value)
