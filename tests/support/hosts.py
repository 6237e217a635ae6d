"""Two hosts as docs/install.md sets them up, each below a directory of its own, and a shell at each.

At A runs a gateway in this process over the twin of a hypervisor, so that a test can make things happen to
the machine; at B the real command. A line typed at a host sees that host's ``/etc/secondsite``, ``/srv``,
``/var/lib/secondsite`` and ``/run/secondsite`` (its paths are prefixed), and a ``systemctl`` that starts and
stops the host's gateway.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.base.toml import encode_toml
from secondsite.base.units import KIB, MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.config import load_config
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import ExportRequest, PointSummary, ProtectionStatus
from secondsite.journal.keys import VaultKey
from secondsite.lab import processes
from secondsite.model.ids import MachineId
from secondsite.transfer.pki import Authority
from support.control import command_environment, read_uri

NAMES = {"A": "gateway-a", "B": "gateway-b"}
MACHINE, DISKS = "shop", {"vda": 16 * MIB, "vdb": 4 * MIB}
SECONDS = 60.0
COMMAND_SECONDS = 90
_PATHS = re.compile(r"(?<![\w.])/(?=(?:etc/secondsite|srv|var/lib/secondsite|run/secondsite|media)\b)")

_SYSTEMCTL = """#!/bin/sh
exec {python} - "$@" <<'END'
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({socket!r})
    s.sendall({host!r}.encode() + b" " + " ".join(sys.argv[1:]).encode() + b"\\n")
    code, _, text = s.makefile().read().partition(" ")
print(text, end="")
sys.exit(int(code))
END
"""


class Guest(threading.Thread):
    """Writes what does not compress into a disk, all over, until it is told to stop."""

    def __init__(self, fabric: MemoryFabric, machine: MachineId, *, bytes_per_second: int) -> None:
        super().__init__(daemon=True)
        self._fabric, self._machine, self._pause = fabric, machine, 256 * KIB / bytes_per_second
        self._stop_now = threading.Event()

    def run(self) -> None:
        offset = 0
        while not self._stop_now.wait(self._pause):
            self._fabric.write(self._machine, "vda", offset, secrets.token_bytes(256 * KIB))
            offset = (offset + 256 * KIB) % DISKS["vda"]

    def end(self) -> None:
        self._stop_now.set()
        self.join()


class Hosts:
    """Both hosts. `root` is short: sockets lie below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fabric = MemoryFabric()
        self.machine = self.fabric.add_machine(MACHINE, DISKS)
        # a free address of this machine, for the port every gateway has
        self.address = (
            f"127.{os.getpid() % 250 + 1}.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 2}"
        )
        self.safe = root / "safe"
        self.safe.mkdir()
        self.vault = VaultKey.create()
        self.vault.save(self.safe / "vault.key")
        self.a: Gateway | None = None
        self.b: subprocess.Popen[bytes] | None = None
        self._guest: Guest | None = None
        authority = Authority.create(self.safe / "authority", clock=SystemClock(), name="test")
        for host, name in NAMES.items():
            self.new_host(host)
            authority.issue(name).save(self.path(host, "/etc/secondsite/tls"), name)
            replace_file(self.path(host, "/etc/secondsite/tls/authority.crt"), authority.certificate_pem)
            shutil.copy(authority.revoked_path, self.path(host, "/etc/secondsite/tls/revoked.pem"))
            self.vault.save(self.path(host, "/etc/secondsite/vault.key"))
            self.write_config(host)

    def path(self, host: str, path: str) -> Path:
        """Where a host's path lies."""
        return self.root / host / path.lstrip("/")

    def new_host(self, host: str) -> None:
        """An empty host with the command installed, and the safe's contents at /media/safe."""
        (self.root / host / "bin").mkdir(parents=True)
        (self.root / host / "media").mkdir()
        self.path(host, "/media/safe").symlink_to(self.safe)
        self._script(host, "secondsite", f'#!/bin/sh\nexec {sys.executable} -m secondsite "$@"\n')
        text = _SYSTEMCTL.format(python=sys.executable, socket=str(self._control), host=host)
        self._script(host, "systemctl", text)
        for made in ("/etc/secondsite/tls", "/var/lib/secondsite/state", "/srv/cache", "/run/secondsite"):
            self.path(host, made).mkdir(parents=True)

    @property
    def _control(self) -> Path:
        return self.root / "systemd.sock"

    def _script(self, host: str, name: str, text: str) -> None:
        path = self.root / host / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def write_config(self, host: str, **more: object) -> None:
        """The host's configuration, in its own paths, and the copy of it that is kept in the safe."""
        name = NAMES[host]
        tls = {"cert": f"{name}.crt", "key": f"{name}.key", "ca": "authority.crt", "revoked": "revoked.pem"}
        settings: dict[str, object] = {
            "name": name,
            "site": host.lower(),
            "control_socket": "/run/secondsite/gateway.sock",
            "state_dir": "/var/lib/secondsite/state",
            "cache_dir": "/srv/cache",
            "vault_key": "/etc/secondsite/vault.key",
        }
        if host == "B":
            settings |= {
                "store": "file:///srv/replicas",
                "base_dir": "/srv/bases",
                "listen": {"host": self.address, "port": 9443},
            }
        settings |= more
        settings["tls"] = {key: f"/etc/secondsite/tls/{file}" for key, file in tls.items()}
        settings["peers"] = (
            {NAMES["B"]: f"https://{self.address}:9443"}
            if host == "A"
            else {NAMES["A"]: "https://127.0.0.1:1"}
        )
        data = encode_toml(settings).encode()
        replace_file(self.path(host, "/etc/secondsite/gateway.toml"), data)
        replace_file(self.safe / f"{name}.toml", data)

    # the gateways, as systemd would

    def systemctl(self, host: str, verb: str) -> tuple[int, str]:
        """What the host's systemctl does; the exit code and what it prints."""
        if verb in ("stop", "restart"):
            self.stop(host)
        if verb in ("start", "restart") and not self.runs(host):
            self.start(host)
        if verb == "is-active":
            return (0, "active\n") if self.runs(host) else (3, "inactive\n")
        return (0, "") if verb in ("start", "stop", "restart") else (1, f"unknown: {verb}\n")

    def runs(self, host: str) -> bool:
        return self.a is not None if host == "A" else self.b is not None and self.b.poll() is None

    def start(self, host: str) -> None:
        config = self.root / host / "gateway.placed.toml"
        text = self.path(host, "/etc/secondsite/gateway.toml").read_text()
        replace_file(config, self._placed(host, text).encode())
        if host == "A":
            self.a = Gateway(load_config(config), fabric=self.fabric)
            self.a.start()
            return
        command = [sys.executable, "-m", "secondsite", "gateway", "--config", str(config)]
        with (self.root / "b.log").open("ab") as output:
            self.b = subprocess.Popen(command, stdout=output, stderr=output, env=command_environment())
        self.until(lambda: self.answers("B") or not self.runs("B"), "gateway B answers")
        assert self.runs("B"), self.evidence()

    def stop(self, host: str) -> None:
        if host == "A" and self.a is not None:
            self.a.stop()
            self.a = None
        if host == "B" and self.b is not None:
            self.b.terminate()
            self.b.wait(30)
            self.b = None

    def lose(self, host: str, *, keep: tuple[str, ...] = ()) -> None:
        """The host is gone, with all its files but those below `keep`; a new empty one takes its place."""
        if host == "B":
            assert self.b is not None
            self.b.kill()
            self.b.wait()
            self.b = None
        self.stop(host)
        self._end_others(host)
        kept = {path: self.root / f"kept-{number}" for number, path in enumerate(keep)}
        for path, place in kept.items():
            self.path(host, path).rename(place)
        shutil.rmtree(self.root / host)
        (self.root / host).mkdir()
        self.new_host(host)
        for path, place in kept.items():
            place.rename(self.path(host, path))

    def _end_others(self, host: str) -> None:
        """What outlives a gateway and not its host: processes that serve points."""
        mine = f"{self.root / host}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if mine in (entry / "cmdline").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)

    # a person at a host

    def run(self, host: str, line: str) -> tuple[int, str]:
        """A line typed at the host: its exit code and everything it printed."""
        environment = command_environment(
            SECONDSITE_GATEWAY=str(self.path(host, "/run/secondsite/gateway.sock")), COLUMNS="500"
        )
        environment["PATH"] = f"{self.root / host / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            ["/bin/sh", "-euc", self._placed(host, line)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        return done.returncode, done.stdout

    def _placed(self, host: str, text: str) -> str:
        """The host's own paths as they lie here; paths that are placed already stay."""
        return _PATHS.sub(f"{self.root / host}/", text)

    def shell(self, host: str, line: str) -> str:
        """A line that must succeed."""
        code, printed = self.run(host, line)
        assert code == 0, f"{host}# {line}\n{printed}\n{self.evidence()}"
        return printed

    # looking

    def answers(self, host: str) -> bool:
        with suppress(SecondsiteError), self.client(host) as client:
            client.status()
            return True
        return False

    def client(self, host: str) -> GatewayClient:
        return GatewayClient(self.path(host, "/run/secondsite/gateway.sock"))

    def status(self) -> ProtectionStatus:
        with self.client("A") as client:
            return client.protection(MACHINE)

    def points(self) -> list[PointSummary]:
        with self.client("B") as client:
            return client.points(MACHINE)

    def codes(self, host: str) -> list[str]:
        with self.client(host) as client:
            return [entry.event.code for entry in client.events()]

    def until(self, condition: object, what: str, seconds: float = SECONDS) -> None:
        assert callable(condition)
        processes.wait_until(
            condition, what=what, root=self.root, seconds=seconds, poll_seconds=0.1, evidence=self.evidence
        )

    def evidence(self) -> str:
        """What happened at both, for a failure's message."""
        log = self.root / "b.log"
        lines = [f"--- B's log\n{processes.tail(log, 20)}" if log.exists() else ""]
        for host in NAMES:
            with suppress(SecondsiteError, OSError), self.client(host) as client:
                lines += [f"--- events at {host}"]
                lines += [f"{entry.event.code}: {entry.event.text}" for entry in client.events()[-25:]]
        return "\n".join(lines)

    # the machine

    def protect(self, *, seconds: int = 1) -> None:
        """Protect it as the README does, and wait for the first point."""
        self.fabric.write(self.machine, "vda", 0, secrets.token_bytes(2 * MIB))
        key = "/media/safe/vault.key"
        line = f"secondsite protect {MACHINE} --to gateway-b --recovery-key-file {key}"
        self.shell("A", f"{line} --frequency {seconds}s --no-wait")
        self.until(lambda: self.status().last_point is not None, "the first point")

    def busy(self, *, bytes_per_second: int) -> None:
        """The guest writes that much from now on."""
        self._guest = Guest(self.fabric, self.machine, bytes_per_second=bytes_per_second)
        self._guest.start()

    def quiet(self) -> None:
        if self._guest is not None:
            self._guest.end()
            self._guest = None

    def check_newest(self) -> None:
        """A point of now holds what the machine's disks hold, read through an export at B."""
        self.quiet()
        content = {disk: self.fabric.content(self.machine, disk) for disk in DISKS}
        with self.client("A") as client:
            taken = client.take_point(MACHINE)
        assert self.read_point(taken.number) == content, f"point {taken.number} differs\n{self.evidence()}"

    def read_point(self, number: int) -> dict[str, bytes]:
        """What a point's disks hold, read through an export at B."""
        look = str(self.path("B", "/run/secondsite/look"))
        with self.client("B") as client:
            export = client.start_export(MACHINE, ExportRequest(point=str(number), socket_dir=look))
            try:
                return {str(disk.id): read_uri(disk.uri) for disk in export.disks}
            finally:
                client.end_export(MACHINE, export.id)

    def close(self) -> None:
        self.quiet()
        for host in ("A", "B"):
            self.stop(host)
            self._end_others(host)


class _Systemd(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        host, verb, *_rest = self.rfile.readline().decode().split()
        try:
            code, text = self.server.hosts.systemctl(host, verb)  # type: ignore[attr-defined]
        except (SecondsiteError, AssertionError) as error:  # shown to whoever typed it
            code, text = 1, f"{error}\n"
        self.wfile.write(f"{code} {text}".encode())


@contextmanager
def systemd(hosts: Hosts) -> Iterator[None]:
    """What `systemctl` at the hosts talks to."""
    with socketserver.ThreadingUnixStreamServer(str(hosts._control), _Systemd) as server:
        server.hosts = hosts  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def two_hosts(root: Path) -> Iterator[Hosts]:
    """Both hosts with their systemd; neither gateway runs yet."""
    hosts = Hosts(root)
    with systemd(hosts):
        try:
            yield hosts
        finally:
            hosts.close()
