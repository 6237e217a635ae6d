"""``secondsite job`` against a server whose answers are given: what is shown, and how a run ends."""

from __future__ import annotations

import json

import pytest

from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.cli.common.gateways import Listing
from secondsite.cli.server import jobs
from secondsite.client.connection import ServerUnreachable
from secondsite.client.messages import JobDetail, JobProblem, JobQuestion, JobStep

ID = "019a2b3c-0000-7000-8000-000000000000"


def job(state: str, description: str = "", **more: object) -> JobDetail:
    values: dict[str, object] = {
        "id": ID,
        "kind": "test.errand",
        "title": "Protect shop",
        "state": state,
        "state_description": description or state,
        "allowed_operations": [],
        "progress": 0.5,
        "progress_text": "",
        "note": None,
        "question": None,
        "error": None,
        "warnings": 0,
        "created_by": "maria",
        "vault_id": None,
        "parent": None,
        "restart_of": None,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "started_at": None,
        "ended_at": None,
        "changed_at": "2026-01-01T00:00:00.000000Z",
        "steps": [
            JobStep(number=0, name="copy", state=state, attempt=1, error=None, started_at=None, ended_at=None)
        ],
        "output": None,
    }
    return JobDetail(**(values | more))  # type: ignore[arg-type]


class Script:
    """In place of a client: gives one answer after the other, the last one for ever."""

    def __init__(self, *answers: JobDetail | SecondsiteError) -> None:
        self.answers = list(answers)

    def job(self, name: str) -> JobDetail:
        assert name == ID
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SecondsiteError):
            raise answer
        return answer


def _follow(*answers: JobDetail | SecondsiteError, as_json: bool = False) -> int:
    return jobs.follow_job(Script(*answers), ID, Listing(json=as_json))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FOLLOW_SECONDS", 0.0)


def test_a_followed_job_tells_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    running = job("InProgress", progress_text="10 GiB of 20 GiB")
    assert _follow(running, running, job("Succeeded", "Completed", progress=1.0)) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "Protect shop: 50% 10 GiB of 20 GiB",
        "Protect shop: 100% Succeeded",
    ]
    assert "Protect shop: Succeeded, 100%, by maria" in shown.out


def test_a_server_that_goes_away_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, restarted, or another one's turn: the job goes on, and so does who looks at it."""
    gone = ServerUnreachable(server="https://server", why="Connection refused")
    busy = RemoteError({"code": "server.not-ready", "outcome": "unavailable", "happened": "It is stopping."})
    running = job("InProgress")
    assert _follow(running, gone, gone, busy, running, job("Succeeded"), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["stateDescription"] == "Succeeded"
    assert _follow(running, gone, gone, running, job("Succeeded")) == 0
    assert capsys.readouterr().err.splitlines() == [
        "Protect shop: 50% InProgress",
        f"{gone.sentences()[0]} Looking again; the job does not need this command.",
        "Protect shop: 50% InProgress",
        "Protect shop: 50% Succeeded",
    ]
    with pytest.raises(RemoteError):
        _follow(running, RemoteError({"code": "people.token-unknown", "outcome": "refused"}))
    monkeypatch.setattr(jobs, "AWAY_SECONDS_MAX", 0.0)
    with pytest.raises(ServerUnreachable):
        _follow(running, gone)


def test_a_failure_is_told_in_sentences_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = JobProblem(
        code="store.full", outcome="unavailable", happened="It is full.", cause="Data.", action="Extend it."
    )
    assert _follow(job("Failed", error=error, allowed_operations=["retry", "restart"])) == 5
    shown = capsys.readouterr().out
    for part in ("failed: It is full.", "action: Extend it.", "code:   store.full", "retry, restart"):
        assert part in shown
    assert _follow(job("Failed")) == 1
    assert _follow(job("Cancelled")) == 130


def test_a_question_ends_the_wait_and_says_how_to_answer(capsys: pytest.CaptureFixture[str]) -> None:
    asked = JobQuestion(question="Start the shop?", choices=["yes", "no"])
    assert _follow(job("Suspended", "WaitingForAnswer", question=asked)) == 5
    shown = capsys.readouterr().out
    assert f"asks: Start the shop? (yes, no); `secondsite job resume {ID} ANSWER`" in shown


def test_json_is_one_document_with_nothing_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _follow(job("InProgress"), job("Succeeded"), as_json=True) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["stateDescription"] == "Succeeded"
    assert shown.err == ""
