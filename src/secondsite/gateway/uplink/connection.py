"""A server as calls come from it: HTTPS with the gateway's certificate, one connection waits, one answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from secondsite.gateway.common.enrolerrors import ServerUnreachable
from secondsite.gateway.common.enrolfiles import EnrolmentFiles, load_membership
from secondsite.gateway.uplink.enrolclient import ServerClient, Way, enrolled_client
from secondsite.transfer.calls import PATH_ANSWERS, PATH_ASK, Answer, Ask, Calls

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
        """Changes with the certificate in use and the way to the server. Raises NotEnrolled."""
        way = load_membership(self._directory).way
        return hash((self._files.certificate().serial_number, way, self._files.trust()))

    def open(self) -> ServerClient:
        """A client with that certificate. Raises NotEnrolled, OSError or ValueError for damaged files."""
        found = load_membership(self._directory)
        way = Way(found.server, found.proxy, found.proxy_credentials)
        return enrolled_client(way, self._files.tls, system_trust=found.system_trust)


class FreshClient:
    """One connection to the server, made anew when the certificate or the way changed. Thread-safe."""

    def __init__(self, open_client: Callable[[], ServerClient], serial: Callable[[], int]) -> None:
        """serial: of the certificate and the way in use; when it changes the client is opened anew."""
        self._open_client = open_client
        self._serial = serial
        self._change = threading.Lock()
        self._client: ServerClient | None = None
        self._opened_with = 0
        self._closed = False

    def get(self) -> ServerClient:
        """The client. Raises ServerUnreachable once it is closed, and what opening one raises."""
        with self._change:
            if self._closed:
                raise ServerUnreachable(server="the server", why="this gateway is stopping")
            serial = self._serial()
            if self._client is None or serial != self._opened_with:
                if self._client is not None:
                    self._client.cut()
                self._client, self._opened_with = self._open_client(), serial
            return self._client

    def close(self) -> None:
        """Cut off what is under way, from another thread; nothing is begun any more."""
        with self._change:
            self._closed = True
            if self._client is not None:
                self._client.cut()


class ServerCalls:
    """Implements `gateway.calls.CallSource`."""

    def __init__(self, open_client: Callable[[], ServerClient], serial: Callable[[], int]) -> None:
        """See `FreshClient`."""
        self._asking = FreshClient(open_client, serial)
        self._answering = FreshClient(open_client, serial)

    def ask(self, ask: Ask) -> Calls:
        """See `CallSource`."""
        return self._asking.get().post(PATH_ASK, ask, Calls, seconds=ask.wait_seconds + GRACE_SECONDS)

    def answer(self, answer: Answer) -> None:
        """See `CallSource`."""
        body = answer.model_dump_json(by_alias=True).encode()
        self._answering.get().request("POST", PATH_ANSWERS, body, seconds=ANSWER_SECONDS)

    def close(self) -> None:
        """See `CallSource`."""
        self._asking.close()
        self._answering.close()
