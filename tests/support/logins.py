"""A whole server over TLS with an OIDC provider beside it, and commands run against it as people do."""

from __future__ import annotations

import contextlib
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.cli.main import main
from secondsite.client.login import Login, save_login
from secondsite.server.config import Listen, ServerConfig
from secondsite.server.main import Server
from support.oidc import CLIENT_ID, CLIENT_SECRET, OidcProvider, oidc_provider
from support.server import Caller, cheap_passwords, owner, tls_caller, trusting


@dataclass
class Rig:
    """A whole server over TLS, a provider, and a file with an owner's log-in."""

    server: Server
    provider: OidcProvider
    call: Caller
    root: Path

    @property
    def url(self) -> str:
        assert self.server.address is not None
        return f"https://127.0.0.1:{self.server.address[1]}"

    @property
    def authority(self) -> Path:
        return self.root / "state" / "authority.crt"

    def run(self, *words: str, login: str = "boss.json") -> int:
        return main([*words, "--login", str(self.root / login)])

    def browse(self, url: str) -> bool:
        """As a person's browser: goes where it is sent, also back to the command that waits."""
        trust = urllib.request.HTTPSHandler(context=_trust(self.provider))
        with urllib.request.build_opener(urllib.request.ProxyHandler({}), trust).open(url) as answer:
            return bool(answer.status == 200)


def _trust(provider: OidcProvider) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=provider.authority)


@contextlib.contextmanager
def login_place(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    """All of it; boss.json below `tmp_path` is the log-in of an owner of everything."""
    config = ServerConfig(
        state_dir=tmp_path / "state", database=database_url, listen=Listen(host="127.0.0.1", port=0)
    )
    server = Server(config, passwords=cheap_passwords())
    server.start()
    assert server.services is not None
    assert server.address is not None
    token = owner(server.services)
    with oidc_provider(SystemClock().utc) as provider:
        call = tls_caller(
            "127.0.0.1", server.address[1], trusting(tmp_path / "state" / "authority.crt"), token
        )
        made = Rig(server, provider, call, tmp_path)
        save_login(Login(made.url, token, made.authority.read_text()), tmp_path / "boss.json")
        (tmp_path / "secret").write_text(CLIENT_SECRET + "\n")
        (tmp_path / "provider.pem").write_text(provider.authority)
        yield made
    server.stop()


def set_up(rig: Rig) -> None:
    """Set the provider, whose operators are operators here."""
    where = ["--issuer", rig.provider.issuer, "--client-id", CLIENT_ID]
    files = ["--secret-file", str(rig.root / "secret"), "--authority", str(rig.root / "provider.pem")]
    assert rig.run("server", "oidc", "set", *where, *files) == 0
    assert rig.run("server", "oidc", "map", "dr-operators", "operator") == 0
