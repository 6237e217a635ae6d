"""A server and a gateway as processes of their own, from the first key to the end, by the commands alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from secondsite.base.clock import SystemClock
from secondsite.gateway.messages.unixconnection import UnixConnection
from secondsite.journal.keys import VaultKey

SECONDS_MAX = 40.0
CLOCK = SystemClock()
NEVER = threading.Event()


@dataclass
class Place:
    """A server, and the files of a gateway beside it."""

    directory: Path
    url: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SECONDSITE_CLIENT": str(self.directory / "client.json")}

    def run(self, *words: str, given: str = "", code: int = 0) -> str:
        """A command; its standard output, or its error when it is to end with `code`."""
        command = [sys.executable, "-m", "secondsite", *words]
        made = subprocess.run(
            command, input=given, env=self.environment, capture_output=True, text=True, check=False
        )
        assert made.returncode == code, (words, made.stdout, made.stderr)
        return made.stdout if code == 0 else made.stderr

    def gateway(self) -> dict[str, Any]:
        """As `gateway list` shows it."""
        [found] = json.loads(self.run("gateway", "list", "--json"))
        assert isinstance(found, dict)
        return found


@contextlib.contextmanager
def process(log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        command = [sys.executable, "-m", "secondsite", *words]
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        assert started.wait(SECONDS_MAX) == 0, log.read_text()[-4000:]


def until(what: object, log: Path) -> None:
    assert callable(what)
    deadline = CLOCK.monotonic() + SECONDS_MAX
    while not what():
        assert CLOCK.monotonic() < deadline, log.read_text()[-4000:]
        CLOCK.wait(NEVER, 0.1)


def _port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        found = json.loads(line)
        if found.get("text") == "server runs":
            return int(found["port"])
    return None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    state, log = tmp_path / "state", tmp_path / "server.log"
    config = tmp_path / "server.toml"
    config.write_text(f'state_dir = "{state}"\n[listen]\nhost = "127.0.0.1"\nport = 0\n')
    with process(log, "server", "--config", str(config)) as running:
        until(lambda: log.exists() and _port(log) is not None, log)
        made = Place(tmp_path, f"https://127.0.0.1:{_port(log)}", running.pid)
        made.run("login", "--server", made.url, "--token-file", str(state / "setup-token"))
        yield made


def _configure(place: Place) -> Path:
    directory = place.directory
    VaultKey.create().save(directory / "vault.key")
    (directory / "store").mkdir()
    tls = directory / "tls"
    config = directory / "gateway.toml"
    config.write_text(
        f"""
name = "gateway-a"
site = "north"
control_socket = "{directory / "control.sock"}"
state_dir = "{directory / "gateway-state"}"
cache_dir = "{directory / "cache"}"
store = "file://{directory / "store"}"
vault_key = "{directory / "vault.key"}"
[tls]
cert = "{tls / "gateway-a.crt"}"
key = "{tls / "gateway-a.key"}"
ca = "{tls / "authority.crt"}"
revoked = "{tls / "revoked.pem"}"
[listen]
host = "127.0.0.1"
port = 0
[server]
directory = "{tls}"
"""
    )
    return config


def _begin_something(socket: Path) -> tuple[int, str]:
    """New work asked of the gateway itself: the status and the error's code."""
    connection = UnixConnection(socket)
    try:
        connection.request("POST", "/v1/machines/shop/verification", b"{}")
        answer = connection.getresponse()
        return answer.status, str(json.loads(answer.read())["code"])
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__
    finally:
        connection.close()


def _look_around(place: Place, config: Path, tls: str) -> None:
    """What a gateway has of what it needs, how it goes to its server, and what else goes out."""
    checked = json.loads(place.run("gateway", "check", "gateway-a", "--json"))
    assert [one for one in checked["checks"] if not one["ok"]] == []
    assert {"gateway.certificate", "store.write"} <= {one["code"] for one in checked["checks"]}
    assert "directly: it answers" in place.run("gateway", "proxy", "try", "--directory", tls)
    shown = json.loads(place.run("gateway", "outbound", "--config", str(config), "--json"))["outbound"]
    out, own = shown
    assert f"https://{out['host']}:{out['port']}" == place.url
    # where it says that it is: its configuration names no port, so this is not where the test found it
    assert (own["source"], own["host"], own["port"]) == ("said by the server", "127.0.0.1", 443)


def test_from_the_key_to_the_end(place: Place) -> None:
    directory = place.directory
    log, key, socket = directory / "gateway.log", directory / "north.key", directory / "control.sock"
    assert json.loads(place.run("vault", "create", "Nørth", "--json"))["state"] == "Active"
    place.run("vault", "key", "Nørth", "--url", place.url, "--out", str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_text().strip()
    tls = str(directory / "tls")
    said = place.run(
        "gateway",
        "enrol",
        "--key-file",
        "-",
        "--name",
        "gateway-a",
        "--site",
        "north",
        "--out",
        tls,
        "--publish",
        "none",
        given=secret,
    )
    assert "registered in the vault Nørth" in said
    [cloud] = json.loads(place.run("cloud", "list", "Nørth", "--json"))
    assert (cloud["name"], cloud["published"]) == ("gateway-a", False)
    assert place.gateway()["connectionStatus"] == "NeverConnected"
    config = _configure(place)
    with process(log, "gateway", "--config", str(config)) as running:
        until(lambda: place.gateway()["connectionStatus"] == "Connected", log)
        shown = place.gateway()
        assert (shown["state"], shown["address"], shown["health"]) == ("Registered", "127.0.0.1", "Normal")
        assert shown["versionFit"] == "Fits"
        # what begins something is let through to where it is looked at
        assert _begin_something(socket)[1] != "gateway.work-refused"
        refreshed = json.loads(place.run("gateway", "refresh", "gateway-a", "--json"))
        assert refreshed["refreshAnswered"] == refreshed["refreshAsked"] == 1
        assert refreshed["lastContact"] > shown["lastContact"]
        _look_around(place, config, tls)
        for pid in (place.pid, running.pid):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert secret.encode() not in arguments
    place.run("gateway", "rename", "gateway-a", "Rack 7")
    assert place.gateway()["friendlyName"] == "Rack 7"
    assert "vault.in-use" in place.run("vault", "delete", "Nørth", code=4)
    assert "gateway.still-registered" in place.run("gateway", "remove", "gateway-a", code=4)
    place.run("gateway", "unregister", "gateway-a", "--why", "the site is given up")
    with process(log, "gateway", "--config", str(config)):
        until(lambda: _begin_something(socket) == (409, "gateway.work-refused"), log)
    assert "the site is given up" in log.read_text()
    place.run("gateway", "remove", "gateway-a")
    assert json.loads(place.run("gateway", "list", "--json")) == []
    place.run("vault", "delete", "Nørth")
    assert json.loads(place.run("vault", "list", "--json")) == []
    audited = place.run("audit", "list", "--json")
    for operation in ("vault.create", "registration-key.write", "provider.write", "provider.revoke"):
        assert operation in audited
    logs = log.read_text() + (directory / "server.log").read_text() + audited
    private = (directory / "tls" / "gateway-a.key").read_text().splitlines()[1]
    [vault_key] = re.findall(r"^key: (\S{44})$", (directory / "vault.key").read_text(), re.MULTILINE)
    master = (directory / "state" / "master.key").read_text().splitlines()[1]
    for hidden in (secret, private, vault_key, master):
        assert hidden not in logs
    for line in log.read_text().splitlines():
        assert {"at", "level", "logger", "text"} <= set(json.loads(line)), line
    assert '"code":"server.let-go"' in log.read_text()


def test_a_key_that_is_no_key_is_told_without_being_shown(place: Place) -> None:
    out = str(place.directory / "tls")
    words = ("gateway", "enrol", "--key-file", "-", "--name", "a", "--site", "s", "--out", out)
    said = place.run(*words, given="ssrk1_VeryMuchASecret", code=2)
    assert "registration key" in said
    assert "VeryMuch" not in said
    place.run("vault", "create", "North")
    key = json.loads(place.run("vault", "key", "North", "--url", place.url, "--json"))
    place.run("vault", "revoke-key", "North", key["id"])
    said = place.run(*words, given=key["key"], code=4)
    assert "registration-key.revoked" in said
    assert key["key"] not in said
    [listed] = json.loads(place.run("vault", "keys", "North", "--json"))
    assert (listed["state"], listed["uses"]) == ("Revoked", 0)
    assert "key" not in listed
