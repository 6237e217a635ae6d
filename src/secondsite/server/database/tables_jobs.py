"""Tables of the job engine (docs/jobs.md says how they work together)."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, Named, Table, TypedColumns

from secondsite.server.database.metadata import METADATA


class _Jobs(TypedColumns):
    id: Named[str] = Column(primary_key=True)
    kind: Named[str]  # which definition
    version: Named[int]  # of the definition whose steps stand in job_steps
    title: Named[str]  # for people, "Test failover of shop"
    actor: Named[str]  # who asked for it
    vault: Named[
        str | None
    ]  # an id: who may see and steer it; NULL: the server's own, for roles held everywhere
    parent: Named[str | None] = Column(ForeignKey("jobs.id", ondelete="CASCADE"))
    child_key: Named[
        str | None
    ]  # "<step>/<name>": one child of a parent for each, so that starting it is idempotent
    restart_of: Named[str | None]  # the ended job this one does again; it may be gone already
    input: Named[str]  # JSON of the definition's input
    output: Named[str | None]  # JSON, of the last step that gave one
    state: Named[str]  # states.JobState
    step: Named[int]  # the step that is due, by number; as many as there are steps: none is left
    action: Named[str]  # what is due of it: do, verify, undo, clean-up
    cancel_asked: Named[str | None]  # moment; the running step finishes first
    cancel_actor: Named[str | None]
    retries: Named[int]  # how often a person had it tried again: what a step asks for then is asked anew
    # of a child: how often its parent had been tried again when it was begun last
    parent_retries: Named[int] = Column(server_default="0")
    retry_actor: Named[str | None]  # who had it tried again last: may not approve what it asks then
    question: Named[str | None]  # JSON, while Suspended
    answer: Named[str | None]  # the last one given, for the step that asked
    error: Named[str | None]  # JSON of an error's sentences
    note: Named[str | None]  # why it waits
    warnings: Named[int]  # clean-ups that were given up; the log has them
    progress: Named[float]  # 0..1; it never goes back while the job goes forward
    progress_text: Named[str]
    ready: Named[str | None]  # moment from which a worker may take it; NULL: only a wake makes it due
    woken: Named[int]  # something happened while a worker had it: it must look again before it waits
    worker: Named[str | None] = Column(ForeignKey("job_workers.id"))  # who has it
    epoch: Named[int]  # grows with each taking; every write of a worker names it
    revision: Named[int]  # grows with each write of a worker: tells whether a write of unknown end was kept
    created: Named[str]
    started: Named[str | None]
    ended: Named[str | None]
    changed: Named[str]


jobs = Table(
    "jobs",
    METADATA,
    _Jobs,
    Index(None, "worker", "ready"),  # what may be taken, oldest first
    Index(None, "parent", "child_key", unique=True),
    Index(None, "state", "id"),
    Index(None, "vault", "id"),  # what somebody with a role on some vaults is shown
    Index(None, "ended"),
)


class _Steps(TypedColumns):
    job: Named[str] = Column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    name: Named[str]
    state: Named[str]  # states.StepState
    attempt: Named[int]  # tries of the action that is due, from 1; 0: not begun
    epoch: Named[int]  # of the last try
    failures: Named[int]  # tries in a row that failed in a way that may pass
    lost: Named[int]  # tries whose worker vanished
    output: Named[str | None]  # JSON
    error: Named[str | None]  # JSON
    started: Named[str | None]
    ended: Named[str | None]


job_steps = Table("job_steps", METADATA, _Steps)


class _Log(TypedColumns):
    id: Named[int] = Column(Integer, primary_key=True)
    job: Named[str] = Column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Named[str]
    step: Named[str]  # empty: about the job
    level: Named[str]  # info, warning, error
    text: Named[str]


job_log = Table("job_log", METADATA, _Log, Index(None, "job", "id"))


class _Locks(TypedColumns):
    key: Named[str] = Column(primary_key=True)  # "machine:<id>"
    job: Named[str] = Column(ForeignKey("jobs.id", ondelete="CASCADE"))


job_locks = Table("job_locks", METADATA, _Locks, Index(None, "job"))


class _Workers(TypedColumns):
    id: Named[str] = Column(primary_key=True)  # a new one for every start of a worker
    name: Named[str]  # for people: host and process
    process: Named[str]  # processes.own(): peers on the same machine see at once that it is gone
    beat: Named[
        int
    ]  # grows while it lives; others judge by its standing still, never by a clock of the other's
    started: Named[str]
    seen: Named[str]  # of the last beat, for people


job_workers = Table("job_workers", METADATA, _Workers)
