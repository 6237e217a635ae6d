"""Two whole gateways on loopback: configuration files, certificates, real listener, memory fabric at A."""

from __future__ import annotations

import json
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.files import replace_file
from secondsite.base.units import GIB
from secondsite.fabrics.base import Fabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import FileIdentity, ProtectionStatus, ProtectRequest
from secondsite.journal.keys import VaultKey
from secondsite.model.ids import DiskId
from secondsite.transfer.pki import Authority

A, B = "gateway-a", "gateway-b"
SECONDS_MAX = 60.0


class Pair:
    """`root` holds everything; a short path, since control sockets lie below it."""

    def __init__(
        self, root: Path, *, cache_limit_bytes: int = GIB, store: str | None = None, bases: bool | str = False
    ) -> None:
        """store: the URL of B's store, instead of a directory. bases: B has images, of this format."""
        self.bases = bases
        self.root = root
        self.vault = VaultKey.create()
        (root / "safe").mkdir(parents=True)
        self.vault.save(root / "safe" / "vault.key")
        authority = Authority.create(root / "safe" / "authority", clock=SystemClock(), name="test")
        for name in (A, B):
            home = root / name
            (home / "tls").mkdir(parents=True)
            self.vault.save(home / "vault.key")
            authority.issue(name).save(home / "tls", name)
            replace_file(home / "tls" / "ca.crt", authority.certificate_pem)
        self.cache_limit_bytes = cache_limit_bytes
        self.store = store or f"file://{root / B}/store"
        self.b: Gateway | None = None

    def config(self, name: str, *, listen: int | None, peers: dict[str, str]) -> Path:
        home = self.root / name
        lines = [
            f"name = {json.dumps(name)}",
            f'site = "{name[-1]}"',
            f"control_socket = {json.dumps(str(home / 'c.sock'))}",
            f"state_dir = {json.dumps(str(home / 'state'))}",
            f"cache_dir = {json.dumps(str(home / 'cache'))}",
            f"cache_limit_bytes = {self.cache_limit_bytes}",
            f"vault_key = {json.dumps(str(home / 'vault.key'))}",
        ]
        if listen is not None:
            lines.append(f"store = {json.dumps(self.store)}")
        if listen is not None and self.bases:
            (home / "bases").mkdir(exist_ok=True)
            lines.append(f"base_dir = {json.dumps(str(home / 'bases'))}")
            if isinstance(self.bases, str):
                lines.append(f"base_format = {json.dumps(self.bases)}")
        lines += ["[tls]", *(f"{k} = {json.dumps(str(home / 'tls' / v))}" for k, v in self._tls(name))]
        if listen is not None:
            lines += ["[listen]", 'host = "127.0.0.1"', f"port = {listen}"]
        lines += ["[peers]", *(f"{json.dumps(peer)} = {json.dumps(url)}" for peer, url in peers.items())]
        path = home / "gateway.toml"
        replace_file(path, "\n".join(lines).encode())
        return path

    @staticmethod
    def _tls(name: str) -> list[tuple[str, str]]:
        return [("cert", f"{name}.crt"), ("key", f"{name}.key"), ("ca", "ca.crt")]

    def start_b(self, port: int = 0, fabric: Fabric | None = None) -> tuple[str, int]:
        """The target; returns its address."""
        path = self.config(B, listen=port, peers={A: "https://127.0.0.1:1"})
        self.b = Gateway(load_config(path), fabric=fabric)
        self.b.start()
        assert self.b.address is not None
        return self.b.address

    def stop_b(self) -> None:
        if self.b is not None:
            self.b.stop()
            self.b = None

    def config_a(self, address: tuple[str, int]) -> Path:
        return self.config(A, listen=None, peers={B: f"https://{address[0]}:{address[1]}"})

    def start_a(self, address: tuple[str, int], fabric: Fabric) -> Gateway:
        gateway = Gateway(load_config(self.config_a(address)), fabric=fabric)
        gateway.start()
        return gateway

    def client_b(self) -> GatewayClient:
        return GatewayClient(self.root / B / "c.sock")

    def client_a(self) -> GatewayClient:
        return GatewayClient(self.root / A / "c.sock")

    def protect(
        self,
        machine: str,
        *,
        frequency_seconds: float = 1.0,
        peer: str = B,
        left_out: tuple[DiskId, ...] = (),
    ) -> ProtectionStatus:
        key_file = self.root / "safe" / "vault.key"
        status = key_file.stat()
        with self.client_a() as client:
            question = client.challenge()
            request = ProtectRequest(
                peer=peer,
                left_out=left_out,
                nonce=question.nonce,
                proof=self.vault.prove(bytes.fromhex(question.nonce)).hex(),
                key_file=FileIdentity(path=str(key_file), device=status.st_dev, inode=status.st_ino),
                copy_frequency_seconds=frequency_seconds,
            )
            return client.protect(machine, request)
