"""A real guest whose checkpoints are deleted behind our back: compared, not copied; then verified deeply."""

from __future__ import annotations

import contextlib

import pytest

from secondsite.base.units import MIB
from secondsite.gateway.messages.gateway import DeepVerification
from secondsite.lab import processes
from support.pair import Pair
from support.station import Station

pytestmark = [pytest.mark.e2e, pytest.mark.libvirt, pytest.mark.fault, pytest.mark.timeout(400)]


def test_checkpoints_deleted_behind_our_back_cost_a_compare_and_a_deep_verify_finds_nothing(
    station: Station, unprotected: Pair
) -> None:
    pair = unprotected
    pair.protect()
    pair.wait_protected()
    older = pair.compare_now()
    first_copy = sum(point.sent_bytes for point in pair.points()[:1])
    assert first_copy > 8 * MIB
    # killed, so that the table of what the target holds is void as well
    station.gateways.running["A"].kill()
    delete_checkpoints(pair)
    pair.wait_records(20)
    station.settle_gateways()
    newer = pair.compare_now()
    text = event(pair, "replicate.resynced")
    resynced = next(point for point in pair.points() if point.number > older[0].number)
    assert resynced.sent_bytes < first_copy / 4, f"{text}\n{pair.log_tails()}"
    assert "only differences are sent" in event(pair, "replicate.resync")
    pair.require_right(*older)
    pair.require_right(*newer)
    pair.item("resync")  # asked for, too
    pair.require_right(*pair.compare_now())
    found = verified(pair)
    assert (found.error, found.differing) == ("", ())
    assert found.done_bytes == found.total_bytes > 64 * MIB


def delete_checkpoints(pair: Pair) -> None:
    """With their bitmaps, as somebody tidying up would."""
    with contextlib.closing(pair.sites.a.connect()) as connection:
        domain = connection.lookupByName(pair.machine)
        checkpoints = domain.listAllCheckpoints()
        assert checkpoints
        for checkpoint in checkpoints:
            checkpoint.delete(0)
        assert not domain.listAllCheckpoints()


def event(pair: Pair, code: str) -> str:
    """The text of the newest event with a code, at A: the server has it a moment later."""
    with pair.gateways.client(pair.sites.a) as client:
        texts = [entry.event.text for entry in client.events() if entry.event.code == code]
    assert texts, f"no event {code}\n{pair.log_tails()}"
    return texts[-1]


def verified(pair: Pair) -> DeepVerification:
    """A deep verification of everything, while the guest goes on writing."""
    with pair.gateways.client(pair.sites.a) as client:
        client.deep_verify(pair.machine)

        def done() -> DeepVerification | None:
            found = client.deep_verification(pair.machine)
            return found if found.finished_at is not None else None

        return processes.wait_until(
            done,
            what="the deep verification",
            root=pair.sites.root,
            seconds=180,
            poll_seconds=0.2,
            evidence=pair.log_tails,
        )
