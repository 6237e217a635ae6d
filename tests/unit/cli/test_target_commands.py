"""Commands to the gateway that keeps replicas, against a real socket, store and export processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.journal.names import log_name
from secondsite.model.ids import MachineId
from support.control import command_environment, read_uri
from support.machines import SHOP
from support.target import Target, running_target


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with running_target(tmp_path) as made:
        yield made


def test_points_are_listed_by_name_or_id(target: Target) -> None:
    shown = target.run("points", "list", "shop")
    assert shown.code == 0, shown.err
    assert "2026-05-04 12:00:05Z" in shown.out
    assert "ApplicationConsistent" in shown.out
    points = target.run("points", "list", SHOP.upper(), "--json").json
    assert [point["number"] for point in points] == sorted(target.replica.contents)
    assert points[0]["at"] == target.replica.given_at[points[0]["number"]]
    unknown = target.run("points", "list", "shpo")
    assert unknown.code == 3
    assert "There is no replica 'shpo' at gateway b; there are shop." in unknown.err


def test_a_point_is_exported_until_the_command_is_ended(target: Target, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "secondsite", "points", "export", "shop", "latest", "--socket-dir"]
    with subprocess.Popen(
        [*command, str(tmp_path / "look")],
        stdout=subprocess.PIPE,
        text=True,
        env=command_environment(SECONDSITE_GATEWAY=str(target.socket)),
    ) as process:
        assert process.stdout is not None
        disks = target.replica.contents[target.replica.newest]
        for content in disks.values():
            assert read_uri(process.stdout.readline().strip()) == content
        assert [pin.number for pin in target.replica.journal.state().pins] == [target.replica.newest]
        listed = target.run("points", "exports", "shop", "--json").json
        assert len(listed) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert target.replica.journal.state().pins == ()
    assert list((tmp_path / "look").iterdir()) == []
    assert target.run("points", "exports", "shop").out == "Nothing is served.\n"


def test_a_kept_export_is_ended_by_name(target: Target, tmp_path: Path) -> None:
    ran = target.run("points", "export", "shop", "2", "--socket-dir", tmp_path / "look", "--keep", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["point"] == 2
    assert target.run("points", "end", "shop", ran.json["id"]).code == 0
    assert target.replica.journal.state().pins == ()


def test_a_test_failover_from_start_to_clean_up(target: Target) -> None:
    started = target.run("test-failover", "start", "shop", "--point", "latest-application-consistent")
    assert started.code == 0, started.err
    first, *rest = started.out.splitlines()
    assert first == "booting shop-test from point 3 of shop (2026-05-04 12:00:05Z, ApplicationConsistent)"
    assert [line.split(" after ")[0].strip() for line in rest[:3]] == [
        "point exported",
        "isolated network made",
        "machine defined and started",
    ]
    assert "`secondsite test-failover clean-up shop --notes TEXT`" in rest[3]
    assert "TEST shop-test from point 3: Completed" in target.run("status").out
    second = target.run("test-failover", "start", "shop")
    assert second.code == 4
    assert "shop has a test failover already" in second.err
    cleaned = target.run("test-failover", "clean-up", "shop", "--notes", "boots; orders are there")
    assert cleaned.code == 0, cleaned.err
    assert target.fabric.recovered() == []
    listed = target.run("test-failover", "list", "--json").json
    assert listed[0]["notes"] == "boots; orders are there"
    assert "@" in listed[0]["cleanedUpBy"]
    assert "boots; orders are there" in target.run("test-failover", "list").out
    again = target.run("test-failover", "clean-up", "shop", "--notes", "x")
    assert again.code == 3
    assert "shop has no test failover to clean up." in again.err


def test_a_test_that_fails_is_an_error_with_its_own_sentences(target: Target) -> None:
    target.fabric.fail_recovery("it has no room")
    ran = target.run("test-failover", "start", "shop")
    assert ran.code == 1
    assert "error: shop-test could not be started at the target: it has no room." in ran.err
    assert "fabric.recovery-failed" in ran.err


def test_prerequisites_are_all_listed(target: Target) -> None:
    target.fabric.add_machine("taken", {"vda": 1024 * 1024})
    ran = target.run("test-failover", "start", "shop", "--network", "lan-x", "--name", "taken")
    assert ran.code == 4
    assert "a machine named taken exists" in ran.err
    assert "there is no network lan-x at this site (there are: default)" in ran.err


def test_protecting_at_a_gateway_without_that_role_names_the_other(target: Target) -> None:
    ran = target.run(
        "protect", "shop", "--to", "a", "--recovery-key-file", target.replica.key_file, "--no-wait"
    )
    assert ran.code == 4
    assert "Gateway b has no vault key." in ran.err or "Gateway b has no protection role" in ran.err
    assert "--gateway" in ran.err


def test_status_shows_what_is_kept_and_watch_repeats_it(target: Target) -> None:
    status = target.run("status", "--json").json
    assert status["replicas"][0]["points"] == 3
    with subprocess.Popen(
        [sys.executable, "-m", "secondsite", "status", "--watch"],
        stdout=subprocess.PIPE,
        text=True,
        env=command_environment(SECONDSITE_GATEWAY=str(target.socket)),
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    for line in lines:
        assert line.startswith("shop kept: 3 points, newest 4, ")


def test_a_damaged_replica_is_shown_and_harms_no_other_and_can_be_asked_for_by_id(target: Target) -> None:
    store = target.replica.journal.store
    broken = MachineId("00000000-0000-4000-8000-00000000dead")
    store.put(log_name(broken, 1), b"not a record")
    status = target.run("status", "--json").json
    damaged, shop = sorted(status["replicas"], key=lambda replica: str(replica["name"]))
    assert (shop["name"], shop["error"]) == ("shop", None)
    assert damaged["error"]["outcome"] == "damaged"
    shown = target.run("status")
    assert shown.code == 0
    assert f"{broken}" in shown.out
    assert "DAMAGED: " in shown.out
    ran = target.run("points", "list", broken)
    assert ran.code == 6
    assert "Traceback" not in ran.err
