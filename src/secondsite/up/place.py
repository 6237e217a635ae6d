"""Everything `secondsite up` makes, below one directory; what is there already is used as it is.

DIR/server.toml      the server's configuration, written once, yours from then on
DIR/gateway.toml     the gateway's
DIR/vault.key        the recovery key of the vault: nobody opens a replica without it
DIR/join.key         for the second site: a registration key and the vault's key; a secret
DIR/server/          state of the server, master.key among it
DIR/gateway/         state, cache and certificates of the gateway
DIR/store/           the replicas kept here
DIR/log/             what both say
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.errors import InvalidInput, Outcome, SecondsiteError
from secondsite.base.files import read_limited, replace_file
from secondsite.gateway.common.sockets import check_socket_path
from secondsite.journal.key_file import decode_key_file
from secondsite.transfer.registration import RegistrationKey, parse_key

ROOT_DIRECTORY = Path("/var/lib/secondsite")
SERVER_PORTS = (443, 8443)
GATEWAY_PORTS = (9443,)
JOIN_BYTES_MAX = 64 * 1024
_KEY_FILE_HEAD = "secondsite vault key"


class UpAlready(SecondsiteError):
    """Another one of the same directory."""

    code = "up.already"
    outcome = Outcome.REFUSED
    happened = "`secondsite up` runs already in {directory}."
    cause = "It was started before, perhaps by the system at its start."
    action = "Use what runs, stop it first, or give another --dir."


@dataclass(frozen=True)
class Place:
    """The directory and the names in it."""

    root: Path

    @property
    def server_config(self) -> Path:
        """The server's configuration."""
        return self.root / "server.toml"

    @property
    def gateway_config(self) -> Path:
        """The gateway's configuration."""
        return self.root / "gateway.toml"

    @property
    def server_state(self) -> Path:
        """The server's state directory."""
        return self.root / "server"

    @property
    def gateway_home(self) -> Path:
        """Everything of the gateway but its socket and store."""
        return self.root / "gateway"

    @property
    def tls(self) -> Path:
        """Where the gateway is enrolled into."""
        return self.gateway_home / "tls"

    @property
    def control_socket(self) -> Path:
        """Where commands reach the gateway."""
        return self.root / "gateway.sock"

    @property
    def vault_key(self) -> Path:
        """The vault's recovery key."""
        return self.root / "vault.key"

    @property
    def join_key(self) -> Path:
        """What the second site is joined with."""
        return self.root / "join.key"

    @property
    def store(self) -> Path:
        """The replicas kept here."""
        return self.root / "store"

    def log(self, name: str) -> Path:
        """What a child says."""
        return self.root / "log" / f"{name}.log"

    def prepare(self) -> None:
        """Make the directory. Raises InvalidInput, SocketPathTooLong."""
        check_socket_path(self.control_socket)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InvalidInput(what=f"the directory {self.root}", why=error.strerror or str(error)) from None

    @contextlib.contextmanager
    def mine(self) -> Iterator[None]:
        """One `up` a directory. Raises UpAlready."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UpAlready(directory=self.root) from None
            yield
        finally:
            os.close(fd)


def default_directory() -> Path:
    """Of the system for root, of the user for others."""
    if os.geteuid() == 0:
        return ROOT_DIRECTORY
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "secondsite"


@dataclass(frozen=True)
class Join:
    """What a second site is given: where the server is, and the vault's key."""

    registration: RegistrationKey
    vault_key: bytes | None  # a key file

    def save(self, path: Path) -> None:
        """Write it, mode 0600: it is a secret."""
        text = self.registration.text().encode() + b"\n" + (self.vault_key or b"")
        replace_file(path, text, mode=0o600)


def read_join(path: Path) -> Join:
    """Read a join key, or a bare registration key. Raises InvalidInput, KeyFileInvalid."""
    what = f"the key {path}"
    try:
        text = read_limited(path, size_bytes_max=JOIN_BYTES_MAX).decode()
    except FileNotFoundError:
        raise InvalidInput(what=what, why="there is no such file") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(what=what, why=str(error)) from None
    registration, head, rest = text.partition(_KEY_FILE_HEAD)
    if not head:
        return Join(parse_key(registration), None)
    data = (head + rest).encode()
    decode_key_file(path, data)
    return Join(parse_key(registration), data)


def free_port(host: str, wanted: tuple[int, ...]) -> int:
    """The first of the ports that can be listened on, or any other."""
    for port in (*wanted, 0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:  # taken, or below 1024 and we are not root
                continue
            return int(probe.getsockname()[1])
    raise InvalidInput(what=f"the address {host}", why="nothing can listen on it")


def own_address() -> str:
    """The address by which others reach this machine, as its routes say; its name where they say nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documents (RFC 5737): nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname().lower()


def site_name(text: str) -> str:
    """A site's name as part of a gateway's: letters, digits and dashes, in lower case."""
    found = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
    if not found:
        raise InvalidInput(what=f"the site {text!r}", why="no letter or digit is in it")
    return found
