"""The lab's server: at site B, which is there when A is lost; the gateways enrol with it.

It listens on B's address on the line, which is reached from inside the sites only: its commands run inside B,
as an administrator of that site would type them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from secondsite.base.files import replace_file
from secondsite.base.toml import encode_toml
from secondsite.lab import processes
from secondsite.lab.errors import LabCommandFailed
from secondsite.lab.place import Site, SiteProcess
from secondsite.lab.sites import Sites

PORT = 443
VAULT = "North"
_ENTER_SECONDS = 120.0


class LabServer:
    """The server of a lab. Make it once the sites are up; `start` it before the gateways are prepared."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
        self.site: Site = sites.b
        self.process: SiteProcess | None = None

    @property
    def home(self) -> Path:
        """Its configuration, its state and the log-in of its owner."""
        return self.site.directory / "server"

    @property
    def login(self) -> Path:
        """The owner's log-in, for `SECONDSITE_CLIENT`."""
        return self.home / "client.json"

    @property
    def url(self) -> str:
        """Where gateways and people reach it, from inside the sites."""
        return f"https://{self.site.address}"

    def start(self) -> SiteProcess:
        """Start it; at first, log its owner in and make the vault. Raises LabTimeout, LabCommandFailed."""
        state = self.home / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = {
            "state_dir": str(state),
            "url": self.url,
            "names": [self.site.address],
            "listen": {"host": self.site.address, "port": PORT},
            # the lab's journals are for looking at; a user's `server backup` works
            "backup": {"every_minutes": 0},
        }
        config = self.home / "server.toml"
        replace_file(config, encode_toml(settings).encode(), mode=0o600)
        command: list[str | Path] = [sys.executable, "-m", "secondsite", "server", "--config", config]
        process = self.process = self.site.spawn("server", command)
        token = state / "setup-token"
        processes.wait_until(
            lambda: self._ready(token) or not process.running(),
            what="the server",
            root=self.sites.root,
            seconds=60,
            evidence=lambda: processes.tail(process.log, 10),
        )
        if not self.login.exists():
            self.run("login", "--server", self.url, "--token-file", token)
            self.run("vault", "create", VAULT)
        return process

    def _ready(self, token: Path) -> bool:
        """Whether somebody can log in, or is: the port is open before a first token is written."""
        return (self.login.exists() or token.exists()) and self._listens()

    def _listens(self) -> bool:
        """Whether its port is open, asked inside the site."""
        try:
            return f"{self.site.address}:{PORT}" in self.site.run("ss", "-Hltn")
        except LabCommandFailed:
            return False

    def enrol(self, site: Site, name: str, directory: Path) -> None:
        """Enrol a site's gateway into the vault: its certificate and the server's authority."""
        key = self.home / f"{name}.key"
        self.run("vault", "key", VAULT, "--out", key)
        words: list[str | Path] = [
            "gateway",
            "enrol",
            "--key-file",
            key,
            "--name",
            name,
            "--site",
            site.name.lower(),
        ]
        site.run(*_secondsite(*words, "--out", directory))
        key.unlink()

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs a `secondsite` command at site B, logged in as the owner."""
        environment = ["env", f"SECONDSITE_CLIENT={self.login}"]
        return self.site.command([*environment, *_secondsite(*arguments)])

    def run(self, *arguments: str | Path, timeout_seconds: float = _ENTER_SECONDS) -> str:
        """Run a command to its end and return what it printed. Raises LabCommandFailed."""
        return processes.run(self.command(*arguments), timeout_seconds=timeout_seconds)

    def show(self, arguments: Sequence[str]) -> int:
        """Run a command with this process's terminal; its exit code."""
        return subprocess.run(self.command(*arguments), check=False).returncode


def _secondsite(*arguments: str | Path) -> list[str | Path]:
    # the package as it runs here: inside the site no installation is looked for
    source = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))
    return ["env", f"PYTHONPATH={path}", sys.executable, "-m", "secondsite", *arguments]
