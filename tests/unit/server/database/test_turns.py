"""Turns: in order, with an end to waiting."""

from __future__ import annotations

import threading

from secondsite.server.database.turns import Turns
from support.until import until


def test_they_come_in_the_order_they_were_asked_for() -> None:
    turns, came = Turns(), list[int]()
    assert turns.acquire(1)
    assert not turns.acquire(0.01)

    def take(number: int) -> None:
        assert turns.acquire(30)
        came.append(number)
        turns.release()

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda: len(turns._line) == number + 1, "its place in the line")  # noqa: B023 - used at once
    turns.release()
    for thread in threads:
        thread.join(30)
    assert came == [0, 1, 2, 3, 4]
    assert turns.acquire(0), "free again"
