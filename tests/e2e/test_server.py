"""The server as a process: first start, log-in and commands over TLS, certificates, an orderly end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from secondsite.base.clock import SystemClock
from secondsite.transfer.pki import Authority
from support.databases import Databases
from support.server import Answer, Caller, tls_caller, trusting

START_SECONDS_MAX = 60.0
pytestmark = pytest.mark.e2e


@dataclass
class ServerProcess:
    """A running `secondsite server`, and a user's home to run commands in."""

    process: subprocess.Popen[bytes]
    state: Path
    port: int
    home: Path
    log: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def command(self, *words: str, input_: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "secondsite", *words],
            input=input_,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SECONDSITE_CLIENT": str(self.home / "client.json"), "COLUMNS": "200"},
        )

    def json(self, *words: str) -> object:
        ran = self.command(*words, "--json")
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def call(self, token: str = "", context: ssl.SSLContext | None = None) -> Caller:
        return tls_caller("127.0.0.1", self.port, context or trusting(self.state / "authority.crt"), token)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_ready(server: ServerProcess) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    never = threading.Event()
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError):
            if server.call()("GET", "/api/v1/ready").status == 200:
                return
        never.wait(0.05)
    raise AssertionError(server.log.read_text()[-3000:])


@contextlib.contextmanager
def running_server(directory: Path, settings: str = "") -> Iterator[ServerProcess]:
    """A server of this state directory; a second call goes on with it."""
    state = directory / "state"
    port = free_port()
    config = directory / "server.toml"
    config.write_text(f'state_dir = "{state}"\n{settings}\n[listen]\nhost = "127.0.0.1"\nport = {port}\n')
    log = directory / "log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "secondsite", "server", "--config", str(config)], stderr=out, stdout=out
        )
    server = ServerProcess(process, state, port, directory, log)
    try:
        _wait_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all tests that leave it as it was: nobody logs in."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


def _log_in(server: ServerProcess) -> None:
    ran = server.command("login", "--server", server.url, "--token-file", str(server.state / "setup-token"))
    assert ran.returncode == 0, ran.stderr
    assert "as owner" in ran.stdout


def test_from_the_first_start_to_a_second_person(databases: Databases, tmp_path: Path) -> None:
    """On PostgreSQL: all others here have a server on SQLite, and people are tried on both elsewhere."""
    with databases.empty("postgresql") as url, running_server(tmp_path, f'database = "{url}"') as server:
        _first_day(server, tmp_path)


def _first_day(server: ServerProcess, tmp_path: Path) -> None:
    setup = server.state / "setup-token"
    assert stat.S_IMODE(setup.stat().st_mode) == 0o600
    text = setup.read_text().strip()
    _log_in(server)
    login = tmp_path / "client.json"
    assert stat.S_IMODE(login.stat().st_mode) == 0o600
    assert not setup.exists()
    password = tmp_path / "password"
    password.write_text("correct horse battery\n")
    made = server.command("user", "create", "maria", "--password-file", str(password))
    assert made.returncode == 0, made.stderr
    assert server.command("user", "grant", "maria", "operator").returncode == 0
    listed = server.command("user", "list")
    assert "operator" in listed.stdout
    assert "maria" in listed.stdout
    token = tmp_path / "maria.token"
    created = server.command("token", "create", "laptop", "--user", "maria", "--out", str(token))
    assert created.returncode == 0, created.stderr
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text().strip() not in created.stdout
    listings = (
        ("user", "list"),
        ("token", "list"),
        ("audit", "list"),
        ("user", "show", "owner"),
        ("whoami",),
    )
    for words in listings:
        assert server.json(*words)
    assert server.json("job", "list") == []
    verified = server.command("audit", "verify")
    assert "the audit log holds" in verified.stdout
    exported = server.command("audit", "export")
    assert len(exported.stdout.splitlines()) == int(verified.stdout.split(":")[1].split()[0])
    # maria, with her password; then not what an operator may not
    other = server.command(
        "login", "--server", server.url, "--user", "maria", "--password-file", str(password),
        "--authority", str(server.state / "authority.crt"),
    )  # fmt: skip
    assert other.returncode == 0, other.stderr
    refused = server.command("user", "create", "otto")
    assert refused.returncode == 4
    assert "access.forbidden" in refused.stderr
    assert server.command("logout").returncode == 0
    assert server.command("whoami").returncode == 2
    assert server.stop() == 0
    told = server.log.read_text()
    for secret in (text, "correct horse", token.read_text().strip()[20:]):
        assert secret not in told
    for line in told.splitlines():
        assert "text" in json.loads(line), line


def test_commands_say_what_is_wrong(server: ServerProcess) -> None:
    cases = {
        ("whoami",): (2, "client.not-logged-in"),
        ("login", "--server", server.url): (2, "input.invalid"),
        ("login", "--server", "http://x", "--token-file", "/dev/stdin"): (2, "input.invalid"),
        ("login", "--server", server.url, "--token-file", "/dev/stdin"): (4, "client.untrusted"),
        ("login", "--server", f"https://127.0.0.1:{free_port()}", "--token-file", "/dev/stdin"): (
            5,
            "client.unreachable",
        ),
        (
            "login", "--server", server.url, "--token-file", "/dev/stdin", "--authority",
            str(server.state / "authority.crt"),
        ): (4, "access.unauthenticated"),
    }  # fmt: skip
    for words, (code, what) in cases.items():
        ran = server.command(*words, input_="ssa_0123456789abcdef_" + "x" * 43 + "\n")
        assert ran.returncode == code, (words, ran.stderr)
        assert f"code:   {what}" in ran.stderr, words
    assert not (server.home / "client.json").exists()


def test_state_and_log_in_outlive_the_server_also_a_killed_one(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        _log_in(server)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with running_server(tmp_path) as server:
        assert not (server.state / "setup-token").exists()
        kept = json.loads((tmp_path / "client.json").read_text())
        me = server.call(kept["token"])("GET", "/api/v1/me")
        assert me.json()["name"] == "owner"
        assert server.stop(signal.SIGINT) == 0


def test_the_owner_of_the_files_gets_another_set_up_token(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        _log_in(server)
        (tmp_path / "client.json").unlink()
        ran = server.command("server", "--config", str(tmp_path / "server.toml"), "--new-setup-token")
        assert ran.returncode == 0, ran.stderr
        _log_in(server)


def _context(server: ServerProcess) -> ssl.SSLContext:
    return trusting(server.state / "authority.crt")


def test_tls_takes_1_2_and_1_3_and_nothing_older(server: ServerProcess) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = _context(server)
        context.minimum_version = context.maximum_version = version
        assert server.call(context=context)("GET", "/api/v1/health").status == 200
    context = _context(server)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        server.call(context=context)("GET", "/api/v1/health")


def test_the_certificate_holds_what_the_server_is_reached_by(server: ServerProcess) -> None:
    pem = ssl.get_server_certificate(("127.0.0.1", server.port))
    names = x509.load_pem_x509_certificate(pem.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {"localhost", socket.gethostname().lower()} <= set(names.value.get_values_for_type(x509.DNSName))
    key = server.state / "tls" / "server.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_certificate_of_another_authority_or_an_old_one_is_refused(
    server: ServerProcess, tmp_path: Path
) -> None:
    """Most routes need none, but a wrong one is never taken for nobody's."""
    other = Authority.create(tmp_path / "other", clock=SystemClock())
    certificate, key = other.issue("gateway-a").save(tmp_path, "foreign")
    context = _context(server)
    context.load_cert_chain(certificate, key)

    def ask() -> Answer:
        return server.call(context=context)("GET", "/api/v1/health")

    # TLS 1.3: the refusal comes with the first read
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask()
    assert server.call()("GET", "/api/v1/health").status == 200


def test_a_second_server_at_the_same_address_or_state_is_told(server: ServerProcess, tmp_path: Path) -> None:
    config = server.home / "server.toml"
    ran = server.command("server", "--config", str(config))
    assert ran.returncode == 4
    assert "standby.server-runs" in ran.stderr
    other = tmp_path / "other.toml"
    other.write_text(config.read_text().replace(str(server.state), str(tmp_path / "state")))
    ran = server.command("server", "--config", str(other))
    assert ran.returncode == 5, ran.stderr
    assert "server.address" in ran.stderr


def test_a_wrong_configuration_is_told(server: ServerProcess, tmp_path: Path) -> None:
    for text, what in (("nane = 1", "nane"), ('database = "mysql://x"', "mysql"), ("x", "Expected")):
        config = tmp_path / "wrong.toml"
        config.write_text(f'state_dir = "{tmp_path / "wrong"}"\n{text}\n')
        ran = server.command("server", "--config", str(config))
        assert ran.returncode == 2, ran.stderr
        assert what in ran.stderr
