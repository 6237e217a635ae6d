"""Carries out what a server asks for, on this gateway's own control API.

A server may ask for what is in `PERMITTED` and nothing else: no file of this machine can be named by it but
where the table says so. What it asks for twice is done once: a call under way is left alone, and the answers
of the last ones are kept.
"""

from __future__ import annotations

import collections
import http.client
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.gateway.common.fences import Fences
from secondsite.gateway.messages.adoption import ASKED_BY, SERVER
from secondsite.gateway.messages.unixconnection import UnixConnection
from secondsite.transfer.calls import ANSWER_BODY_BYTES_MAX, UNDER_WAY_MAX, Answer, Ask, Call, Calls

log = logging.getLogger(__name__)

_MACHINE = r"[^/?]{1,255}"
# (method, path without its query). Seeds are left out: they name directories of this machine, which is for
# whoever sits at it.
PERMITTED: tuple[tuple[str, str], ...] = (
    ("PUT", r"/v1/server-backups/[0-9a-z-]{40,60}"),
    ("GET", r"/v1/(status|inventory|events|challenge|recovery-key|test-failovers)"),
    ("POST", r"/v1/recovery-key/proof"),
    ("GET", rf"/v1/operations/{_MACHINE}"),
    ("GET", rf"/v1/adoptions/{_MACHINE}"),
    ("POST", rf"/v1/adoptions/{_MACHINE}"),  # of images in this site's pools only: `adoptroutes`
    ("DELETE", rf"/v1/adoptions/{_MACHINE}"),
    ("GET", r"/v1/deletions"),
    ("DELETE", rf"/v1/machines/{_MACHINE}/replica"),
    ("GET", rf"/v1/protections/{_MACHINE}(/deep-verify)?"),
    ("PUT", rf"/v1/protections/{_MACHINE}"),
    ("DELETE", rf"/v1/protections/{_MACHINE}"),
    ("POST", rf"/v1/protections/{_MACHINE}/(point|deep-verify|pause|resume|resync)"),
    ("GET", rf"/v1/machines/{_MACHINE}/(points|retention|exports|verification|test-failover)"),
    ("POST", rf"/v1/machines/{_MACHINE}/(holds|dismissal|test-failover|verification)"),
    ("POST", rf"/v1/machines/{_MACHINE}/(test-failover|failover)/check"),
    ("POST", rf"/v1/operations/{_MACHINE}/settings"),
    ("DELETE", rf"/v1/machines/{_MACHINE}/(holds/{_MACHINE}|test-failover|verification)"),
    ("GET", rf"/v1/(peers/{_MACHINE}/check|readiness)"),
    ("GET", rf"/v1/(failovers|held|machines/{_MACHINE}/failover|failovers/{_MACHINE})"),
    ("POST", rf"/v1/machines/{_MACHINE}/failover"),
    ("DELETE", rf"/v1/machines/{_MACHINE}/failover"),
    ("POST", rf"/v1/failovers/{_MACHINE}/(change-point|commit|roll-back|retire|complete-migration)"),
    ("POST", rf"/v1/held/{_MACHINE}/(release|discard|reverse)"),
    ("GET", rf"/v1/held/{_MACHINE}/reverse(/preview)?"),
    ("DELETE", rf"/v1/held/{_MACHINE}/reverse"),
    ("GET", rf"/v1/(planned-stops|protections/{_MACHINE}/planned-stop)"),
    ("POST", rf"/v1/protections/{_MACHINE}/planned-stop"),
    ("DELETE", rf"/v1/protections/{_MACHINE}/planned-stop"),
)
_PERMITTED = [(method, re.compile(pattern + r"\Z")) for method, pattern in PERMITTED]
# Answers are kept for a server that did not get them; beyond this a repeated call is carried out again.
KEPT_ANSWERS = 64
KEPT_BYTES_MAX = 16 * 1024 * 1024
# The slowest call waits up to 120 s for a point.
CALL_SECONDS_MAX = 150.0
RETRY_SECONDS = 2.0


class CallNotPermitted(SecondsiteError):
    """A server asked for what servers may not ask for."""

    code = "calls.not-permitted"
    outcome = Outcome.REFUSED
    happened = "This gateway does not do {method} {path} for a server."
    cause = "The server is newer than the gateway, or somebody misuses it."
    action = "Compare `secondsite --version` at both ends; do it on the gateway's own machine."


class StepMissing(SecondsiteError):
    """A change without a job."""

    code = "calls.step-missing"
    outcome = Outcome.REFUSED
    happened = "The change {method} {path} names no job."
    cause = "A defect of the server: every change belongs to a step of a job."
    action = "Report it with the server's log; nothing was changed."


class AnswerTooLarge(SecondsiteError):
    """The control API said more than a server takes."""

    code = "calls.answer-too-large"
    outcome = Outcome.FAILED
    happened = "The answer to {method} {path} is larger than {limit} bytes."
    cause = "A listing of very many entries."
    action = "Ask the gateway itself, on its own machine."


class ControlUnreachable(SecondsiteError):
    """The control socket did not answer."""

    code = "calls.control-unreachable"
    outcome = Outcome.UNAVAILABLE
    happened = "The gateway's control API did not answer: {why}."
    cause = "The gateway is starting or stopping."
    action = "Nothing: it is tried again."


class CallSource(Protocol):
    """A server, as calls come from it."""

    def ask(self, ask: Ask) -> Calls:
        """Wait for work. Raises SecondsiteError when the server cannot be reached or refuses."""

    def answer(self, answer: Answer) -> None:
        """Give an answer; it is kept for a repetition when this raises."""

    def close(self) -> None:
        """End what waits; called once, from another thread."""


@dataclass(frozen=True)
class Wishes:
    """Whoever follows what the server wants, told of it by the way: it need not wait for a heartbeat."""

    known: Callable[[], int]  # the generation heard of last; -1: nobody follows
    heard: Callable[[int], None]


NO_WISHES = Wishes(known=lambda: -1, heard=lambda _generation: None)


def check_call(call: Call, fences: Fences) -> None:
    """Refuse what may not be done. Raises CallNotPermitted, StepMissing, StepOutdated."""
    path = call.path.partition("?")[0]
    if not any(method == call.method and pattern.match(path) for method, pattern in _PERMITTED):
        raise CallNotPermitted(method=call.method, path=path[:200])
    if call.method != "GET":
        if not call.job:
            raise StepMissing(method=call.method, path=path[:200])
        fences.pass_or_refuse(call.job, call.epoch)


def over_socket(socket_path: Path) -> Callable[[Call], Answer]:
    """Carries calls out over a control socket. Raises ControlUnreachable, AnswerTooLarge."""

    def carry_out(call: Call) -> Answer:
        connection = UnixConnection(socket_path, seconds_max=CALL_SECONDS_MAX)
        try:
            headers = {"content-type": "application/json", ASKED_BY: SERVER}
            connection.request(call.method, call.path, call.body.encode(), headers)
            answer = connection.getresponse()
            body = answer.read(ANSWER_BODY_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise ControlUnreachable(why=str(error) or type(error).__name__) from None
        finally:
            connection.close()
        if len(body) > ANSWER_BODY_BYTES_MAX:
            raise AnswerTooLarge(method=call.method, path=call.path, limit=ANSWER_BODY_BYTES_MAX)
        return Answer(id=call.id, status=answer.status, body=body.decode())

    return carry_out


def _refused(call: Call, error: SecondsiteError) -> Answer:
    status = 503 if error.retryable else 409
    return Answer(id=call.id, status=status, body=msgspec.json.encode(error.as_dict()).decode())


class Uplink:
    """Asks a server for calls, carries them out, answers them. `start` once, `close` at the end."""

    def __init__(
        self,
        source: CallSource,
        carry_out: Callable[[Call], Answer],
        fences: Fences,
        clock: Clock,
        wishes: Wishes = NO_WISHES,
    ) -> None:
        self._wishes = wishes
        self._source = source
        self._carry_out = carry_out
        self._fences = fences
        self._clock = clock
        self._change = threading.Condition()
        self._under_way: set[str] = set()
        self._answers: collections.OrderedDict[str, Answer] = collections.OrderedDict()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_root, name="uplink", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more; what is under way ends by itself and is asked for again by the server."""
        self._stop.set()
        with self._change:
            self._change.notify_all()
        self._source.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _run_root(self) -> None:
        while not self._stop.is_set():
            try:
                self._once()
            except SecondsiteError as error:
                log.info("the server gives no work: %s", error)
                self._clock.wait(self._stop, RETRY_SECONDS)
            except Exception:  # a thread's root: told, and tried again
                log.exception("asking the server for work failed")
                self._clock.wait(self._stop, RETRY_SECONDS)

    def _once(self) -> None:
        with self._change:
            while len(self._under_way) >= UNDER_WAY_MAX and not self._stop.is_set():
                self._change.wait()
            under_way = tuple(sorted(self._under_way))
        if self._stop.is_set():
            return
        room = UNDER_WAY_MAX - len(under_way)
        found = self._source.ask(Ask(room=room, under_way=under_way, generation=self._wishes.known()))
        self._wishes.heard(found.generation)
        for call in found.calls:
            self._begin(call)

    def _begin(self, call: Call) -> None:
        with self._change:
            if call.id in self._under_way or len(self._under_way) >= UNDER_WAY_MAX or self._stop.is_set():
                return  # the server gives it again
            self._under_way.add(call.id)
        # daemons: a gateway that ends waits for nothing that the server will ask for again
        threading.Thread(target=self._work_root, args=(call,), name=f"call {call.id}", daemon=True).start()

    def _work_root(self, call: Call) -> None:
        try:
            self._source.answer(self._answer_to(call))
        except SecondsiteError as error:
            log.info("the answer to call %s did not arrive: %s", call.id, error)
        except Exception:  # a thread's root: told; the server gives the call again
            log.exception("call %s failed", call.id)
        finally:
            with self._change:
                self._under_way.discard(call.id)
                self._change.notify_all()

    def _answer_to(self, call: Call) -> Answer:
        with self._change:
            kept = self._answers.get(call.id)
        if kept is not None:
            return kept
        try:
            check_call(call, self._fences)
            answer = self._carry_out(call)
        except SecondsiteError as error:
            answer = _refused(call, error)
        if answer.ok and call.method != "GET":  # what failed changed nothing, and may be tried again
            self._keep(answer)
        return answer

    def _keep(self, answer: Answer) -> None:
        with self._change:
            self._answers[answer.id] = answer
            while len(self._answers) > KEPT_ANSWERS or self._kept_bytes() > KEPT_BYTES_MAX:
                self._answers.popitem(last=False)

    def _kept_bytes(self) -> int:
        return sum(len(answer.body) for answer in self._answers.values())
