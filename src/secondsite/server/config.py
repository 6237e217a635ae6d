"""The server's configuration: one TOML file, or none at all; everything checked at the start."""

from __future__ import annotations

import ipaddress
import socket
import tomllib
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secondsite.base.errors import InvalidInput
from secondsite.base.files import read_limited
from secondsite.base.units import MIB
from secondsite.transfer.pki import gateway_name
from secondsite.transfer.registration import server_url

FILE_BYTES_MAX = 1 * MIB
DEFAULT_CONFIG = Path("/etc/secondsite/server.toml")
DEFAULT_STATE_DIR = Path("/var/lib/secondsite/server")


class _Section(BaseModel):
    """A table of the file. Nothing is taken from the environment: the file says it all."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Section):
    """Where people and gateways connect to, always with TLS."""

    host: str = "0.0.0.0"  # noqa: S104 - gateways of other sites connect from anywhere; TLS and tokens guard it
    port: Annotated[int, Field(ge=0, le=65535)] = 443
    # behind a load balancer: whose X-Forwarded-For is believed; nobody's by default
    trusted_proxies: tuple[str, ...] = ()


class Tls(_Section):
    """A certificate of the site's own; absent: the server makes one, signed by its own authority."""

    cert: Path
    key: Path


class Limits(_Section):
    """What one client, and all of them, may take."""

    connections_max: Annotated[int, Field(ge=8, le=65536)] = 1024
    head_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0  # for a request line and its headers
    body_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0  # for a whole body; the largest is 1 MiB
    write_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0  # a reader that takes nothing for so long
    idle_seconds: Annotated[int, Field(ge=1, le=3600)] = 75  # between requests; gateways poll every minute
    stop_seconds: Annotated[int, Field(ge=1, le=600)] = 15  # what requests in progress get at the end


class BackupSettings(_Section):
    """How often the server's own state is backed up, and where to; sealed with a key made of master.key."""

    # 0: only when asked for. The work between the newest backup and a loss is lost at the server.
    every_minutes: Annotated[int, Field(ge=0, le=7 * 24 * 60)] = 60
    keep: Annotated[int, Field(ge=2, le=10_000)] = 48  # at every place; the oldest go
    gateways: bool = True  # into the store of every gateway that has one
    # one place more: file:///directory, s3://bucket/prefix or az://container/prefix
    url: str | None = None
    credentials: Path | None = None  # NAME=VALUE lines with the object store's variables, mode 0600
    # While a standby follows: a copy whenever something changed, so often at most; 0: backups only
    copy_seconds: Annotated[int, Field(ge=0, le=24 * 3600)] = 60


class StandbySettings(_Section):
    """How this machine follows the active server while it is a standby; read in that role only."""

    # the replica store of its own site: file:///directory, s3://bucket/prefix or az://container/prefix
    store: str | None = None
    credentials: Path | None = None
    active: str | None = None  # https://host[:port] of the active server: asked whether anything is newer
    look_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 15.0
    late_minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] = 15.0  # further behind: told, and measured


class ServerConfig(_Section):
    """The whole file; every setting has a default."""

    name: str = "server"
    state_dir: Path = DEFAULT_STATE_DIR
    # sqlite:///FILE or postgresql://...; absent: SQLite in the state directory
    database: str | None = None
    # https://host[:port] that gateways reach it at: the load balancer's where there is one, else this host
    url: str | None = None
    # names and addresses people and gateways reach it by, for its certificate; its host name is always one
    names: tuple[str, ...] = ()
    listen: Listen = Listen()
    tls: Tls | None = None
    limits: Limits = Limits()
    backup: BackupSettings = BackupSettings()
    standby: StandbySettings | None = None

    def database_url(self) -> str:
        """Where the state lives."""
        return self.database or f"sqlite:///{self.state_dir / 'server.db'}"

    def reached_at(self) -> str:
        """The address that registration keys carry to gateways."""
        if self.url is not None:
            return server_url(self.url)
        host = self.names[0] if self.names else self.listen.host
        if _unspecified(host):
            host = socket.gethostname().lower()
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}" + ("" if self.listen.port in (0, 443) else f":{self.listen.port}")

    def reached_as(self) -> list[str]:
        """Every name and address the server's certificate must hold, in order, each once."""
        found = [*self.names, self.name, socket.gethostname().lower(), "localhost", "127.0.0.1", "::1"]
        if not _unspecified(self.listen.host):
            found.insert(0, self.listen.host)
        if self.url is not None:
            found.insert(0, urlsplit(self.url).hostname or self.name)
        return list(dict.fromkeys(found))


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def load_config(path: Path | None) -> ServerConfig:
    """Read and check a file; without one the defaults, or the file at its usual place.

    Raises:
        InvalidInput: names the first wrong setting.
    """
    if path is None:
        if not DEFAULT_CONFIG.exists():
            return ServerConfig()
        path = DEFAULT_CONFIG
    what = f"the configuration {path}"
    try:
        data = read_limited(path, size_bytes_max=FILE_BYTES_MAX)
        config = ServerConfig(**tomllib.loads(data.decode()))
        gateway_name(config.name)
        config.reached_at()
    except FileNotFoundError:
        raise InvalidInput(what=what, why="there is no such file") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(what=what, why=str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(what=what, why=f"{where}: {first['msg']}") from None
    return config
