"""What a first start makes: configurations, the vault and its key, the gateway's certificate."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from secondsite.base.clock import Clock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.base.files import create_file, read_limited, replace_file
from secondsite.base.toml import encode_toml
from secondsite.gateway.common.enrolerrors import NotEnrolled
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.uplink.enrol import NewMember, enrol
from secondsite.gateway.uplink.enrolclient import Way
from secondsite.journal.keys import VaultKey
from secondsite.server.api.services import Services
from secondsite.server.config import ServerConfig, load_config
from secondsite.server.main import Server
from secondsite.server.people.roles import THE_SERVER
from secondsite.transfer.registration import RegistrationKey
from secondsite.up.place import GATEWAY_PORTS, SERVER_PORTS, Join, Place, free_port, read_join

VAULT = "Main"
KEY_FILE_BYTES_MAX = 64 * 1024
# A join key lives five days; one that is older than this is made anew at a start.
JOIN_LEFT = dt.timedelta(days=4)
IMAGES = "secondsite-replicas"


@dataclass(frozen=True)
class Wanted:
    """What the command line says; all of it has a default."""

    site: str
    host: str  # to listen on
    address: str  # by which others reach this machine


@dataclass(frozen=True)
class Hypervisor:
    """The libvirt of this machine. pool: directory of its default storage pool, where it has one."""

    uri: str
    pool: Path | None


def find_libvirt(uri: str = "qemu:///system") -> Hypervisor | str:
    """This machine's libvirt, or why there is none."""
    try:
        import libvirt  # noqa: PLC0415 - loads libvirt's library
    except ImportError:
        return "its Python library is not installed"
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        return str(error)
    try:
        return Hypervisor(uri, _default_pool(connection.storagePoolLookupByName("default").XMLDesc()))
    except libvirt.libvirtError:
        return Hypervisor(uri, None)
    finally:
        connection.close()


def _default_pool(xml: str) -> Path | None:
    found = ET.fromstring(xml).findtext("target/path")  # noqa: S314 - of our own host's libvirt
    return Path(found) if found else None


def server_settings(place: Place, wanted: Wanted) -> ServerConfig:
    """The server's configuration, written at the first start."""
    if not place.server_config.exists():
        port = free_port(wanted.host, SERVER_PORTS)
        shown = f"[{wanted.address}]" if ":" in wanted.address else wanted.address
        settings = {
            "state_dir": str(place.server_state),
            "url": f"https://{shown}" + ("" if port == 443 else f":{port}"),
            "names": [wanted.address],
            "listen": {"host": wanted.host, "port": port},
        }
        replace_file(place.server_config, encode_toml(settings).encode(), mode=0o600)
    return load_config(place.server_config)


def make_keys(place: Place, config: ServerConfig, clock: Clock, *, gateway: str) -> RegistrationKey | None:
    """The vault, its recovery key, and a join key that is young enough; before the server runs.

    Returns the registration key for our own gateway where it still needs one.
    """
    VaultKey.create().save(place.vault_key)
    needed = not enrolled(place)
    if not needed and _join_is_young(place, clock):
        return None
    server = Server(config, clock=clock)
    services = server.open()
    try:
        made = _key(services, config)
        again = services.identity is not None and needed and _again(services, config, gateway)
        Join(made, read_limited(place.vault_key, size_bytes_max=KEY_FILE_BYTES_MAX)).save(place.join_key)
        return (again or made) if needed else None
    finally:
        server.stop()


def _key(services: Services, config: ServerConfig) -> RegistrationKey:
    assert services.identity is not None
    identity = services.identity
    vaults = identity.vaults.all()
    vault = vaults[0] if vaults else identity.vaults.create(VAULT)
    key, _ = identity.keys.create(vault.id, url=config.reached_at(), by=THE_SERVER.name)
    return key


def _again(services: Services, config: ServerConfig, gateway: str) -> RegistrationKey | None:
    """A key for a gateway that the server knows and that lost its certificate (a first start was cut)."""
    assert services.identity is not None
    identity = services.identity
    found = [one for one in identity.gateways.page() if one.name == gateway]
    if not found:
        return None
    key, _ = identity.keys.create(
        found[0].vault_id, url=config.reached_at(), by=THE_SERVER.name, for_gateway=gateway
    )
    return key


def _join_is_young(place: Place, clock: Clock) -> bool:
    try:
        return read_join(place.join_key).registration.ends_at - clock.utc() > JOIN_LEFT
    except SecondsiteError:
        return False


def enrolled(place: Place) -> bool:
    """Whether the gateway has its certificate."""
    try:
        load_membership(place.tls)
    except NotEnrolled:
        return False
    return True


def take_vault_key(place: Place, join: Join, given: Path | None) -> None:
    """The vault's key at a second site: of the join key, or of a file. Raises InvalidInput."""
    data = join.vault_key
    if given is not None:
        VaultKey.load(given)
        data = read_limited(given, size_bytes_max=KEY_FILE_BYTES_MAX)
    if data is None and not place.vault_key.exists():
        why = "it is a bare registration key; give the vault's key with --vault-key"
        raise InvalidInput(what="the join key", why=why)
    if data is not None:
        create_file(place.vault_key, data, mode=0o600)


def enrol_gateway(place: Place, key: RegistrationKey, url: str, wanted: Wanted, clock: Clock) -> None:
    """Give our gateway its certificate, by the server at `url`."""
    name = f"gateway-{wanted.site}"
    member = NewMember(name, f"Gateway of {wanted.site}", wanted.site)
    place.tls.mkdir(parents=True, exist_ok=True, mode=0o700)
    enrol(key, member, place.tls, way=Way(url), clock=clock)


def write_gateway(place: Place, wanted: Wanted, libvirt: Hypervisor | None) -> None:
    """The gateway's configuration, once."""
    if place.gateway_config.exists():
        return
    name = f"gateway-{wanted.site}"
    port = free_port(wanted.host, GATEWAY_PORTS)
    shown = f"[{wanted.address}]" if ":" in wanted.address else wanted.address
    home = place.gateway_home
    settings: dict[str, object] = {
        "name": name,
        "site": wanted.site,
        "control_socket": str(place.control_socket),
        "state_dir": str(home / "state"),
        "cache_dir": str(home / "cache"),
        "store": f"file://{place.store}",
        "vault_key": str(place.vault_key),
        "listen": {"host": wanted.host, "port": port, "advertise": f"https://{shown}:{port}"},
        "tls": {
            "cert": str(place.tls / f"{name}.crt"),
            "key": str(place.tls / f"{name}.key"),
            "ca": str(place.tls / "authority.crt"),
            "revoked": str(place.tls / "revoked.pem"),
        },
        "server": {"directory": str(place.tls)},
    }
    if libvirt is not None:
        scratch, sockets = home / "scratch", home / "qemu"
        settings["fabric"] = {
            "uri": libvirt.uri,
            "scratch_dir": str(scratch),
            "socket_dir": str(sockets),
        }
        for directory in (scratch, sockets):
            directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        if libvirt.pool is not None:
            settings["base_dir"] = str(libvirt.pool / IMAGES)
    place.store.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(place.gateway_config, encode_toml(settings).encode(), mode=0o600)
