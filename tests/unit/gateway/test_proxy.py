"""The way to the server: tried before it is saved, kept when it fails, followed by what runs."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import InvalidInput, Outcome
from secondsite.cli.main import main
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.uplink.connection import EnrolledClients
from secondsite.gateway.uplink.proxy import ProxyNotUsable, ProxyWay, change_way, environment_way, try_way
from support.databases import Databases
from support.enrolled import Place, enrolled_place


class Proxy:
    """An HTTP proxy that knows CONNECT; `wanted` are the credentials it takes, `seen` what it reached."""

    def __init__(self) -> None:
        self.wanted = ""
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with accepted:
            head = b""
            while b"\r\n\r\n" not in head:
                data = accepted.recv(4096)
                if not data:
                    return
                head += data
            lines = head.decode("latin-1").split("\r\n")
            code = base64.b64encode(self.wanted.encode()).decode()
            if self.wanted and f"proxy-authorization: basic {code}".lower() not in map(str.lower, lines):
                accepted.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            target = lines[0].split(" ")[1]
            self.seen.append(target)
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as onward:
                accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_copy, args=(onward, accepted), daemon=True)
                back.start()
                _copy(accepted, onward)
                back.join(10)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


@pytest.fixture
def place(databases: Databases, tmp_path: Path) -> Iterator[Place]:
    with databases.ready("sqlite") as url, enrolled_place(url, tmp_path) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "credentials"
    made.write_text("robot:right\n")
    made.chmod(0o600)
    return made


def test_tried_saved_and_followed(place: Place, proxy: Proxy, file: Path) -> None:
    proxy.wanted = "robot:right"
    clients = EnrolledClients(place.files)
    before = clients.serial()
    with pytest.raises(ProxyNotUsable, match="407") as refused:
        change_way(place.files, ProxyWay(proxy.url))
    assert "goes on directly as before" in refused.value.sentences()[2]
    assert load_membership(place.files).proxy is None
    assert clients.serial() == before
    changed = change_way(place.files, ProxyWay(proxy.url, file))
    assert (changed.proxy, load_membership(place.files).proxy_credentials) == (proxy.url, file)
    assert clients.serial() != before  # what runs makes its connections anew
    opened = clients.open()
    assert opened.request("GET", "/api/v1/health", None)
    opened.close()
    assert len(proxy.seen) == 2
    # the password is changed in the file alone
    proxy.wanted = "robot:new"
    with pytest.raises(ProxyNotUsable, match="407"):
        try_way(place.files, ProxyWay(proxy.url, file))
    file.write_text("robot:new")
    try_way(place.files, ProxyWay(proxy.url, file))
    # a proxy that is gone keeps nobody from leaving it
    proxy.close()
    with pytest.raises(ProxyNotUsable, match="through the proxy"):
        try_way(place.files, ProxyWay.of(load_membership(place.files)))
    assert change_way(place.files, ProxyWay()).proxy is None


def test_default_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = "https://server.example:8443"
    assert environment_way(server) == ProxyWay()
    monkeypatch.setenv("all_proxy", "proxy.example:3128")
    assert environment_way(server) == ProxyWay("http://proxy.example:3128")
    monkeypatch.setenv("https_proxy", "http://other.example:8080")
    assert environment_way(server) == ProxyWay("http://other.example:8080")
    monkeypatch.setenv("no_proxy", "localhost,.example")
    assert environment_way(server) == ProxyWay()


def test_by_command(
    place: Place,
    proxy: Proxy,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*words: str) -> int:
        return main(["gateway", "proxy", *words, "--directory", str(place.files)])

    assert run("show") == Outcome.OK
    assert "directly" in capsys.readouterr().out
    assert run("custom", "http://127.0.0.1:1") == Outcome.REFUSED
    assert "so nothing was changed" in capsys.readouterr().err
    file.chmod(0o640)
    assert run("custom", proxy.url, "--credentials", str(file)) == Outcome.USAGE
    assert "chmod 600" in capsys.readouterr().err
    file.chmod(0o600)
    assert run("custom", proxy.url, "--credentials", str(file)) == Outcome.OK
    assert f"through the proxy {proxy.url}: it answers" in capsys.readouterr().out
    assert run("try", "--json") == Outcome.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["proxy"], told["credentials"], told["tried"]) == (proxy.url, str(file), True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run("default") == Outcome.OK
    assert load_membership(place.files).proxy is None
    for wrong in (["custom"], ["direct", proxy.url], ["direct", "--credentials", str(file)], ["custom", "x"]):
        assert run(*wrong) == Outcome.USAGE, wrong
    with pytest.raises(InvalidInput, match="credentials go into a file"):
        change_way(place.files, ProxyWay("http://robot:right@127.0.0.1:1"))
