"""From what was typed to one machine."""

from __future__ import annotations

import pytest

from secondsite.base.errors import Outcome
from secondsite.gateway.common.names import MachineAmbiguous, MachineNotHere, resolve
from secondsite.model.ids import MachineId

A = MachineId("11111111-1111-4111-8111-111111111111")
B = MachineId("22222222-2222-4222-8222-222222222222")
C = MachineId("aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
PAIRS = [(A, "shop"), (B, "mail"), (C, "mail")]


def find(text: str) -> MachineId:
    return resolve(text, PAIRS, kind="protected machine", where="gateway a")


def test_a_name_or_an_id_in_any_case_is_found() -> None:
    assert find("shop") == A
    assert find(A) == A
    assert find(C.upper()) == C


def test_an_unknown_name_names_the_candidates() -> None:
    with pytest.raises(MachineNotHere) as caught:
        find("shpo")
    assert caught.value.outcome is Outcome.NOT_FOUND
    assert str(caught.value) == (
        "There is no protected machine 'shpo' at gateway a; there are mail, mail, shop."
    )


def test_many_candidates_are_counted_not_all_listed() -> None:
    pairs = [(MachineId(f"{n:08d}-1111-4111-8111-111111111111"), f"m{n:02d}") for n in range(20)]
    with pytest.raises(MachineNotHere, match=r"there are m00, m01, .* m07 and 12 more"):
        resolve("x", pairs, kind="machine", where="gateway a")


def test_nothing_at_all_is_told() -> None:
    with pytest.raises(MachineNotHere, match="there is none at all"):
        resolve("x", [], kind="replica", where="gateway b")


def test_a_name_of_several_machines_names_their_ids() -> None:
    with pytest.raises(MachineAmbiguous) as caught:
        find("mail")
    assert str(caught.value) == f"2 machines at gateway a are named 'mail': {B}, {C}."
    assert caught.value.outcome is Outcome.USAGE
