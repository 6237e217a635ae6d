"""Routes of alerts: channels (their addresses are given once and never shown), rules, what was sent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.responses import Response

from secondsite.model.events import Severity
from secondsite.server.alerts.channels import PER_HOUR, Channel
from secondsite.server.alerts.rules import QUIET_SECONDS, NewRule, Rule
from secondsite.server.alerts.sending import ADDRESS_CHARACTERS_MAX
from secondsite.server.alerts.service import Alerts
from secondsite.server.api.access import TheActor, TheServices, requires
from secondsite.server.api.events import SeverityName, telling_of
from secondsite.server.api.jobs import ACCEPTED, JobView, accepted
from secondsite.server.api.pages import AskedPage, Page
from secondsite.server.api.schemas import Model, View
from secondsite.server.api.services import Services
from secondsite.server.database.values import from_moment
from secondsite.server.jobs.service import Jobs
from secondsite.server.people.roles import Actor, Caller, Operation

router = APIRouter(prefix="/api/v1/alerts", tags=["alerts"])

Reader = Annotated[Caller, requires(Operation.ALERT_READ)]
Writer = Annotated[Caller, requires(Operation.ALERT_WRITE)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=_NAME, examples=["on-call"])]
ChannelPath = Annotated[str, Path(alias="channel", pattern=_NAME, description="A channel's name.")]
RulePath = Annotated[str, Path(alias="rule", pattern=_NAME, description="A rule's name.")]


class NewChannel(Model):
    """A channel to be made."""

    name: Name
    address: Annotated[str, Field(min_length=1, max_length=ADDRESS_CHARACTERS_MAX)] = Field(
        description="A secret, as apprise writes addresses; never shown again.", repr=False
    )
    per_hour: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=PER_HOUR, description="Messages at most; what is more is put together."
    )


class ChannelView(View):
    """Where alerts go, without the address."""

    name: str
    service: str
    per_hour: int
    created_at: datetime
    created_by: str
    sent_at: datetime | None = Field(description="The last delivery.")
    failed_at: datetime | None = Field(description="The last failure.")
    problem: str = Field(description="Of the last failure.")
    waiting: int = Field(description="Messages that the rate holds back.")

    @classmethod
    def of(cls, channel: Channel) -> ChannelView:
        """As it goes out."""
        return cls.model_validate(channel)


class NewAlertRule(Model):
    """A rule to be made. What is left out limits nothing."""

    name: Name
    channel: Name
    severity: SeverityName = Field(default="Warning", description="At least.")
    codes: Annotated[
        list[Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9.-]*\*?$")]], Field(max_length=50)
    ] = Field(default=[], description="Any of these; `replicate.*` for all that begin so.")
    vault: Annotated[str, Field(max_length=100, pattern=r"^[^\u0000-\u001f\u007f]*$")] = Field(
        default="", description="A vault's id or name."
    )
    gateway: Annotated[str, Field(max_length=200, pattern=r"^[a-z0-9.-]*$")] = ""
    quiet_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        default=QUIET_SECONDS, description="More of the same within it is counted and told as one."
    )


class AlertRuleView(View):
    """Which events go where."""

    name: str
    channel: str
    severity: SeverityName
    codes: list[str]
    vault: str = Field(description="A vault's id; empty: any.")
    gateway: str
    quiet_seconds: int
    enabled: bool

    @classmethod
    def of(cls, rule: Rule) -> AlertRuleView:
        """As it goes out."""
        return cls(
            name=rule.name,
            channel=rule.channel,
            severity=rule.severity.value,
            codes=list(rule.codes),
            vault=rule.vault,
            gateway=rule.gateway,
            quiet_seconds=rule.quiet_seconds,
            enabled=rule.enabled,
        )


class AlertRuleChange(Model):
    """Whether a rule works, or rests."""

    enabled: bool


class AlertView(View):
    """A message."""

    id: str
    at: datetime
    channel: str
    rule: str
    kind: Literal["First", "More", "Over", "Together", "Test"]
    severity: SeverityName
    title: str
    body: str
    sent_at: datetime | None
    job: str = Field(description="What delivers it; empty: it waits for the channel's rate.")


def alerts_of(services: Services) -> Alerts:
    """The server's alerts. Raises NotReady."""
    return telling_of(services).alerts


def _note(
    services: Services, connection: Connection, actor: Actor, what: str, name: str, **detail: str | int
) -> None:
    services.audit.append(connection, actor, f"alert.{what}", name, detail=detail)


@router.get("/channels")
def list_alert_channels(caller: Reader, services: TheServices) -> Page[ChannelView]:  # noqa: ARG001
    """Where alerts go."""
    return Page(value=[ChannelView.of(channel) for channel in alerts_of(services).channels.list()])


@router.post("/channels", status_code=201)
def add_alert_channel(
    body: NewChannel,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> ChannelView:
    """Make a channel; nothing is sent to it before a rule does, or a test."""
    channels = alerts_of(services).channels

    def work(connection: Connection) -> Channel:
        made = channels.add(connection, body.name, body.address, per_hour=body.per_hour, by=actor.name)
        _note(services, connection, actor, "channel-add", body.name, service=made.service)
        return made

    return ChannelView.of(services.database.run(work))


@router.delete("/channels/{channel}", status_code=204)
def remove_alert_channel(
    channel: ChannelPath,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> None:
    """Forget a channel with its rules, and what waits for it."""
    channels = alerts_of(services).channels

    def work(connection: Connection) -> None:
        channels.remove(connection, channel)
        _note(services, connection, actor, "channel-remove", channel)

    services.database.run(work)


@router.post("/channels/{channel}/test", status_code=202, responses=ACCEPTED)
def test_alert_channel(
    channel: ChannelPath,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
    response: Response,
) -> JobView:
    """Send a test message; the job says whether the service took it."""
    alerts = alerts_of(services)

    def start(jobs: Jobs, connection: Connection) -> str:  # noqa: ARG001 - alerts have them
        job = alerts.test(connection, channel, actor.name)
        _note(services, connection, actor, "channel-test", channel)
        return job

    return accepted(services, response, start)


@router.get("/rules")
def list_alert_rules(caller: Reader, services: TheServices) -> Page[AlertRuleView]:  # noqa: ARG001
    """Which events go where."""
    rules = alerts_of(services).rules
    with services.database.read() as connection:
        return Page(value=[AlertRuleView.of(rule) for rule in rules.all(connection)])


@router.post("/rules", status_code=201)
def add_alert_rule(
    body: NewAlertRule,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> AlertRuleView:
    """Make a rule; it takes events that come from now on."""
    alerts = alerts_of(services)
    vault = services.vault_id(body.vault) if body.vault else ""
    rule = NewRule(
        name=body.name,
        channel=body.channel,
        severity=Severity(body.severity),
        codes=tuple(body.codes),
        vault=vault,
        gateway=body.gateway,
        quiet_seconds=body.quiet_seconds,
    )

    def work(connection: Connection) -> Rule:
        channel = alerts.channels.get(connection, body.channel)
        made = alerts.rules.add(connection, rule, channel.id)
        _note(
            services, connection, actor, "rule-add", body.name, channel=body.channel, severity=body.severity
        )
        return made

    return AlertRuleView.of(services.database.run(work))


@router.patch("/rules/{rule}")
def change_alert_rule(
    rule: RulePath,
    body: AlertRuleChange,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> AlertRuleView:
    """Let a rule rest, or work again."""
    rules = alerts_of(services).rules

    def work(connection: Connection) -> Rule:
        made = rules.enable(connection, rule, enabled=body.enabled)
        _note(services, connection, actor, "rule-enable", rule, enabled=body.enabled)
        return made

    return AlertRuleView.of(services.database.run(work))


@router.delete("/rules/{rule}", status_code=204)
def remove_alert_rule(
    rule: RulePath,
    caller: Writer,  # noqa: ARG001
    actor: TheActor,
    services: TheServices,
) -> None:
    """Forget a rule."""
    rules = alerts_of(services).rules

    def work(connection: Connection) -> None:
        rules.remove(connection, rule)
        _note(services, connection, actor, "rule-remove", rule)

    services.database.run(work)


@router.get("/messages")
def list_alerts(page: AskedPage, caller: Reader, services: TheServices) -> Page[AlertView]:  # noqa: ARG001
    """What was sent and what waits, youngest first."""
    found = alerts_of(services).sent(before=page.after_text(), limit=page.limit)
    shown = [
        AlertView(
            id=row.id,
            at=from_moment(row.made_at),
            channel=row.channel_name,
            rule=row.rule,
            kind=row.kind,
            severity=row.severity,
            title=row.title,
            body=row.body,
            sent_at=from_moment(row.sent_at) if row.sent_at else None,
            job=row.job,
        )
        for row in found
    ]
    return Page(value=shown, next_link=page.link(shown[-1].id) if len(shown) == page.limit else None)
