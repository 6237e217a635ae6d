"""Both gateways of the lab: keys, certificates, configuration, and the processes inside their sites."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.base.units import GIB
from secondsite.gateway.client import GatewayClient, GatewayUnreachable
from secondsite.gateway.messages import FileIdentity, ProtectionStatus, ProtectRequest
from secondsite.journal.keys import VaultKey
from secondsite.lab import processes
from secondsite.lab.place import Site, SiteProcess
from secondsite.lab.sites import Sites
from secondsite.transfer.pki import Authority

TRANSFER_PORT = 9443


class Gateways:
    """The gateways of a lab: A sends to B. Make it once the sites are up."""

    def __init__(self, sites: Sites) -> None:
        self.sites = sites
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

    def prepare(self, *, spool_bytes: int = GIB) -> None:
        """Make the vault's key, an authority, a certificate for each gateway and both configurations."""
        safe = self.sites.root / "safe"
        safe.mkdir(mode=0o700, exist_ok=True)
        key = VaultKey.create()
        key.save(self.recovery_key)
        authority = Authority.create(safe / "authority", clock=SystemClock(), name="lab")
        for site in self.sites.sites:
            home = site.directory / "gateway"
            for name in ("state", "cache", "store", "tls"):
                (home / name).mkdir(mode=0o755, parents=True, exist_ok=True)
            key.save(home / "vault.key")
            authority.issue(self.name(site)).save(home / "tls", self.name(site))
            replace_file(home / "tls" / "authority.crt", authority.certificate_pem, mode=0o644)
            replace_file(home / "tls" / "revoked.pem", authority.revoked_path.read_bytes(), mode=0o644)
            settings = self._settings(site, spool_bytes)
            replace_file(self.configuration(site), encode_toml(settings).encode(), mode=0o600)

    @staticmethod
    def configuration(site: Site) -> Path:
        """A gateway's configuration file."""
        return site.directory / "gateway" / "gateway.toml"

    def _settings(self, site: Site, spool_bytes: int) -> dict[str, object]:
        home = site.directory / "gateway"
        other = self.sites.b if site is self.sites.a else self.sites.a
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
            "listen": {"host": site.address, "port": TRANSFER_PORT},
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
            "peers": {self.name(other): f"https://{other.address}:{TRANSFER_PORT}"},
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
        """Ask both to end."""
        for process in self.running.values():
            process.stop()
        self.running.clear()

    def protect(self, machine: str, *, copy_frequency_seconds: float = 5.0) -> ProtectionStatus:
        """Protect a machine of site A at site B, as ``secondsite protect`` does."""
        key = VaultKey.load(self.recovery_key)
        identity = self.recovery_key.stat()
        a, b = self.sites.sites
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


def encode_toml(settings: Mapping[str, object], path: str = "") -> str:
    """A mapping of strings, numbers, booleans and mappings as TOML; tables after plain values."""
    plain, tables = [], []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            table = f"{path}.{name}" if path else name
            tables.append(f"\n[{table}]\n{encode_toml(value, table)}")
        else:
            # TOML writes strings, whole numbers and booleans as JSON does
            plain.append(f"{name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(plain + tables)
