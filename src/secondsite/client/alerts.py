"""Alerts over the server's API, as functions of a `ServerClient`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secondsite.client.client import NONE, ServerClient, at
from secondsite.client.messages import Answer, Job, Page


class AlertChannel(Answer, frozen=True, kw_only=True):
    """Where alerts go, without the address. waiting: messages that the rate holds back."""

    name: str
    service: str
    per_hour: int
    created_at: str
    created_by: str
    sent_at: str | None = None
    failed_at: str | None = None
    problem: str
    waiting: int


class AlertRule(Answer, frozen=True, kw_only=True):
    """Which events go where. vault: its id; what is empty limits nothing."""

    name: str
    channel: str
    severity: str
    codes: list[str]
    vault: str
    gateway: str
    quiet_seconds: int
    enabled: bool


class Alert(Answer, frozen=True, kw_only=True):
    """A message. job: what delivers it; empty: it waits for the channel's rate."""

    id: str
    at: str
    channel: str
    rule: str
    kind: str
    severity: str
    title: str
    body: str
    sent_at: str | None = None
    job: str


def channels(server: ServerClient) -> list[AlertChannel]:
    """Where alerts go, by name."""
    return server.call("GET", at("alerts", "channels"), Page[AlertChannel]).value


def add_channel(
    server: ServerClient, name: str, address: str, *, per_hour: int | None = None
) -> AlertChannel:
    """Make a channel; its address is never shown again."""
    body: dict[str, object] = {"name": name, "address": address}
    if per_hour is not None:
        body["perHour"] = per_hour
    return server.call("POST", at("alerts", "channels"), AlertChannel, body)


def remove_channel(server: ServerClient, name: str) -> None:
    """Forget a channel with its rules."""
    server.call("DELETE", at("alerts", "channels", name), NONE)


def send_test(server: ServerClient, channel: str) -> Job:
    """Begin to send a test message."""
    return server.call("POST", at("alerts", "channels", channel, "test"), Job)


def rules(server: ServerClient) -> list[AlertRule]:
    """Which events go where, by name."""
    return server.call("GET", at("alerts", "rules"), Page[AlertRule]).value


def add_rule(
    server: ServerClient,
    name: str,
    channel: str,
    *,
    severity: str = "Warning",
    codes: Sequence[str] = (),
    vault: str = "",
    gateway: str = "",
    quiet_seconds: int | None = None,
) -> AlertRule:
    """Make a rule."""
    body: dict[str, object] = {
        "name": name,
        "channel": channel,
        "severity": severity,
        "codes": list(codes),
        "vault": vault,
        "gateway": gateway,
    }
    if quiet_seconds is not None:
        body["quietSeconds"] = quiet_seconds
    return server.call("POST", at("alerts", "rules"), AlertRule, body)


def enable_rule(server: ServerClient, name: str, *, enabled: bool) -> AlertRule:
    """Let a rule rest, or work again."""
    return server.call("PATCH", at("alerts", "rules", name), AlertRule, {"enabled": enabled})


def remove_rule(server: ServerClient, name: str) -> None:
    """Forget a rule."""
    server.call("DELETE", at("alerts", "rules", name), NONE)


def alerts(server: ServerClient) -> Iterator[Alert]:
    """What was sent and what waits, youngest first."""
    return server.pages(at("alerts", "messages"), Page[Alert])
