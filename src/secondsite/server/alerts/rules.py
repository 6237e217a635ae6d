"""Which events are told where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from secondsite.model.events import Severity
from secondsite.server.alerts.errors import NameTaken, RuleUnknown, TooMany
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_events import ALERT_CHANNELS, ALERT_GROUPS, ALERT_RULES
from secondsite.server.database.values import fresh_id, from_json, to_json
from secondsite.server.events.service import NewEvent

RULES_MAX = 100
QUIET_SECONDS = 900
_SEVERITIES = list(Severity)


@dataclass(frozen=True)
class NewRule:
    """Events at least this severe, with one of the codes (each a code, or a beginning and *), of a vault (its
    id), of a gateway (its name). Empty: of any.
    """

    name: str
    channel: str  # its name
    severity: Severity = Severity.WARNING
    codes: tuple[str, ...] = ()
    vault: str = ""
    gateway: str = ""
    quiet_seconds: int = QUIET_SECONDS


@dataclass(frozen=True)
class Rule(NewRule):
    """A rule as it is kept."""

    id: str = ""
    channel_id: str = ""
    enabled: bool = True

    @property
    def quiet(self) -> timedelta:
        """How long more of the same is counted before it is told."""
        return timedelta(seconds=self.quiet_seconds)

    def takes(self, event: NewEvent) -> bool:
        """Whether the event is to be told."""
        return (
            _SEVERITIES.index(event.severity) >= _SEVERITIES.index(self.severity)
            and (not self.codes or any(_code_is(event.code, code) for code in self.codes))
            and self.vault in ("", event.vault)
            and self.gateway in ("", event.gateway)
        )


class Rules:
    """Of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, connection: Connection, rule: NewRule, channel_id: str) -> Rule:
        """Make one. Raises NameTaken or TooMany."""
        names = list(connection.execute(sa.select(ALERT_RULES.c.name)).scalars())
        if rule.name in names:
            raise NameTaken(what="rule", name=rule.name)
        if len(names) >= RULES_MAX:
            raise TooMany(limit=RULES_MAX, what="rules")
        connection.execute(
            sa.insert(ALERT_RULES).values(
                id=fresh_id(self._database.clock),
                name=rule.name,
                channel=channel_id,
                severity=rule.severity.value,
                codes=to_json(rule.codes),
                vault=rule.vault,
                gateway=rule.gateway,
                quiet_seconds=rule.quiet_seconds,
                enabled=1,
            )
        )
        return self.get(connection, rule.name)

    def all(self, connection: Connection) -> list[Rule]:
        """By name."""
        return [_rule(row) for row in connection.execute(_query().order_by(ALERT_RULES.c.name))]

    def get(self, connection: Connection, name: str) -> Rule:
        """By name. Raises RuleUnknown."""
        row = connection.execute(_query().where(ALERT_RULES.c.name == name)).one_or_none()
        if row is None:
            raise RuleUnknown(name=name)
        return _rule(row)

    def enable(self, connection: Connection, name: str, *, enabled: bool) -> Rule:
        """Let a rule rest, or work again; what it counted meanwhile is forgotten. Raises RuleUnknown."""
        found = self.get(connection, name)
        change = sa.update(ALERT_RULES).where(ALERT_RULES.c.id == found.id)
        connection.execute(change.values(enabled=int(enabled)))
        connection.execute(sa.delete(ALERT_GROUPS).where(ALERT_GROUPS.c.rule == found.id))
        return self.get(connection, name)

    def remove(self, connection: Connection, name: str) -> Rule:
        """Forget it. Raises RuleUnknown."""
        found = self.get(connection, name)
        connection.execute(sa.delete(ALERT_RULES).where(ALERT_RULES.c.id == found.id))
        return found


def _code_is(code: str, wanted: str) -> bool:
    return code.startswith(wanted[:-1]) if wanted.endswith("*") else code == wanted


def _query() -> sa.Select[tuple[object, ...]]:
    joined = ALERT_RULES.join(ALERT_CHANNELS, ALERT_CHANNELS.c.id == ALERT_RULES.c.channel)
    return sa.select(*ALERT_RULES.c, ALERT_CHANNELS.c.name.label("channel_name")).select_from(joined)


def _rule(row: sa.Row[tuple[object, ...]]) -> Rule:
    return Rule(
        name=row.name,
        channel=row.channel_name,
        severity=Severity(row.severity),
        codes=from_json(row.codes, tuple[str, ...]),
        vault=row.vault,
        gateway=row.gateway,
        quiet_seconds=row.quiet_seconds,
        id=row.id,
        channel_id=row.channel,
        enabled=bool(row.enabled),
    )
