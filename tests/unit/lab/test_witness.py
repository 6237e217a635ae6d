"""The witness knows what a point must and must not hold; here the guest is a socket of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secondsite.lab import processes
from secondsite.lab.witness import Expectation, Witness


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class FakeGuest:
    """The guest's end of the channel."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.connection: socket.socket | None = None
        self.tokens: list[int] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        self.connection, _ = self.listener.accept()
        with self.connection.makefile() as lines:
            self.tokens.extend(int(line.split()[1]) for line in lines)

    def say(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.sendall(data)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeGuest]:
    guest = FakeGuest(tmp_path / "channel")
    yield guest
    guest.listener.close()
    if guest.connection is not None:
        guest.connection.close()


def test_acknowledgements_count_from_their_arrival_and_tokens_from_their_sending(
    fake: FakeGuest, tmp_path: Path
) -> None:
    now = [1000.0]
    witness = Witness(utc=lambda: now[0])
    witness.attach(tmp_path / "channel")
    processes.wait_until(lambda: len(fake.tokens) > 3, what="tokens", root=tmp_path, seconds=10)
    fake.say(b"A 1 2\nA 2 3\nA")
    processes.wait_until(lambda: witness.acknowledged == 2, what="records", root=tmp_path, seconds=10)
    now[0] = 2000.0
    fake.say(b" 3 9\nnonsense\nA 4 9\n")
    processes.wait_until(lambda: witness.acknowledged == 4, what="records", root=tmp_path, seconds=10)
    sent = len(fake.tokens) + 1  # one may have been on its way when the clock was moved
    processes.wait_until(lambda: len(fake.tokens) > sent, what="later tokens", root=tmp_path, seconds=10)
    witness.close()
    early, late = witness.expectation(at(1500), at(1500)), witness.expectation(at(2500), at(2500))
    assert early.last_at_least == 2
    assert late.last_at_least == 4
    assert 3 < early.token_at_most < late.token_at_most
    # an acknowledgement that arrives in the very moment the instant was asked for proves nothing
    assert witness.expectation(at(1000), at(1000)).last_at_least == 0


def test_a_channel_that_closes_is_told(fake: FakeGuest, tmp_path: Path) -> None:
    witness = Witness()
    witness.attach(tmp_path / "channel")
    processes.wait_until(lambda: fake.connection, what="a connection", root=tmp_path, seconds=10)
    assert fake.connection is not None
    fake.connection.shutdown(socket.SHUT_RDWR)
    processes.wait_until(lambda: witness.trouble, what="trouble", root=tmp_path, seconds=10)
    witness.close()


def test_what_a_point_must_show() -> None:
    expected = Expectation(last_at_least=10, token_at_most=50)
    assert not expected.unmet(last=10, token=50)
    assert not expected.unmet(last=11, token=3)
    assert "record 10 was acknowledged" in expected.unmet(last=9, token=50)
    assert "token 51 was sent after" in expected.unmet(last=10, token=51)
