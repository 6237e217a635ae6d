"""Commands to the gateway that protects: the real command against a real control socket."""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from secondsite.base.clock import SystemClock
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.control.server import SocketInUse, bind_private, serve_control
from secondsite.gateway.control.services import ControlServices
from secondsite.gateway.keys.recoverykey import RecoveryKeyGuard
from secondsite.gateway.messages.answers import BODY_BYTES_MAX
from secondsite.gateway.messages.gateway import DifferingRange, FirstCopy, ProtectionState
from secondsite.journal.keys import VaultKey
from secondsite.model.events import Severity
from secondsite.model.ids import DiskId
from support.control import Events, Protections, Ran, command_environment, run_command
from support.machines import SHOP, memory_fabric


@dataclass
class Source:
    socket: Path
    fabric: MemoryFabric
    protections: Protections
    events: Events
    own_key: Path
    exported_key: Path

    def run(self, *arguments: str | Path) -> Ran:
        return run_command(*arguments, gateway=self.socket)

    def protect(self, *more: str | Path, machine: str = "shop") -> Ran:
        return self.run("protect", machine, "--to", "b", "--recovery-key-file", self.exported_key, *more)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    fabric = memory_fabric()
    key = VaultKey.create()
    own, exported = tmp_path / "own.key", tmp_path / "exported.key"
    key.save(own)
    exported.write_bytes(own.read_bytes())
    protections, events = Protections({machine.id: machine.name for machine in fabric.machines()}), Events()
    clock = SystemClock()
    server = serve_control(
        ControlServices(
            name="a",
            site="here",
            clock=clock,
            events=events,
            fabric=fabric,
            protections=protections,
            recovery_key=RecoveryKeyGuard(key, own_file=own, store_root=None, clock=clock),
        ),
        tmp_path / "control.sock",
    )
    try:
        yield Source(tmp_path / "control.sock", fabric, protections, events, own, exported)
    finally:
        server.stop()


def test_the_socket_is_the_owners_alone_and_not_taken_from_a_living_gateway(source: Source) -> None:
    mode = source.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    with pytest.raises(SocketInUse):
        bind_private(source.socket)
    assert source.run("status").code == 0


def test_a_dead_gateways_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bind_private(path).close()


def test_inventory_lists_machines_and_all_the_rest(source: Source) -> None:
    plain = source.run("inventory")
    assert plain.code == 0, plain.err
    assert SHOP in plain.out
    machines = source.run("inventory", "--json").json
    assert {machine["name"] for machine in machines} == {m.name for m in source.fabric.machines()}
    assert {"sizeBytes", "id", "format"} <= set(machines[0]["disks"][0])
    everything = source.run("inventory", "--all", "--json").json
    assert set(everything) == {"hosts", "machines", "networks", "pools"}
    assert "POOL" in source.run("inventory", "--all").out


def test_protect_waits_for_the_first_point_and_says_how_far_it_is(source: Source) -> None:
    ran = source.protect("--frequency", "30s", "--network", "lan=lan-b", "--pool", "p=q", "--disk", "vda")
    assert ran.code == 0, ran.err
    assert ran.out == "shop is protected: recovery point 2 at b, 1.5 s old.\n"
    assert "first copy of shop: " in ran.err
    request = source.protections.requests[-1]
    assert request.copy_frequency_seconds == 30
    assert (request.networks, request.pools, request.disks) == ({"lan": "lan-b"}, {"p": "q"}, ("vda",))


def test_on_a_terminal_the_first_copy_is_a_bar_with_rate(source: Source) -> None:
    ours, theirs = pty.openpty()
    options = ["--to", "b", "--recovery-key-file", str(source.exported_key)]
    environment = command_environment(SECONDSITE_GATEWAY=str(source.socket), TERM="xterm")
    with subprocess.Popen(
        [sys.executable, "-m", "secondsite", "protect", "shop", *options],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: how a pseudo terminal says that its other end is closed
            while chunk := os.read(ours, 65536):
                drawn += chunk
        assert process.wait(30) == 0
    os.close(ours)
    shown = drawn.decode()
    assert "first copy of shop" in shown
    assert "1.0/1.0 KiB" in shown
    assert "512 B/s, 1.0 s left" in shown
    assert "protected" in shown


def test_protect_without_waiting_and_as_json(source: Source) -> None:
    ran = source.protect("--no-wait", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["state"] == "InitialReplicationInProgress"
    assert ran.err == ""


def test_protect_by_id_in_upper_case(source: Source) -> None:
    assert source.protect("--no-wait", machine=SHOP.upper()).code == 0


def test_a_first_copy_that_fails_is_an_error_with_the_reason(source: Source) -> None:
    source.protections.fail_with = "the peer refused it"
    ran = source.protect()
    assert ran.code == 1
    assert "shop is not protected: the peer refused it." in ran.err


def test_the_gateways_own_key_file_proves_nothing(source: Source) -> None:
    ran = source.run("protect", "shop", "--to", "b", "--recovery-key-file", source.own_key)
    assert ran.code == 4
    assert "is the gateway's own copy of the recovery key" in ran.err
    assert "recovery-key.not-exported" in ran.err
    assert source.protections.requests == []


def test_another_vaults_key_proves_nothing(source: Source, tmp_path: Path) -> None:
    VaultKey.create().save(tmp_path / "other.key")
    ran = source.run("protect", "shop", "--to", "b", "--recovery-key-file", tmp_path / "other.key")
    assert ran.code == 4
    assert "does not hold the recovery key" in ran.err
    assert source.protections.requests == []


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--frequency", "often", "'often' is not valid: it is not a duration like 5s, 2m or 1h"),
        ("--frequency", "0.2s", ">= 1.0 - at `$.copyFrequencySeconds`"),
        ("--network", "lan", "'lan' is not valid: it is not of the form"),
        ("--disk", "../x", "is not valid"),
        ("--compression", "99", "<= 19 - at `$.compressionLevel`"),
    ],
)
def test_wrong_values_are_named(source: Source, option: str, value: str, words: str) -> None:
    ran = source.protect(option, value)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert source.protections.requests == []


def test_an_unknown_machine_names_the_candidates(source: Source) -> None:
    ran = source.protect(machine="shpo")
    assert ran.code == 3
    assert "There is no machine 'shpo' at gateway a; there are " in ran.err
    assert "shop" in ran.err
    ran = source.run("unprotect", "shop")
    assert ran.code == 3
    assert "There is no protected machine 'shop' at gateway a; there is none at all." in ran.err


def test_unprotect(source: Source) -> None:
    assert source.protect("--no-wait").code == 0
    assert source.run("unprotect", "shop").code == 0
    assert source.run("status", "--json").json["protections"] == []


def test_a_point_now_with_the_label_it_earned(source: Source) -> None:
    assert source.protect("--no-wait").code == 0
    ran = source.run("point", "shop", "--application-consistent")
    assert ran.code == 0, ran.err
    assert ran.out == "point 3: ApplicationConsistent, 2026-05-04 12:00:05Z, frozen for 200 ms\n"
    source.protections.fail_with = "the agent does not answer"
    ran = source.run("point", "shop", "--application-consistent")
    assert ran.code == 1
    assert "Point 3 of shop is CrashConsistent only: the agent does not answer." in ran.err


def test_status_in_words_and_json(source: Source) -> None:
    assert "Nothing is protected here" in source.run("status").out
    assert source.protect().code == 0
    shown = source.run("status").out
    assert "shop" in shown
    assert "Protected" in shown
    assert "1.5 s" in shown
    status = source.run("status", "--json").json
    assert status["protections"][0]["rpoSeconds"] == 1.5
    assert status["name"] == "a"


def test_events_are_listed_newest_last(source: Source) -> None:
    assert source.run("events").out == "Nothing happened yet.\n"
    source.events.emit("test.first", Severity.INFORMATION, "The first thing happened.")
    source.events.emit("test.second", Severity.CRITICAL, "The second thing happened.")
    shown = source.run("events").out
    assert shown.index("The first thing") < shown.index("The second thing")
    listed = source.run("events", "--json", "--limit", "1").json
    assert [entry["event"]["code"] for entry in listed] == ["test.second"]


def test_a_key_is_made_shown_and_proved(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "new.key"
    made = run_command("key", "create", path)
    assert made.code == 0, made.err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = run_command("key", "show", path, "--json").json
    assert shown["keyId"] in made.out
    secret_line = path.read_text()
    again = run_command("key", "create", path)
    assert again.code == 4
    assert path.read_text() == secret_line
    assert source.run("key", "prove", source.exported_key).code == 0
    wrong = source.run("key", "prove", path)
    assert wrong.code == 4
    assert shown["keyId"] in wrong.err


def test_a_damaged_or_missing_key_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    VaultKey.create().save(path)
    text = path.read_text()
    middle = len(text) // 2
    path.write_text(text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :])
    ran = run_command("key", "show", path)
    assert ran.code != 0
    assert str(path) in ran.err
    assert "Traceback" not in ran.err
    missing = run_command("key", "show", tmp_path / "none.key")
    assert missing.code != 0
    assert "Traceback" not in missing.err
    assert str(tmp_path / "none.key") in missing.err


def raw(source: Source, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("gateway", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(source.socket))
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, msgspec.json.decode(text)


@pytest.mark.parametrize(
    ("request_line", "body", "status", "code"),
    [
        ("GET /v1/nothing", b"", 404, "control.route-unknown"),
        ("POST /v1/status", b"", 405, "control.route-unknown"),
        ("PUT /v1/protections/shop", b"{", 400, "input.invalid"),
        ("PUT /v1/protections/shop", b'{"peer": 1}', 400, "input.invalid"),
        ("PUT /v1/protections/shop", b"x" * (BODY_BYTES_MAX + 1), 400, "input.invalid"),
        ("GET /v1/events?after=-1", b"", 400, "input.invalid"),
        ("GET /v1/machines/shop/points", b"", 409, "gateway.role-missing"),
        ("GET /v1/operations/x", b"", 409, "gateway.role-missing"),
        ("DELETE /v1/protections/shop", b"", 404, "machine.not-here"),
    ],
)
def test_every_error_on_the_wire_has_a_code_and_sentences(
    source: Source, request_line: str, body: bytes, status: int, code: str
) -> None:
    method, path = request_line.split()
    got, error = raw(source, method, path, body)
    assert (got, error["code"]) == (status, code)
    assert {"happened", "cause", "action", "outcome"} <= set(error)


def test_an_unknown_field_is_refused_not_ignored(source: Source) -> None:
    body = b'{"peer":"b","nonce":"ab","proof":"ab","keyFile":{"path":"/x","device":1,"inode":1},"extra":1}'
    status, error = raw(source, "PUT", "/v1/protections/shop", body)
    assert status == 400
    assert "extra" in error["happened"]


def test_a_defect_is_told_and_the_gateway_lives_on(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(source.fabric, "machines", broken)
    ran = source.run("inventory")
    assert ran.code == 1
    assert "ZeroDivisionError: a defect" in ran.err
    assert source.run("status").code == 0


def test_deep_verification_is_followed_to_its_end(source: Source) -> None:
    assert source.protect().code == 0
    never = source.run("verify", "shop", "--deep", "--last")
    assert never.code == 0, never.err
    assert "never compared" in never.out
    sound = source.run("verify", "shop", "--deep")
    assert sound.code == 0, sound.err
    assert "nothing differs" in sound.out
    assert "points 3 to 4" in sound.out
    source.protections.differing = (DifferingRange(disk=DiskId("vda"), offset=4096, length=8192, point=4),)
    wrong = source.run("verify", "shop", "--deep")
    assert wrong.code == 6
    assert "DIFFERS vda 4096..12288 at point 4" in wrong.out
    assert source.run("verify", "shop", "--deep", "--json").json["differingBytes"] == 8192
    assert source.run("verify", "--deep").code == 2


def test_a_seed_is_exported_shown_and_given_up(source: Source, tmp_path: Path) -> None:
    assert source.protect("--no-wait").code == 0
    assert "has no seed" in source.run("seed", "status", "shop").out
    ran = source.run("seed", "export", "shop", "--to", str(tmp_path), "--no-wait")
    assert ran.code == 0, ran.err
    assert f"shop is being written to {tmp_path}" in ran.out
    ran = source.run("seed", "export", "shop", "--to", str(tmp_path))
    assert ran.code == 0, ran.err
    assert f"shop is on the media at {tmp_path} (1000 B)" in ran.out
    assert source.run("seed", "status", "shop", "--json").json["state"] == "Exported"
    assert source.run("seed", "cancel", "shop").code == 0


def test_a_gateway_without_a_store_imports_no_seed(source: Source, tmp_path: Path) -> None:
    ran = source.run("seed", "import", str(tmp_path))
    assert ran.code == 4
    assert "no replica store" in ran.err


def test_a_comparison_shows_how_much_differed(source: Source) -> None:
    assert source.protect("--no-wait").code == 0
    [status] = source.protections.statuses()
    source.protections._statuses[status.machine] = msgspec.structs.replace(
        status,
        state=ProtectionState.RESYNCHRONIZING,
        first_copy=FirstCopy(done_bytes=4096, total_bytes=8192, bytes_per_second=1024.0, differed_bytes=512),
        last_point=7,
    )
    assert "512 B differed" in " ".join(source.run("status").out.split())
