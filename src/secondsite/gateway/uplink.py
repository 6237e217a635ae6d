"""A server as calls come from it: HTTPS with the gateway's certificate, one connection waits, one answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from secondsite.gateway.enrolclient import ServerClient, Way, enrolled_client
from secondsite.gateway.enrolerrors import ServerUnreachable
from secondsite.gateway.enrolfiles import EnrolmentFiles, load_membership
from secondsite.transfer.calls import PATH_ANSWERS, PATH_ASK, Answer, Ask, Call, Calls

# Beyond the time the server lets us wait: the way there and back.
GRACE_SECONDS = 15.0
ANSWER_SECONDS = 60.0


class EnrolledClients:
    """Clients of the server a gateway is enrolled with, made anew when the certificate was renewed."""

    def __init__(self, directory: Path) -> None:
        """directory: where the gateway was enrolled into. Raises NotEnrolled."""
        self._directory = directory
        self._files = EnrolmentFiles(directory, load_membership(directory).name)

    def serial(self) -> int:
        """Of the certificate in use. Raises NotEnrolled."""
        return self._files.certificate().serial_number

    def open(self) -> ServerClient:
        """A client with that certificate. Raises NotEnrolled, OSError or ValueError for damaged files."""
        found = load_membership(self._directory)
        way = Way(found.server, found.proxy, found.proxy_credentials)
        return enrolled_client(way, self._files.tls, system_trust=found.system_trust)


class ServerCalls:
    """Implements `gateway.calls.CallSource`."""

    def __init__(self, open_client: Callable[[], ServerClient], serial: Callable[[], int]) -> None:
        """serial: of the certificate in use; when it changes the clients are opened anew."""
        self._open_client = open_client
        self._serial = serial
        self._change = threading.Lock()
        self._asking: ServerClient | None = None
        self._answering: ServerClient | None = None
        self._opened_with = 0
        self._closed = False

    def ask(self, ask: Ask) -> Iterable[Call]:
        """See `CallSource`."""
        asking, _ = self._clients()
        return asking.post(PATH_ASK, ask, Calls, seconds=ask.wait_seconds + GRACE_SECONDS).calls

    def answer(self, answer: Answer) -> None:
        """See `CallSource`."""
        _, answering = self._clients()
        body = answer.model_dump_json(by_alias=True).encode()
        answering.request("POST", PATH_ANSWERS, body, seconds=ANSWER_SECONDS)

    def close(self) -> None:
        """See `CallSource`."""
        with self._change:
            self._closed = True
            self._drop()

    def _clients(self) -> tuple[ServerClient, ServerClient]:
        with self._change:
            if self._closed:
                raise ServerUnreachable(server="the server", why="this gateway is stopping")
            serial = self._serial()
            if serial != self._opened_with or self._asking is None or self._answering is None:
                self._drop()
                self._asking, self._answering = self._open_client(), self._open_client()
                self._opened_with = serial
            return self._asking, self._answering

    def _drop(self) -> None:
        for client in (self._asking, self._answering):
            if client is not None:
                client.cut()
        self._asking = self._answering = None
