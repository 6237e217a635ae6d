"""The standby's process: follows, answers that it is one, and becomes the active server once it took over."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable

from secondsite.base.clock import Clock, SystemClock
from secondsite.base.errors import SecondsiteError
from secondsite.base.files import replace_file
from secondsite.base.parse import prepare_structs
from secondsite.server.api.certificate import CertificateFiles, ListenerCertificate
from secondsite.server.api.listener import ApiServer, bind
from secondsite.server.config import ServerConfig
from secondsite.server.rounds import Round, Rounds
from secondsite.server.standby.app import StandbyApp
from secondsite.server.standby.files import Role
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.summary import StandbyAuthority

log = logging.getLogger(__name__)

ROLE_SECONDS = 0.5  # how soon it is seen that this standby has taken over
AUTHORITY_NAME = "authority.crt"


class Standby:
    """Every part of one standby. `start` once, `stop` at the end; `ended`: it is no standby any more."""

    def __init__(self, config: ServerConfig, clock: Clock | None = None) -> None:
        """Raises StandbyNotSet, MasterKeyMissing, MasterKeyUnusable."""
        self._config = config
        self.clock = clock or SystemClock()
        self.follower = Follower(config, self.clock)
        self._stop = contextlib.ExitStack()
        self._stopping = threading.Event()
        self._listening = threading.Lock()
        self._certificate: ListenerCertificate | None = None
        self._bundle = ""
        self.address: tuple[str, int] | None = None
        self.ended = threading.Event()

    def start(self) -> None:
        """Follow; the listener comes with the first state, whose authority its certificate is of."""
        prepare_structs()
        seconds = self._config.standby.look_seconds if self._config.standby is not None else 15.0
        looks = Rounds(
            Round("standby", self.look, seconds, "the standby does not follow", at_once=True), self.clock
        )
        roles = Rounds(Round("role", self._look_at_role, ROLE_SECONDS, "its role is not known"), self.clock)
        for rounds in (looks, roles):
            rounds.start()
            self._stop.callback(rounds.close)
        self._stop.callback(self._stopping.set)

    def stop(self) -> None:
        """Everything down."""
        self._stop.close()
        self._close_listener()

    def look(self) -> None:
        """One look, and the listener where it can be opened now."""
        self.follower.look()
        with self._listening:
            self._listen()

    def _look_at_role(self) -> None:
        if self.follower.files.role() is Role.ACTIVE:
            self.ended.set()

    def _listen(self) -> None:
        authority = self.follower.authority()
        if authority is None:
            return
        if self.address is not None:
            if authority.bundle != self._bundle:  # the active server rotates its authority
                self._take_bundle(authority)
            if self._certificate is not None:
                self._certificate.refresh()
            return
        config = self._config
        own, directory = config.tls, config.state_dir / "tls"
        self._certificate = ListenerCertificate(
            CertificateFiles(own.cert, own.key)
            if own
            else CertificateFiles(directory / "server.crt", directory / "server.key"),
            authority_pem=authority.bundle,
            issuer=self._signing,
            names=config.reached_as(),
            make=None if own else lambda names: self._authority().leaf(config.name, names, self.clock),
            clock=self.clock,
        )
        self._take_bundle(authority)
        listener = bind(config.listen.host, config.listen.port)
        api = ApiServer(
            StandbyApp(self.follower).asgi(),
            listener,
            context=self._certificate.context,
            limits=config.limits,
            trusted_proxies=config.listen.trusted_proxies,
        )
        api.start()
        self._close_listener = api.stop
        host, port = listener.getsockname()[:2]
        self.address = (str(host), int(port))
        log.info("the standby answers", extra={"fields": {"host": host, "port": port}})

    _close_listener: Callable[[], None] = staticmethod(lambda: None)

    def _take_bundle(self, authority: StandbyAuthority) -> None:
        self._bundle = authority.bundle
        replace_file(self._config.state_dir / AUTHORITY_NAME, authority.bundle.encode(), mode=0o644)
        if self._certificate is not None:
            self._certificate.trust(authority.bundle)

    def _authority(self) -> StandbyAuthority:
        found = self.follower.authority()
        assert found is not None, "the listener is opened with a state"
        return found

    def _signing(self) -> str:
        return self._authority().signing()


def serve_standby(config: ServerConfig) -> int | None:
    """Run until SIGTERM or SIGINT (0), or until this standby has taken over (None)."""
    asked = threading.Event()
    standby = Standby(config)

    def end(*_: object) -> None:
        asked.set()
        standby.ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    standby.start()
    log.info("standby runs")
    standby.ended.wait()
    try:
        standby.stop()
    except SecondsiteError as error:
        log.warning("the standby ended badly: %s", error)
    log.info("standby ended")
    return 0 if asked.is_set() else None
