"""The bandwidth limit and the waits between attempts, on a clock moved by hand."""

from __future__ import annotations

import random
import threading

import pytest

from secondsite.base.clock import FakeClock
from secondsite.base.errors import SecondsiteError
from secondsite.transfer.bandwidth import BURST_SECONDS, TokenBucket
from secondsite.transfer.errors import LinkDown, ProtocolViolation, TransferCancelled
from secondsite.transfer.retry import RetryPolicy, retry


@pytest.mark.parametrize("block", [1_000, 10_000, 1_000_000])
def test_bytes_leave_at_the_rate_and_not_faster(block: int) -> None:
    clock, never = FakeClock(), threading.Event()
    bucket = TokenBucket(100_000, clock)
    sent = 0
    while clock.monotonic() < 60:
        bucket.take(block, never)
        sent += block
    assert sent <= 100_000 * (clock.monotonic() + BURST_SECONDS) + block
    assert sent >= 100_000 * 60 - block


def test_a_pause_saves_up_no_more_than_the_burst() -> None:
    clock, never = FakeClock(), threading.Event()
    bucket = TokenBucket(1_000, clock)
    clock.advance(3600)
    before = clock.monotonic()
    for _ in range(10):
        bucket.take(1_000, never)
    assert clock.monotonic() - before == pytest.approx(10 - BURST_SECONDS)


def test_no_limit_never_waits_and_a_new_limit_holds_at_once() -> None:
    clock, never = FakeClock(), threading.Event()
    bucket = TokenBucket(None, clock)
    bucket.take(10**12, never)
    assert clock.monotonic() == 0
    bucket.set_rate(1_000)
    bucket.take(2_000, never)
    assert clock.monotonic() == pytest.approx(2)
    bucket.set_rate(None)
    bucket.take(10**12, never)
    assert clock.monotonic() == pytest.approx(2)


def test_waiting_for_bandwidth_can_be_cancelled() -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(TransferCancelled):
        TokenBucket(1, FakeClock()).take(1_000_000, cancel)


def test_waits_double_up_to_the_limit_with_jitter() -> None:
    policy, chance = RetryPolicy(first_seconds=1, seconds_max=30), random.Random(3)
    for attempt in range(1, 40):
        whole = min(30, 2.0 ** (attempt - 1))
        assert whole / 2 <= policy.seconds(attempt, chance) <= whole
    assert len({policy.seconds(9, chance) for _ in range(20)}) == 20


def test_only_what_may_pass_is_tried_again() -> None:
    clock, attempts = FakeClock(), 0

    def call() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 5:
            raise LinkDown(peer="b", why="cut")
        return "done"

    def run(target: object, cancel: threading.Event) -> object:
        assert callable(target)
        return retry(target, policy=RetryPolicy(), clock=clock, chance=random.Random(1), cancel=cancel)

    assert run(call, threading.Event()) == "done"
    assert attempts == 5
    assert clock.monotonic() > 0

    def refuse() -> None:
        raise ProtocolViolation(peer="b", why="x")

    with pytest.raises(SecondsiteError) as caught:
        run(refuse, threading.Event())
    assert isinstance(caught.value, ProtocolViolation)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(TransferCancelled):
        run(call, cancelled)
