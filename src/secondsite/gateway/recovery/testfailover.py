"""Test failovers as records: what will be done is written first, so that a crash leaves no orphan.

A record is ``<state>/test-failovers/<id>.json``. It stays after the clean-up, with the notes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from secondsite.base import files
from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.fabrics.base import Recovered
from secondsite.gateway.messages.gateway import PointSummary
from secondsite.gateway.messages.testfailover import StartTestFailover, TestFailoverState, TestFailoverStatus
from secondsite.gateway.messages.wire import Wire
from secondsite.model import recovered
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.outlook import Outlook
from secondsite.model.recovered import RecoveredSettings

RECORD_BYTES_MAX = 1024 * 1024

# What still has something at the hypervisor, and so keeps the machine's test name and network taken.
STANDING = {
    TestFailoverState.INITIATED,
    TestFailoverState.COMPLETED,
    TestFailoverState.CLEANUP_INITIATED,
    TestFailoverState.CLEANUP_FAILED,
}


class TestFailoverRunning(SecondsiteError):
    """One at a time."""

    __test__ = False
    code = "test-failover.exists"
    outcome = Outcome.REFUSED
    happened = "{machine} has a test failover already: {name} from point {point}, {state}."
    cause = "One test failover a machine may stand at a time."
    action = "Clean it up first: `secondsite test-failover clean-up {machine} --notes TEXT`."


class NoTestFailover(SecondsiteError):
    """Nothing to clean up."""

    __test__ = False
    code = "test-failover.none"
    outcome = Outcome.NOT_FOUND
    happened = "{machine} has no test failover to clean up."
    cause = "None was started, or it was cleaned up already."
    action = "List them with `secondsite test-failover list`."


class TestFailoverCalledOff(SecondsiteError):
    """Its clean-up came before it."""

    __test__ = False
    code = "test-failover.called-off"
    outcome = Outcome.REFUSED
    happened = "The test failover {id} of {machine} was not started: it was called off before."
    cause = "Whoever asked for it took that back, and the request for its clean-up came first."
    action = "Nothing; ask for another one where it is still wanted."


class OperationTaken(SecondsiteError):
    """One id for two machines."""

    code = "operation.taken"
    outcome = Outcome.REFUSED
    happened = "The operation {id} is a test failover of {other}, not of {machine}."
    cause = "Whoever asks used one id twice."
    action = "Ask with another id; nothing was started."


class OperationUnknown(SecondsiteError):
    """No such operation."""

    code = "operation.unknown"
    outcome = Outcome.NOT_FOUND
    happened = "There is no operation {id}."
    cause = "The id is mistyped, or belongs to another gateway."
    action = "List test failovers with `secondsite test-failover list`."


class PrerequisitesFailed(SecondsiteError):
    """Checked before anything is made; every failure is listed, not only the first."""

    code = "test-failover.prerequisites"
    outcome = Outcome.REFUSED
    happened = "The test failover of {machine} was not started: {failures}."
    cause = "The prerequisite check found what would make it fail; nothing was made."
    action = "Correct what is listed and start it again."


class TestFailoverInterrupted(SecondsiteError):
    """The gateway ended in the middle."""

    __test__ = False
    code = "test-failover.interrupted"
    outcome = Outcome.UNAVAILABLE
    happened = "The test failover of {machine} was interrupted during '{step}'."
    cause = "The gateway ended while it was being started."
    action = "Start it again; what had been made for it was removed."


class TestFailoverDefect(SecondsiteError):
    """A defect of ours ended it."""

    __test__ = False
    code = "test-failover.defect"
    happened = "The test failover of {machine} failed: {kind}: {text}."
    cause = (
        "A defect in secondsite, or an error of the hypervisor it does not know; the log has the traceback."
    )
    action = "Report it with the gateway's log; what had been made was removed as far as possible."


class TestFailoverRecordDamaged(SecondsiteError):
    """A record does not parse."""

    __test__ = False
    code = "test-failover.record-damaged"
    outcome = Outcome.DAMAGED
    happened = "The record {path} of a test failover cannot be read: {why}."
    cause = "The gateway's state directory lost or changed bytes, or the file was edited by hand."
    action = (
        "Put the file back from a copy. Or remove what it made by what is known without it: `secondsite "
        "test-failover clean-up MACHINE --force --notes TEXT`. Where that finds nothing, remove the test "
        "machine and its network at the hypervisor and move the file away."
    )


class TestFailoverPlan(Wire, frozen=True, kw_only=True):
    """What a test failover would boot, as which machine: all it needs is there."""

    __test__ = False

    point: PointSummary
    name: str
    network: str
    settings: RecoveredSettings | None = None
    outlook: Outlook | None = None


def plan_request(query: Mapping[str, str]) -> StartTestFailover:
    """What a test failover is asked about with, from a query; settings as JSON. Raises InvalidInput."""
    asked: dict[str, object] = dict(query)
    try:
        if "settings" in query:
            asked["settings"] = recovered.to_object(recovered.decode(query["settings"]))
        return msgspec.convert(asked, type=StartTestFailover)
    except msgspec.ValidationError as error:
        raise InvalidInput(what="the query", why=str(error)) from None


class TestFailoverRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The status, and what has to be found again to remove it."""

    __test__ = False
    status: TestFailoverStatus
    network_made: str | None = None  # written before it is made
    recovered: Recovered | None = None
    bases: dict[DiskId, str] = {}  # where they lie now, if not where the store says


class TestFailoverRecords:
    """The directory of records. Not locked: `Recovery` holds its lock around every change."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        files.remove_leftovers(directory)

    def save(self, record: TestFailoverRecord) -> None:
        """Durable before it returns."""
        files.replace_file(self._path(record.status.id), msgspec.json.encode(record))

    def get(self, identity: str) -> TestFailoverRecord:
        """One record. Raises OperationUnknown, TestFailoverRecordDamaged."""
        with contextlib.suppress(FileNotFoundError):
            if identity.isalnum():
                data = files.read_limited(self._path(identity), size_bytes_max=RECORD_BYTES_MAX)
                try:
                    return msgspec.json.decode(data, type=TestFailoverRecord)
                except JSON_ERRORS as error:
                    raise TestFailoverRecordDamaged(path=self._path(identity), why=error) from None
        raise OperationUnknown(id=identity[:80])

    def all(self) -> list[TestFailoverRecord]:
        """Oldest first, without those that cannot be read."""
        found = []
        for identity in self.identities():
            with contextlib.suppress(TestFailoverRecordDamaged):
                found.append(self.get(identity))
        return sorted(found, key=lambda record: (record.status.requested_at, record.status.id))

    def identities(self) -> set[str]:
        """Of all, readable or not: what a damaged one stands on must not be taken for left over."""
        # a record being replaced has a temporary beside it, whose name has a dot and a dash
        return {path.stem for path in self._directory.glob("*.json") if path.stem.isalnum()}

    def damaged(self) -> list[TestFailoverRecordDamaged]:
        """Why those cannot be read that cannot."""
        return [error for _, error in self._unread()]

    def unreadable(self) -> list[str]:
        """The ids of those."""
        return [identity for identity, _ in self._unread()]

    def _unread(self) -> list[tuple[str, TestFailoverRecordDamaged]]:
        found = []
        for identity in sorted(self.identities()):
            try:
                self.get(identity)
            except TestFailoverRecordDamaged as error:
                found.append((identity, error))
        return found

    def put_aside(self, identity: str) -> None:
        """Keep a copy of one that cannot be read; `save` puts another in its place."""
        path = self._path(identity)
        files.replace_file(
            path.with_suffix(".damaged"), files.read_limited(path, size_bytes_max=RECORD_BYTES_MAX)
        )

    def standing(self, machine: MachineId) -> TestFailoverRecord | None:
        """The one that still has something at the hypervisor, if any."""
        for record in self.all():
            if record.status.machine == machine and record.status.state in STANDING:
                return record
        return None

    def _path(self, identity: str) -> Path:
        return self._directory / f"{identity}.json"
