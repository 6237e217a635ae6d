"""What an older gateway makes of a newer server's document, and the one shape both ends hold to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secondsite.transfer.desired import Desired, DesiredUnknown, read_desired

# as a server of the first version writes it; a gateway must go on reading exactly this
GOLDEN = (Path(__file__).resolve().parents[2] / "golden" / "desired-1.json").read_text()


def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN)
    return found


def test_the_golden_document_is_read_whole_and_written_the_same() -> None:
    received = read_desired(GOLDEN)
    assert received.refused == {}
    assert json.loads(received.desired.model_dump_json(by_alias=True)) == _document()
    [one, two] = received.desired.protections
    assert one.policy.bandwidth_at(12 * 60) == 12_500_000
    assert one.policy.bandwidth_at(20 * 60) is None
    assert two.policy.compression_level is None
    assert two.policy.first_copy.at == "22:30"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda item: item["policy"].update(jitterSeconds=2), "policy.jitterSeconds"),
        (lambda item: item["policy"]["firstCopy"].update(mode="weekly", at=None), "policy.firstCopy.mode"),
        (lambda item: item["policy"].update(retention="lunar:28d"), "policy"),
        (lambda item: item.update(machine="not-one"), "machine"),
    ],
)
def test_what_is_too_new_costs_its_own_item_only(change: Any, named: str) -> None:
    document = _document()
    change(document["protections"][0])
    received = read_desired(json.dumps(document))
    assert [one.item for one in received.desired.protections] == ["item-2"]
    assert received.desired.generation == 7
    assert len(received.desired.replicas) == 1
    assert named in received.refused["item-1"]
    assert "update the gateway" in received.refused["item-1"]


def test_what_else_a_newer_server_says_is_ignored() -> None:
    document = _document()
    document["colour"] = "blue"
    document["protections"][0]["colour"] = "blue"
    document["peers"][0]["colour"] = "blue"
    assert read_desired(json.dumps(document)) == read_desired(GOLDEN)


def test_an_item_without_a_name_is_told_by_its_place() -> None:
    document = _document()
    document["replicas"].append(["?"])
    assert list(read_desired(json.dumps(document)).refused) == ["WantedReplica 1"]


@pytest.mark.parametrize("data", ["", "[]", "{", '{"generation": -1}', '{"generation": 1, "peers": 3}'])
def test_what_is_no_such_document_changes_nothing(data: str) -> None:
    with pytest.raises(DesiredUnknown):
        read_desired(data)


def test_an_empty_one_is_fine() -> None:
    assert read_desired('{"generation": 0}').desired == Desired(generation=0)
