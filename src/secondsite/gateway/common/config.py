"""A gateway's configuration: one TOML file, everything checked at the start, nothing unknown accepted."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secondsite.base.errors import InvalidInput
from secondsite.base.files import read_limited
from secondsite.base.units import GIB, MIB
from secondsite.gateway.common.loopback import loopback
from secondsite.model.ids import machine_id
from secondsite.model.machines import Mapping as SiteMapping
from secondsite.model.retention import Policies, RetentionPolicy
from secondsite.transfer.pki import gateway_name
from secondsite.transfer.tls import TlsFiles

FILE_BYTES_MAX = 1 * MIB


class _Section(BaseModel):
    """A table of the file. Nothing is taken from the environment: the file says it all."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Section):
    """Where other gateways connect to; absent: this gateway receives nothing."""

    host: str = "0.0.0.0"  # noqa: S104 - the address of the site's own network is for the administrator to say
    port: Annotated[int, Field(ge=0, le=65535)] = 9443
    # where gateways of other sites reach it, told to the server, which tells them; absent: their
    # configuration names it
    advertise: Annotated[str, Field(pattern=r"^https://[!-~]{1,250}$")] | None = None


class Tls(_Section):
    """Files of the mutual TLS between gateways."""

    cert: Path
    key: Path
    ca: Path
    revoked: Path | None = None  # a revocation list of the authority

    def files(self) -> TlsFiles:
        """As the transfer takes them."""
        return TlsFiles(self.cert, self.key, self.ca, self.revoked)


class FabricSettings(_Section):
    """The hypervisor of this gateway's host; absent: a gateway that only stores."""

    kind: Literal["libvirt"] = "libvirt"
    uri: str = "qemu:///system"
    scratch_dir: Path  # a volume of its own: when it fills, guests are at risk
    socket_dir: Path
    guard_socket: Path | None = None  # socket_dir/guard.sock when not given
    # Whether a machine that was taken over elsewhere may be kept from starting with its host. Without it the
    # guard pauses it again within a second of its start, its links down from the first instant.
    own_autostart: bool = False


class MappingSettings(_Section):
    """Where things of the other site go here, above what a protection asked for."""

    networks: dict[str, str] = {}
    pools: dict[str, str] = {}
    default_pool: str | None = None

    def mapping(self) -> SiteMapping:
        """As the model has it."""
        return SiteMapping(networks=self.networks, pools=self.pools, default_pool=self.default_pool)


class RetentionSettings(_Section):
    """Which recovery points stay, of the machines whose replicas are kept here."""

    # every point for two hours, one an hour for a day, one every two hours for a week
    policy: str = "all:2h,1h:1d,2h:7d"
    machines: dict[str, str] = {}  # machine id -> policy, where it is another
    bytes_per_second: Annotated[float, Field(gt=0)] | None = None  # of guest data merged; none: no limit

    def policies(self) -> Policies:
        """As the upkeep takes them. Raises InvalidInput."""
        return Policies(
            RetentionPolicy.parse(self.policy),
            {machine_id(text): RetentionPolicy.parse(policy) for text, policy in self.machines.items()},
        )


class ScrubSettings(_Section):
    """How often the replicas kept here are verified, all of them, byte by byte."""

    every_hours: Annotated[float, Field(ge=0, le=24 * 366)] = 168.0  # once a week; 0: only on demand
    bytes_per_second: Annotated[float, Field(gt=0)] | None = None  # read by a scheduled one; none: no limit


class MetricsSettings(_Section):
    """For Prometheus, beside the control socket."""

    listen: str | None = None  # ADDRESS:PORT of the loopback interface; absent: no port


class ServerSettings(_Section):
    """The server this gateway belongs to; absent: it works alone."""

    directory: Path  # where `secondsite gateway enrol` left its files


class GatewayConfig(_Section):
    """The whole file."""

    name: str  # also in its certificate
    site: str
    control_socket: Path = Path("/run/secondsite/gateway.sock")
    state_dir: Path
    cache_dir: Path  # spool and tables; may be lost
    # how much may wait while the link is cut; beyond it capture pauses
    cache_limit_bytes: Annotated[int, Field(ge=64 * MIB)] = 16 * GIB
    # URL of the replicas kept here: file:///directory, s3://bucket/prefix or az://container/prefix; absent:
    # this gateway receives nothing
    store: str | None = None
    # NAME=VALUE lines with the object store's variables, above those of the environment; mode 0600
    store_credentials: Path | None = None
    # objects of points are locked for so long, in an S3 bucket made with object lock; 0: not at all
    store_lock_days: Annotated[int, Field(ge=0, le=3650)] = 0
    # in a storage pool of this site: first copies become images here; absent: all stays in the journal
    base_dir: Path | None = None
    base_format: Literal["raw", "qcow2"] = "raw"  # of new ones; those that are there stay what they are
    vault_key: Path
    tls: Tls
    listen: Listen | None = None
    server: ServerSettings | None = None
    fabric: FabricSettings | None = None
    peers: dict[str, str] = {}  # name (as in its certificate) -> https://host:port
    # which machines a peer may write; a peer that is not named here may write any it is the writer of
    peer_machines: dict[str, tuple[str, ...]] = {}
    mapping: MappingSettings = MappingSettings()
    retention: RetentionSettings = RetentionSettings()
    scrub: ScrubSettings = ScrubSettings()
    metrics: MetricsSettings = MetricsSettings()
    bandwidth_bytes_per_second: Annotated[float, Field(gt=0)] | None = None
    connections: Annotated[int, Field(ge=2, le=4)] = 3


def load_config(path: Path) -> GatewayConfig:
    """Read and check a file. Raises InvalidInput naming the first wrong setting."""
    what = f"the configuration {path}"
    try:
        data = read_limited(path, size_bytes_max=FILE_BYTES_MAX)
        config = GatewayConfig(**tomllib.loads(data.decode()))
        gateway_name(config.name)
        config.retention.policies()
        if config.metrics.listen is not None:
            loopback(config.metrics.listen)
    except FileNotFoundError:
        raise InvalidInput(what=what, why="there is no such file") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(what=what, why=str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(what=what, why=f"{where}: {first['msg']}") from None
    return config
