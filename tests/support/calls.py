"""The in-memory twin of a server that has work for a gateway."""

from __future__ import annotations

import threading

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.transfer.calls import Answer, Ask, Call, Calls


class ServerCutOff(SecondsiteError):
    """The link to the server is cut."""

    code = "test.server-cut-off"
    outcome = Outcome.UNAVAILABLE
    happened = "The server is cut off."
    cause = "A test says so."
    action = "Nothing."


class MemoryCalls:
    """Gives what is open and not under way, as a server does; `cut_answers` lose that many on their way."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._open: dict[str, Call] = {}
        self._closed = False
        self.answers: dict[str, Answer] = {}
        self.asked: list[Ask] = []
        self.cut_answers = 0
        self.generation = -1  # of what is wanted

    def put(self, *calls: Call) -> None:
        with self._change:
            self._open.update({call.id: call for call in calls})
            self._change.notify_all()

    def ask(self, ask: Ask) -> Calls:
        with self._change:
            self.asked.append(ask)
            self._change.wait_for(lambda: self._closed or self._ready(ask), 0.2)
            return Calls(calls=tuple(self._ready(ask)[: ask.room]), generation=self.generation)

    def _ready(self, ask: Ask) -> list[Call]:
        return [call for call in self._open.values() if call.id not in ask.under_way]

    def answer(self, answer: Answer) -> None:
        with self._change:
            if self.cut_answers:
                self.cut_answers -= 1
                raise ServerCutOff
            self._open.pop(answer.id, None)
            self.answers[answer.id] = answer
            self._change.notify_all()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()

    def answered(self, *ids: str) -> list[Answer]:
        """Wait for answers."""
        with self._change:
            assert self._change.wait_for(lambda: all(one in self.answers for one in ids), 60), self.answers
            return [self.answers[one] for one in ids]
