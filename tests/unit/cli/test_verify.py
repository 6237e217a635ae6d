"""``secondsite verify``: the real command, at a gateway and with nothing but a store and its key."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.journal.names import log_name, segments_prefix
from support.control import Ran, run_command
from support.machines import SHOP
from support.replicas import Replica, extend_replica, make_replica
from support.target import Target, running_target


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return make_replica(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with running_target(tmp_path) as made:
        yield made


def offline(replica: Replica, *arguments: str | Path) -> Ran:
    return run_command("verify", "--store", replica.store_path, "--key-file", replica.key_file, *arguments)


def segment_of(replica: Replica, number: int) -> Path:
    """The object of a point's first segment."""
    ref = replica.journal.point(number).segments[0]
    return replica.store_path / replica.journal.segment_name(ref)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_sound_store_is_told_to_be_sound(replica: Replica) -> None:
    shown = offline(replica, "shop")
    assert shown.code == 0, shown.err
    assert "nothing is damaged" in shown.out
    assert "verifying" in shown.err
    [report] = offline(replica, "--json").json
    numbers = sorted(replica.contents)
    assert (report["proved"], report["unproved"], report["lost"]) == ([], numbers, [])
    assert report["reread"] == [numbers[0], numbers[-1]]
    assert report["objects"] > 10
    assert report["bytes"] > sum(len(data) for data in replica.contents[numbers[-1]].values()) / 10
    [whole] = offline(replica, "shop", "--all", "--json").json
    assert whole["reread"] == numbers
    [one] = offline(replica, "shop", "--point", str(numbers[1]), "--json").json
    assert one["reread"] == [numbers[1]]


def test_a_damaged_segment_is_named_with_the_points_it_costs(replica: Replica) -> None:
    first, second, third = sorted(replica.contents)
    flip(segment_of(replica, second), 300)
    shown = offline(replica, "shop")
    assert shown.code == 6
    assert f"points lost:     {second}-{third}" in shown.out
    assert "DAMAGED segment" in shown.out
    [report] = offline(replica, "shop", "--json").json
    assert report["lost"] == [second, third]
    [damaged] = report["damaged"]
    assert damaged["object"].startswith(segments_prefix(SHOP))
    assert damaged["points"] == [second, third]
    assert 4096 <= damaged["lost"][0]["bytes"] <= 65536
    assert report["missing"] == damaged["lost"]
    assert first in report["unproved"]


def test_removed_newest_records_are_noticed_by_who_remembers_them(replica: Replica) -> None:
    newest = replica.newest
    trust = offline(replica, "shop", "--json").json[0]["trust"]
    extend_replica(replica, random.Random(5))
    assert offline(replica, "shop", "--trust", trust).code == 0
    later = offline(replica, "shop", "--json").json[0]["trust"]
    (replica.store_path / log_name(SHOP, newest + 1)).unlink()
    assert offline(replica, "shop").code == 0
    [report] = offline(replica, "shop", "--trust", later, "--json").json
    assert [(d["kind"], d["points"]) for d in report["damaged"]] == [("log", [newest + 1])]
    wrong = offline(replica, "shop", "--trust", f"{newest}:{'0' * 64}")
    assert wrong.code == 6
    assert "the one to be trusted" in wrong.out
    assert offline(replica, "shop", "--trust", "12").code == 2


def test_a_missing_key_and_a_wrong_one_are_told_apart(replica: Replica, tmp_path: Path) -> None:
    assert run_command("verify", "--store", replica.store_path).code == 2
    other = tmp_path / "other"
    other.mkdir()
    wrong = run_command(
        "verify", "--store", replica.store_path, "--key-file", make_replica(other).key_file, SHOP
    )
    assert wrong.code == 4
    assert "sealed with the key" in wrong.err


def test_a_gateway_verifies_and_remembers(target: Target) -> None:
    replica = target.replica
    numbers = sorted(replica.contents)
    never = target.run("verify", "shop", "--last")
    assert never.code == 3
    assert "never verified" in never.err
    [before] = target.run("status", "--json").json["replicas"]
    assert before["verification"] is None
    shown = target.run("verify", "shop")
    assert shown.code == 0, shown.err
    assert "nothing is damaged" in shown.out
    assert target.events.codes() == ["scrub.done"]
    flip(segment_of(replica, numbers[1]), 300)
    damaged = target.run("verify", "shop", "--point", "latest", "--json")
    assert damaged.code == 6
    [status] = damaged.json
    assert status["state"] == "Completed"
    assert status["report"]["lost"] == numbers[1:]
    assert target.events.codes()[-1] == "scrub.damaged"
    assert target.run("verify", "shop", "--last", "--json").json == damaged.json
    [after] = target.run("status", "--json").json["replicas"]
    assert (after["verification"]["damaged"], after["verification"]["lost"]) == (1, 2)
    assert "1 DAMAGED, 2 points lost" in target.run("status").out
    # nothing tells an unproved point's content, so none was verified
    assert after["verification"]["lastVerified"] is None
    unknown = target.run("verify", "shop", "--point", "99")
    assert unknown.code == 3


def test_a_gateway_notices_a_log_that_became_shorter(target: Target) -> None:
    replica = target.replica
    assert target.run("verify", "shop").code == 0
    (replica.store_path / log_name(SHOP, replica.newest)).unlink()
    assert target.run("verify", "shop").code == 6
    # and goes on saying so
    assert target.run("verify", "shop").code == 6


@pytest.mark.parametrize("length", [0, 100, 192, 250, -1])
def test_a_cut_segment_is_damaged_whatever_is_left_of_it(replica: Replica, length: int) -> None:
    path = segment_of(replica, replica.newest)
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:length])
    for words in (["verify"], ["dump"]):
        cut = run_command("segment", *words, path, "--key-file", replica.key_file)
        assert cut.code == 6, cut.err
        assert "is damaged" in cut.err
    assert offline(replica, "shop").code == 6
