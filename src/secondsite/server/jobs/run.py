"""What a step's function is given: its input, what earlier steps left, and ways to tell how it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.server.database.tables_jobs import jobs
from secondsite.server.database.values import to_json
from secondsite.server.jobs.definitions import Input, Registry
from secondsite.server.jobs.errors import CancelAsked, OutputMissing
from secondsite.server.jobs.lease import Hold
from secondsite.server.jobs.records import Job, job_of, problem_of
from secondsite.server.jobs.service import ApprovalAsked, Jobs, add_log
from secondsite.server.jobs.states import ENDED_BADLY, Action, JobState

T = TypeVar("T")
Output = TypeVar("Output", bound=msgspec.Struct)

# A step may tell its progress as often as it likes; the database hears of it twice a second.
PROGRESS_SECONDS = 0.5
# What of a job's children is tried again with it.
_FAILED = {state.value for state in ENDED_BADLY}


class StepRun(Generic[Input]):
    """One call of a step's function. What writes raises LeaseLost when another worker has the job."""

    def __init__(
        self,
        *,
        hold: Hold,
        jobs: Jobs,
        action: Action,
        step: str,
        attempt: int,
        retries: int,
        given: Input,
        answer: str | None,
        outputs: Mapping[str, str],
        overall: Callable[[float], float],
    ) -> None:
        self._hold = hold
        self._jobs = jobs
        self._outputs = outputs
        self._overall = overall
        self._told = float("-inf")
        self.action = action
        self.step = step
        self.attempt = attempt  # of this action, from 1
        self.retries = retries  # how often a person had the job tried again
        self.input = given
        self.answer = answer  # to the question this step asked

    @property
    def job(self) -> str:
        """The job's id; with `epoch` what a gateway is called with."""
        return self._hold.job

    @property
    def epoch(self) -> int:
        """Grows with each taking of the job; whoever acts for it refuses one lower than he has seen."""
        return self._hold.epoch

    @property
    def clock(self) -> Clock:
        """The server's clock."""
        return self._jobs.clock

    def output_of(self, step: str, kind: type[Output]) -> Output:
        """What a step left, also this one's own `do`. Raises OutputMissing."""
        if step not in self._outputs:
            raise OutputMissing(step=step)
        return msgspec.json.decode(self._outputs[step], type=kind)

    def progress(self, fraction: float, text: str) -> bool:
        """Tell how far this step is, 0..1; True when a cancel was asked for (it may end early, or not)."""
        now = self.clock.monotonic()
        if now - self._told < PROGRESS_SECONDS:
            return False
        self._told = now
        forward = self.action in {Action.DO, Action.VERIFY}

        def work(_connection: Connection, row: Row[Any]) -> tuple[dict[str, object], bool]:
            values: dict[str, object] = {"progress_text": text[:200]}
            if forward:
                values["progress"] = max(row.progress, self._overall(min(max(fraction, 0.0), 1.0)))
            return values, row.cancel_asked is not None

        return self._hold.write(work)

    def cancel_asked(self) -> bool:
        """Whether a person wants the job cancelled."""
        return self._hold.write(lambda _connection, row: ({}, row.cancel_asked is not None))

    def log(self, text: str, level: str = "info") -> None:
        """One line for the job's log."""
        now = self._hold.database.now()

        def work(connection: Connection, _row: Row[Any]) -> tuple[dict[str, object], None]:
            add_log(connection, self.job, now, text, step=self.step, level=level)
            return {}, None

        self._hold.write(work)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Write rows of the server's own in a transaction that only the holder of this job can have."""
        return self._hold.write(lambda connection, _row: ({}, work(connection)))

    def tell_approval(self, connection: Connection, asked: ApprovalAsked) -> None:
        """Inside a `write`: have it known that the job asks for an approval."""
        self._jobs.on_approval(connection, asked)

    @property
    def registry(self) -> Registry:
        """The kinds of jobs there are."""
        return self._jobs.registry

    def start_child(
        self,
        kind: str,
        given: msgspec.Struct,
        key: str,
        *,
        check: Callable[[Connection], None] | None = None,
        refused: SecondsiteError | None = None,
    ) -> str:
        """The id of the child job of that key, started if it was not yet.

        check: raises what is in its way, in the transaction it begins in. refused: why it could not begin: it
        stands there as failed, for a retry. Raises LockHeld, CancelAsked, and what `check` raises.
        """

        def work(connection: Connection, row: Row[Any]) -> tuple[dict[str, object], str]:
            found = self._child(connection, key)
            if found is not None:
                return {}, str(found.id)
            if row.cancel_asked is not None and self.action is not Action.UNDO:
                raise CancelAsked(job=self.job)
            if check is not None:
                check(connection)
            return {}, self._jobs.start(
                connection,
                kind,
                given,
                row.actor,
                vault=row.vault,
                parent=self.job,
                child_key=self._child_key(key),
                parent_retries=row.retries,
                refused=refused,
            )

        return self._hold.write(work)

    def retry_child(self, key: str) -> None:
        """Have a child that failed tried again, once for each time that this job was.

        One whose lock somebody else has stays failed, and its error says who.
        """

        def work(connection: Connection, row: Row[Any]) -> tuple[dict[str, object], None]:
            # the parent's row is locked before the child's, against the rule: nobody who has the row of a
            # child that has ended wants its parent's
            found = self._child(connection, key)
            if found is None or found.parent_retries >= row.retries or found.state not in _FAILED:
                return {}, None
            if row.cancel_asked is not None:
                raise CancelAsked(job=self.job)
            values: dict[str, object] = {"parent_retries": row.retries}
            busy = self._jobs.in_the_way(connection, found.id)
            if busy is None:
                self._jobs.retry(connection, found.id, row.retry_actor or row.actor)
            else:
                values["error"] = to_json(problem_of(busy))
            connection.execute(jobs.update().where(jobs.c.id == found.id).values(**values))
            return {}, None

        self._hold.write(work)

    def _child_key(self, key: str) -> str:
        return f"{self.step}/{self.action.value}/{key}"

    def _child(self, connection: Connection, key: str) -> Row[Any] | None:
        mine = (jobs.c.parent == self.job, jobs.c.child_key == self._child_key(key))
        return connection.execute(sa.select(jobs).where(*mine)).one_or_none()

    def children(self) -> dict[str, Job]:
        """The child jobs that this action of this step has started, by their key."""
        begins = self._child_key("")
        with self._hold.database.read() as connection:
            rows = connection.execute(
                sa.select(jobs).where(jobs.c.parent == self.job).order_by(jobs.c.id)
            ).all()
        return {
            row.child_key.removeprefix(begins): job_of(row)
            for row in rows
            if row.child_key.startswith(begins)
        }


def all_succeeded(children: Mapping[str, Job]) -> bool:
    """Whether every child came to a good end."""
    return all(child.state is JobState.SUCCEEDED for child in children.values())
