"""What a copy of a server's state says, found out by opening all of it: every frame, every row, its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from cryptography import x509

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput
from secondsite.base.parse import JSON_ERRORS
from secondsite.server.database.values import moment
from secondsite.server.identity.authority import Known, Phase, open_authority, server_leaf, signature_by
from secondsite.server.identity.envelopes import MasterKey
from secondsite.server.jobs.states import LIVE
from secondsite.server.survival.container import BackupReader
from secondsite.server.survival.dump import Closing, Contents
from secondsite.server.survival.errors import BackupDamaged
from secondsite.server.survival.restore import read_contents
from secondsite.transfer.certificates import certificate_pem
from secondsite.transfer.pki import Leaf

JOBS_SHOWN = 100
_LIVE = frozenset(state.value for state in LIVE)


class JobUnderWay(msgspec.Struct, frozen=True, rename="camel"):
    """A job that lived when the copy was made."""

    id: str
    kind: str
    state: str


class AuthorityRow(msgspec.Struct, frozen=True, rename="camel"):
    """An authority as it lies in the database: its key is an envelope, which the master key opens."""

    id: str
    certificate: str
    key_envelope: str
    phase: str


class Other(msgspec.Struct, frozen=True, rename="camel"):
    """Another standby, or a former active server, that the state knows."""

    id: str
    name: str
    url: str


class Summary(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Of one copy; see the module."""

    name: str
    file: str
    id: str
    server: str
    incarnation: int
    made_at: str
    verified_at: str
    size: int
    rows: int
    program: str
    revision: str
    handed_over_at: str | None = None
    jobs_under_way: int = 0
    jobs: tuple[JobUnderWay, ...] = ()  # the first of them
    vaults: int = 0
    gateways: int = 0
    items: int = 0
    authorities: tuple[AuthorityRow, ...] = ()
    others: tuple[Other, ...] = ()

    @property
    def order(self) -> tuple[int, str]:
        """What makes one newer than another: a later life counts more than a later time."""
        return self.incarnation, self.made_at


class _Seen:
    """Collects what of the rows is told."""

    def __init__(self) -> None:
        self.jobs: list[JobUnderWay] = []
        self.live = 0
        self.authorities: list[dict[str, object]] = []
        self.phases: dict[str, str] = {}
        self.others: list[Other] = []
        self.handed_over_at: str | None = None
        self.counts: Counter[str] = Counter()
        self.of: dict[str, Callable[[dict[str, object]], None]] = {
            "jobs": self._job,
            "authorities": self.authorities.append,
            "authority_phases": lambda row: self.phases.update({str(row["authority"]): str(row["phase"])}),
            "server_state": self._state,
            "server_standbys": self._other,
        }

    def all_authorities(self) -> tuple[AuthorityRow, ...]:
        """Each with where it stands."""
        return tuple(
            AuthorityRow(
                str(row["id"]),
                str(row["certificate"]),
                str(row["key_envelope"]),
                self.phases.get(str(row["id"]), Phase.CURRENT.value),
            )
            for row in self.authorities
        )

    def _job(self, row: dict[str, object]) -> None:
        if row["state"] not in _LIVE or row["kind"] == "server.backup":
            return
        self.live += 1
        if len(self.jobs) < JOBS_SHOWN:
            self.jobs.append(JobUnderWay(str(row["id"]), str(row["kind"]), str(row["state"])))

    def _state(self, row: dict[str, object]) -> None:
        at = row.get("handed_over_at")
        self.handed_over_at = str(at) if at else None

    def _other(self, row: dict[str, object]) -> None:
        self.others.append(Other(str(row["id"]), str(row["name"]), str(row["url"])))


def examine(path: Path, name: str, master: MasterKey, clock: Clock) -> Summary:
    """Open all of a backup. Raises BackupDamaged, BackupForeign, BackupTooNew, OSError."""
    with path.open("rb") as file:
        reader = BackupReader(file, master, name)
        lines = reader.lines()
        contents = read_contents(lines, name)
        seen = _Seen()
        rows = _read(contents, lines, seen, name)
    counts = {table.name: table.rows for table in contents.tables}
    return Summary(
        name=name,
        file=path.name,
        id=reader.head.id,
        server=reader.head.server,
        incarnation=reader.head.incarnation,
        made_at=contents.made_at,
        verified_at=moment(clock.utc()),
        size=path.stat().st_size,
        rows=rows,
        program=contents.program,
        revision=contents.revision,
        handed_over_at=seen.handed_over_at,
        jobs_under_way=seen.live,
        jobs=tuple(seen.jobs),
        vaults=counts.get("vaults", 0),
        gateways=counts.get("gateways", 0),
        items=counts.get("protected_items", 0),
        authorities=seen.all_authorities(),
        others=tuple(seen.others),
    )


def _read(contents: Contents, lines: Iterator[bytes], seen: _Seen, name: str) -> int:
    rows = 0
    try:
        for table in contents.tables:
            told = seen.of.get(table.name)
            for _ in range(table.rows):
                line = next(lines, None)
                if line is None:
                    raise BackupDamaged(what=name, why=f"rows of its table {table.name} are missing")
                rows += 1
                if told is not None:
                    row = msgspec.json.decode(line, type=list[str | int | float | dict[str, str] | None])
                    told(dict(zip(table.columns, row, strict=True)))
        closing = msgspec.json.decode(next(lines, b""), type=Closing)
    except (*JSON_ERRORS, KeyError, ValueError) as error:
        raise BackupDamaged(what=name, why=f"a row does not parse: {error}") from None
    if closing.end != rows or next(lines, None) is not None:
        raise BackupDamaged(what=name, why="it has another number of rows than it says")
    return rows


class StandbyAuthority:
    """The server's authority, as a copy has it: for the standby's own certificate and its claim."""

    def __init__(self, summary: Summary, master: MasterKey) -> None:
        """Raises EnvelopeUnopened, InvalidInput."""
        known = [
            open_authority(master, row.id, row.certificate, row.key_envelope, Phase(row.phase))
            for row in summary.authorities
        ]
        current = next((one for one in known if one.phase is Phase.CURRENT), None)
        if current is None:
            raise InvalidInput(what=f"the copy {summary.name}", why="no authority of it signs")
        self._known: list[Known] = known
        self._current = current
        others = [one for one in known if one.phase in {Phase.NEXT, Phase.RETIRING}]
        trusted = [current, *others]
        self.bundle = "".join(certificate_pem(one.signer.certificate).decode() for one in trusted)

    @property
    def certificates(self) -> list[x509.Certificate]:
        """Of every authority the server has had."""
        return [one.signer.certificate for one in self._known]

    def signing(self) -> str:
        """Names the one that signs now."""
        return self._current.id

    def sign(self, message: bytes) -> bytes:
        """A signature over something of our own protocol."""
        return signature_by(self._current.signer, message)

    def leaf(self, name: str, names: list[str], clock: Clock) -> Leaf:
        """A certificate for the standby's own listener."""
        return server_leaf(self._current.signer, name, names, clock)
