"""The gateways of the lab: keys, certificates, configuration, and the processes inside their sites."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.base.toml import encode_toml
from secondsite.base.units import GIB
from secondsite.gateway.control.client import GatewayClient, GatewayUnreachable
from secondsite.gateway.messages.gateway import FileIdentity, ProtectionStatus, ProtectRequest
from secondsite.journal.keys import VaultKey
from secondsite.lab import processes
from secondsite.lab.place import Site, SiteProcess
from secondsite.lab.server import LabServer
from secondsite.lab.sites import Sites
from secondsite.transfer.pki import Authority

TRANSFER_PORT = 9443


class Gateways:
    """The gateways of a lab, one a site: A sends to B. Make it once the sites are up.

    With a server they are enrolled with it and learn from it where the others are; without one they have an
    authority of the lab's own and each other's address in their configuration.
    """

    def __init__(self, sites: Sites, server: LabServer | None = None) -> None:
        self.sites = sites
        self.server = server
        self.running: dict[str, SiteProcess] = {}

    @staticmethod
    def name(site: Site) -> str:
        """A gateway's name, also in its certificate."""
        return f"gateway-{site.name.lower()}"

    @staticmethod
    def control_socket(site: Site) -> Path:
        """Where commands reach a site's gateway."""
        return site.directory / "gateway" / "control.sock"

    @property
    def recovery_key(self) -> Path:
        """The exported copy of the vault's key: on a real site, a stick in a safe."""
        return self.sites.root / "safe" / "vault.key"

    def prepare(self, sites: Sequence[Site] | None = None, *, spool_bytes: int = GIB) -> None:
        """Make the vault's key, and what each gateway needs: certificate and configuration. sites: all."""
        safe = self.sites.root / "safe"
        safe.mkdir(mode=0o700, exist_ok=True)
        key = VaultKey.create()
        key.save(self.recovery_key)
        issue = self._enrol if self.server is not None else self._issue()
        for site in sites or self.sites.sites:
            home = site.directory / "gateway"
            for name in ("state", "cache", "store", "tls"):
                (home / name).mkdir(mode=0o755, parents=True, exist_ok=True)
            key.save(home / "vault.key")
            issue(site, home / "tls")
            settings = self._settings(site, spool_bytes)
            replace_file(self.configuration(site), encode_toml(settings).encode(), mode=0o600)

    def _enrol(self, site: Site, directory: Path) -> None:
        assert self.server is not None
        self.server.enrol(site, self.name(site), directory)

    def _issue(self) -> Callable[[Site, Path], None]:
        """Certificates of an authority of the lab's own."""
        directory = self.sites.root / "safe" / "authority"
        authority = Authority.create(directory, clock=SystemClock(), name="lab")

        def issue(site: Site, directory: Path) -> None:
            authority.issue(self.name(site)).save(directory, self.name(site))
            replace_file(directory / "authority.crt", authority.certificate_pem, mode=0o644)
            replace_file(directory / "revoked.pem", authority.revoked_path.read_bytes(), mode=0o644)

        return issue

    @staticmethod
    def configuration(site: Site) -> Path:
        """A gateway's configuration file."""
        return site.directory / "gateway" / "gateway.toml"

    def _settings(self, site: Site, spool_bytes: int) -> dict[str, object]:
        home = site.directory / "gateway"
        others = [one for one in self.sites.sites if one is not site]
        listen: dict[str, object] = {"host": site.address, "port": TRANSFER_PORT}
        found: dict[str, object] = {
            "peers": {self.name(one): f"https://{one.address}:{TRANSFER_PORT}" for one in others}
        }
        if self.server is not None:
            listen["advertise"] = f"https://{site.address}:{TRANSFER_PORT}"
            found = {"server": {"directory": str(home / "tls")}}
        return {
            "name": self.name(site),
            "site": site.name.lower(),
            "control_socket": str(self.control_socket(site)),
            "state_dir": str(home / "state"),
            "cache_dir": str(home / "cache"),
            "cache_limit_bytes": spool_bytes,
            "store": f"file://{home / 'store'}",
            "base_dir": str(site.disks / "replicas"),
            "vault_key": str(home / "vault.key"),
            "listen": listen,
            "tls": {
                "cert": str(home / "tls" / f"{self.name(site)}.crt"),
                "key": str(home / "tls" / f"{self.name(site)}.key"),
                "ca": str(home / "tls" / "authority.crt"),
                "revoked": str(home / "tls" / "revoked.pem"),
            },
            "fabric": {
                "kind": "libvirt",
                "uri": site.inner_uri,
                "scratch_dir": str(site.scratch),
                "socket_dir": str(site.sockets),
            },
            **found,
        }

    def start(self, site: Site, *, environment: Mapping[str, str] | None = None) -> SiteProcess:
        """Start a site's gateway and wait until it answers commands."""
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "secondsite",
            "gateway",
            "--config",
            self.configuration(site),
        ]
        process = site.spawn(self.name(site), command, environment=environment)
        self.running[site.name] = process
        processes.wait_until(
            lambda: self.answers(site) or not process.running(),
            what=f"the gateway of site {site.name}",
            root=self.sites.root,
            seconds=60,
            evidence=lambda: processes.tail(process.log, 10),
        )
        if not process.running():
            raise GatewayEnded(site=site.name, log=process.log, output=processes.tail(process.log, 20))
        return process

    def answers(self, site: Site) -> bool:
        """Whether a site's gateway answers commands now."""
        try:
            with self.client(site) as client:
                client.status()
        except GatewayUnreachable:
            return False
        return True

    def client(self, site: Site) -> GatewayClient:
        """A client of a site's gateway; a context manager."""
        return GatewayClient(self.control_socket(site))

    def stop(self) -> None:
        """Ask all to end."""
        for process in self.running.values():
            process.stop()
        self.running.clear()

    def protect(
        self, machine: str, *, copy_frequency_seconds: float = 5.0, at: Site | None = None
    ) -> ProtectionStatus:
        """Protect a machine of a site, A if not said, at the other one, as ``secondsite protect`` does."""
        key = VaultKey.load(self.recovery_key)
        identity = self.recovery_key.stat()
        a, b = (self.sites.a, self.sites.b) if at in (None, self.sites.a) else (self.sites.b, self.sites.a)
        with self.client(a) as client:
            question = client.challenge()
            request = ProtectRequest(
                peer=self.name(b),
                nonce=question.nonce,
                proof=key.prove(bytes.fromhex(question.nonce)).hex(),
                key_file=FileIdentity(
                    path=str(self.recovery_key), device=identity.st_dev, inode=identity.st_ino
                ),
                copy_frequency_seconds=copy_frequency_seconds,
                networks={a.network: b.network},
                pools={a.pool: b.pool},
                default_pool=b.pool,
            )
            return client.protect(machine, request)


class GatewayEnded(SecondsiteError):
    """A gateway of the lab ended by itself."""

    code = "lab.gateway-ended"
    happened = "The gateway of site {site} ended right after its start: {output}"
    cause = "Its configuration or its surroundings are not what it needs."
    action = "Read {log}."
