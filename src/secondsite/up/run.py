"""One machine up: what is made first, what runs, what a person is told to do next."""

from __future__ import annotations

import contextlib
import http.client
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from secondsite.base.clock import Clock
from secondsite.base.errors import SecondsiteError
from secondsite.gateway.common.config import load_config as load_gateway
from secondsite.gateway.common.enrolfiles import load_membership
from secondsite.gateway.control.client import GatewayClient
from secondsite.server.config import ServerConfig
from secondsite.server.identity.service import MASTER_KEY_NAME
from secondsite.server.main import AUTHORITY_NAME, SETUP_TOKEN_NAME
from secondsite.transfer.registration import RegistrationKey
from secondsite.up.first import (
    Hypervisor,
    Wanted,
    enrol_gateway,
    enrolled,
    find_libvirt,
    make_keys,
    server_settings,
    take_vault_key,
    write_gateway,
)
from secondsite.up.place import Place, read_join
from secondsite.up.supervisor import Child, Supervisor

Tell = Callable[[str], None]
ASK_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """Of one `secondsite up`."""

    wanted: Wanted
    join: Path | None = None
    vault_key: Path | None = None
    libvirt: bool = True


def run(place: Place, options: Options, *, clock: Clock, tell: Tell) -> int:
    """Everything up, until SIGTERM or SIGINT; a second signal ends it at once.

    Raises UpAlready, InvalidInput, ChildEnded, ChildSilent, or what enrolling raises.
    """
    place.prepare()
    with place.mine(), _signals() as stop:
        first = not place.gateway_config.exists()
        parts = _second_site if options.join is not None or _joined(place) else _first_site
        children, summary = parts(place, options, clock, tell)
        supervisor = Supervisor(children, clock=clock, tell=tell)
        if supervisor.start(stop):
            for line in summary(first):
                tell(line)
            supervisor.watch(stop)
        tell("ending")
        supervisor.end()
        tell("ended")
    return 0


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    stop = threading.Event()

    def asked(*_: object) -> None:
        if stop.is_set():  # a second one: whoever asks twice does not want to wait
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _joined(place: Place) -> bool:
    return enrolled(place) and not place.server_config.exists()


Summary = Callable[[bool], list[str]]


def _first_site(place: Place, options: Options, clock: Clock, tell: Tell) -> tuple[list[Child], Summary]:
    config = server_settings(place, options.wanted)
    wanted = options.wanted
    key = make_keys(place, config, clock, gateway=f"gateway-{wanted.site}")
    libvirt = _look_for_libvirt(place, options, tell)
    here = f"https://127.0.0.1:{config.listen.port}"

    def before_gateway() -> None:
        if key is not None:
            enrol_gateway(place, key, here, wanted, clock)
        write_gateway(place, wanted, libvirt)

    server = Child(
        "server",
        [sys.executable, "-m", "secondsite", "server", "--config", str(place.server_config)],
        place.log("server"),
        ready=lambda: _server_ready(config),
    )
    return [server, _gateway(place, before_gateway)], lambda first: _first_summary(place, config, first)


def _second_site(place: Place, options: Options, clock: Clock, tell: Tell) -> tuple[list[Child], Summary]:
    key: RegistrationKey | None = None
    if options.join is not None:
        join = read_join(options.join)
        take_vault_key(place, join, options.vault_key)
        key = None if enrolled(place) else join.registration
    wanted = options.wanted
    libvirt = _look_for_libvirt(place, options, tell)
    if key is not None:
        enrol_gateway(place, key, key.url, wanted, clock)
    write_gateway(place, wanted, libvirt)
    return [_gateway(place, lambda: None)], lambda first: _second_summary(place, first)


def _gateway(place: Place, before: Callable[[], None]) -> Child:
    return Child(
        "gateway",
        [sys.executable, "-m", "secondsite", "gateway", "--config", str(place.gateway_config)],
        place.log("gateway"),
        ready=lambda: _gateway_ready(place),
        before=before,
    )


def _look_for_libvirt(place: Place, options: Options, tell: Tell) -> Hypervisor | None:
    """This machine's hypervisor, at the first start; later the configuration says it."""
    if place.gateway_config.exists():
        return None
    if not options.libvirt:
        return None
    found = find_libvirt()
    if isinstance(found, Hypervisor):
        tell(f"libvirt found: {found.uri}")
        return found
    tell(f"no libvirt here ({found}): this gateway keeps replicas and protects nothing of its own")
    return None


def _server_ready(config: ServerConfig) -> bool:
    try:
        context = ssl.create_default_context(cafile=str(config.state_dir / AUTHORITY_NAME))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", config.listen.port, context=context, timeout=ASK_SECONDS
        )
        try:
            connection.request("GET", "/api/v1/ready")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


def _gateway_ready(place: Place) -> bool:
    try:
        with GatewayClient(place.control_socket) as client:
            client.status()
    except SecondsiteError:
        return False
    return True


def _first_summary(place: Place, config: ServerConfig, first: bool) -> list[str]:
    url, state = config.reached_at(), config.state_dir
    token = state / SETUP_TOKEN_NAME
    lines = ["", f"the server is at {url}; everything is in {place.root}"]
    if token.exists():
        lines += [
            "come in as its owner (the token is good once, within seven days):",
            f"  secondsite login --server {url} --token-file {token} --authority {state / AUTHORITY_NAME}",
        ]
    if first:
        lines += [
            "keep copies of these two elsewhere; without them nothing is recovered:",
            f"  {place.vault_key}",
            f"  {state / MASTER_KEY_NAME}",
            "the second site: carry this file there (a secret, good for five days), and there run",
            f"  secondsite up --join {place.join_key.name} --site b        # {place.join_key}",
        ]
    lines += [
        "see it:",
        "  secondsite gateway list",
        f"  secondsite inventory --gateway {place.control_socket}",
        "Ctrl-C ends all of it; the same command starts it again",
    ]
    return lines


def _second_summary(place: Place, first: bool) -> list[str]:
    member, config = load_membership(place.tls), load_gateway(place.gateway_config)
    assert config.listen is not None
    lines = ["", f"{member.name} is of the vault {member.vault} at {member.server}; all is in {place.root}"]
    if first:
        lines.append(f"the other site must reach {config.listen.advertise}")
    lines += [
        "see it:",
        f"  secondsite status --gateway {place.control_socket}",
        "Ctrl-C ends it; `secondsite up` starts it again",
    ]
    return lines
