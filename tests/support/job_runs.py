"""Runs of jobs as one readable line: what is called, in this order, and what befalls it.

    "do a; do b!; undo b; undo a => Failed"

Words, separated by ";" (steps have one letter and come in the order in which they are first done):

    do a, verify a, undo a, clean a   this is called next, and comes to its end
      ...!     it fails for good              ...~    it fails in a way that may pass
      ...?     it asks a person               ...+5   it says "again in 5 seconds"
      ...*     its worker dies in it, by kill -9 so to speak: nothing is noted
      ...%     its worker stalls in it, until `wakes`
      ...<cancel (or any word of a person)    a person does that while it runs
    kill            a worker takes the job and dies before it begins anything
    takeover        a lease's time passes; a peer declares the silent dead
    wakes           the stalled worker goes on, and must find that nothing it writes counts
    7s              time passes
    idle            a worker looks and finds nothing to do
    cancel, retry, restart, answer yes    a person does that; with "!" it is refused
    => Failed       at the end nothing more is called and the job is that

Before a colon stand all steps and what they have: "a b/vc c/n: ..." (v verify, c clean-up, n no undo), and
"keep" where a failure keeps what was done (k: this step's failure). Without it every step has what the line
mentions of it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from secondsite.base.clock import FakeClock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.server.database.engine import Database
from secondsite.server.database.tables_jobs import job_locks
from secondsite.server.jobs import records
from secondsite.server.jobs.claims import Claims
from secondsite.server.jobs.definitions import (
    DONE,
    Ask,
    Definition,
    OnFailure,
    Registry,
    Result,
    RetryAfter,
    Step,
)
from secondsite.server.jobs.errors import LeaseLost
from secondsite.server.jobs.run import StepRun
from secondsite.server.jobs.runner import Runner
from secondsite.server.jobs.service import Jobs
from secondsite.server.jobs.states import ENDED, JobIllegal

LEASE_SECONDS = 30.0
WAIT_SECONDS_MAX = 30.0
CALL = re.compile(r"(do|verify|undo|clean) (\w)([!~?*%]|\+\d+)?(?:<(.+))?\Z")


class Passing(SecondsiteError):
    code = "test.passing"
    outcome = Outcome.UNAVAILABLE
    happened = "The planted trouble is there."
    cause = "A test."
    action = "Wait."


class Lasting(SecondsiteError):
    code = "test.lasting"
    happened = "The planted failure happened."
    cause = "A test."
    action = "Nothing."


class Killed(BaseException):
    """The worker is gone: nothing catches this, nothing is noted."""


class WrongCall(BaseException):
    """Something was called that does not stand in the line."""


class Nothing(msgspec.Struct):
    machine: str = "shop"


def words_of(line: str) -> list[str]:
    """What befalls the job, word by word."""
    script = line.rpartition(":")[2].partition("=>")[0]
    return [word.strip() for word in script.split(";") if word.strip()]


@dataclass
class Peer:
    """One worker."""

    claims: Claims
    runner: Runner
    dead: bool = False


@dataclass
class Run:
    """One line being played."""

    line: str
    database: Database
    clock: FakeClock
    turn_seconds: float = 0.0
    job: str = ""
    words: list[str] = field(default_factory=list)
    at: int = 0
    epochs: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        head = self.line.rpartition(":")[0]
        self.ends = self.line.partition("=>")[2]
        self.words = words_of(self.line)
        self.definition = self._definition(head.split())
        self.jobs = Jobs(Registry([self.definition]), self.clock)
        self.stop = threading.Event()
        self.wake = threading.Event()
        self.asleep = threading.Event()
        self.stalled: threading.Thread | None = None
        self.ended_stall: list[BaseException] = []
        self.peers: list[Peer] = []

    def _definition(self, declared: list[str]) -> Definition[Nothing]:
        has: dict[str, str] = {}
        for word in declared:
            if word != "keep":
                name, _, kinds = word.partition("/")
                has[name] = kinds
        if not declared or declared == ["keep"]:
            for word in self.words:
                if call := CALL.match(word):
                    has.setdefault(call[2], "")
                    has[call[2]] += {"verify": "v", "clean": "c"}.get(call[1], "")
        return Definition(
            kind="Line",
            version=1,
            input=Nothing,
            steps=tuple(self._step(name, kinds) for name, kinds in has.items()),
            title=lambda given: f"Line of {given.machine}",
            locks=lambda given: [f"machine:{given.machine}"],
            on_failure=OnFailure.KEEP if "keep" in declared else OnFailure.UNDO,
        )

    def _step(self, name: str, kinds: str) -> Step[Nothing]:
        return Step(
            name,
            do=lambda run: self._called("do", run),
            undo=None if "n" in kinds else lambda run: self._called("undo", run),
            verify=(lambda run: self._called("verify", run)) if "v" in kinds else None,
            clean_up=(lambda run: self._called("clean", run)) if "c" in kinds else None,
            on_failure=OnFailure.KEEP if "k" in kinds else None,
        )

    def _called(self, action: str, run: StepRun[Nothing]) -> Result:
        word = self.words[self.at] if self.at < len(self.words) else "the end"
        call = CALL.match(word)
        if call is None or (call[1], call[2]) != (action, run.step):
            raise WrongCall(
                f"{action} {run.step} was called where {word!r} should come next in {self.line!r}"
            )
        self.at += 1
        self.epochs.append(run.epoch)
        how = call[3] or ""
        if call[4]:
            self._person(call[4])
        if self._holders() != [run.job]:
            raise WrongCall(f"{word!r} runs while the machine is held by {self._holders()} in {self.line!r}")
        if how == "*":
            raise Killed
        if how == "%":
            self.asleep.set()
            assert self.wake.wait(WAIT_SECONDS_MAX)
            return DONE
        if how == "!":
            raise Lasting
        if how == "~":
            raise Passing
        if how == "?":
            return Ask("Shall it go on?", ("yes", "no"))
        return RetryAfter(float(how[1:]), "not yet") if how.startswith("+") else DONE

    def _person(self, word: str) -> None:
        refused = word.endswith("!")
        verb, _, rest = word.removesuffix("!").partition(" ")
        try:
            with self.database.write() as connection:
                match verb:
                    case "cancel":
                        self.jobs.cancel(connection, self.job, "ann")
                    case "retry":
                        self.jobs.retry(connection, self.job, "ann")
                    case "answer":
                        self.jobs.resume(connection, self.job, rest, "ann")
                    case "restart":
                        self.job = self.jobs.restart(connection, self.job, "ann")
                        self.epochs.clear()
                    case _:
                        raise WrongCall(f"{word!r} is no word of {self.line!r}")
        except JobIllegal:
            assert refused, f"{word!r} was refused in {self.line!r}"
        else:
            assert not refused, f"{word!r} was not refused in {self.line!r}"

    def play(self) -> records.Job:
        """Play the line to its end; the job as it is then. Raises AssertionError or WrongCall."""
        with self.database.write() as connection:
            self.job = self.jobs.start(connection, "Line", Nothing(), "ann")
        self._join()
        while self.at < len(self.words):
            word = self.words[self.at]
            if CALL.match(word) is None:
                self.at += 1
                self._befalls(word)
                continue
            at = self.at
            self._turn()
            assert self.at > at, (
                f"nothing was called where {word!r} should be, in {self.line!r}: {self.found()}"
            )
        self._turn()
        found = self.found()
        assert found.shown[0] == self.ends.strip() or found.state.value == self.ends.strip(), (
            self.line,
            found,
        )
        self._check(found)
        self.stop.set()
        return found

    def found(self) -> records.Job:
        with self.database.read() as connection:
            return records.get(connection, self.job)

    def _holders(self) -> list[str]:
        with self.database.read() as connection:
            return list(connection.execute(sa.select(job_locks.c.job)).scalars())

    def _befalls(self, word: str) -> None:
        if word == "kill":
            assert self.peers[0].claims.take(1, self.stop), f"nothing to take at 'kill' in {self.line!r}"
            self._dies()
        elif word == "takeover":
            self._take_over()
        elif word == "wakes":
            self.wake.set()
            assert self.stalled is not None
            self.stalled.join(WAIT_SECONDS_MAX)
            assert [type(error) for error in self.ended_stall] == [LeaseLost], self.ended_stall
        elif word == "idle":
            assert not self.peers[0].claims.take(1, self.stop), f"there was something to do in {self.line!r}"
        elif word.endswith("s") and word[:-1].isdigit():
            self.clock.advance(int(word[:-1]))
        else:
            self._person(word)

    def _join(self) -> None:
        claims = Claims(self.database, self.jobs.registry.kinds, LEASE_SECONDS)
        claims.join()
        self.peers.insert(0, Peer(claims, Runner(self.jobs, threading.Event(), self.turn_seconds)))

    def _dies(self) -> None:
        self.peers[0].dead = True

    def _take_over(self) -> None:
        self._join()
        taker = self.peers[0].claims
        assert taker.take_over() == 0, "dead at first sight"
        self.clock.advance(LEASE_SECONDS - 1)
        for peer in self.peers:
            if not peer.dead:
                assert peer.claims.beat()
        assert taker.take_over() == 0, "dead before its lease ended"
        self.clock.advance(2)
        assert taker.take_over() == sum(peer.dead for peer in self.peers)
        self.peers = [peer for peer in self.peers if not peer.dead]

    def _turn(self) -> None:
        """A worker looks once and gives the job its turn."""
        peer = self.peers[0]
        if peer.dead:
            return
        for hold in peer.claims.take(1, self.stop):
            if (self.words[self.at] if self.at < len(self.words) else "").endswith("%"):
                self.stalled = threading.Thread(target=self._stall, args=(peer, hold))
                self.stalled.start()
                assert self.asleep.wait(WAIT_SECONDS_MAX)
                peer.dead = True
                return
            try:
                peer.runner.run(hold)
            except Killed:
                self._dies()

    def _stall(self, peer: Peer, hold: object) -> None:
        try:
            peer.runner.run(hold)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - root of the thread: the test looks at it
            self.ended_stall.append(error)

    def _check(self, found: records.Job) -> None:
        """What holds at the end of every line."""
        assert self.epochs == sorted(self.epochs), "an epoch went back"
        if self.turn_seconds == 0:
            assert len(set(self.epochs)) == len(self.epochs), "two takings under one epoch"
        live = [] if found.state in ENDED else [found.id]
        assert self._holders() == live, "the lock is not the live job's"
        assert (found.ended is not None) == (found.state in ENDED)
        assert found.worker is None or self.peers[0].dead
