"""Reads the sites through their gateways: when a person asks, and every few minutes by itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from secondsite.base.clock import Clock
from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.base.parse import JSON_ERRORS
from secondsite.server.inventory.service import Changes, Inventories, InventoryRefused, parse_told
from secondsite.transfer.calls import Answer

log = logging.getLogger(__name__)

# A new machine is seen within minutes without anybody asking; a hypervisor is asked a dozen times an hour.
EVERY_SECONDS = 300.0
LOOK_SECONDS = 15.0
ANSWER_SECONDS_MAX = 60.0
TIDY_EVERY = 240  # looks: once an hour


class Asks(Protocol):
    """What reads from gateways (`calls.service.Calls`)."""

    def ask_now(self, gateway: str, path: str, *, seconds_max: float) -> Answer:
        """One reading request. Raises GatewaySilent."""

    def tidy(self) -> int:
        """Drop what nobody reads any more."""


class InventoryReader:
    """`start` once, `close` at the end; `read` any time, from any thread."""

    def __init__(
        self, asks: Asks, inventories: Inventories, connected: Callable[[], Sequence[str]], clock: Clock
    ) -> None:
        """connected: the ids of the gateways that can be asked now."""
        self._asks = asks
        self._inventories = inventories
        self._connected = connected
        self._clock = clock
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._met: set[str] = set()  # gateways that asked for work since this server's start
        self._thread = threading.Thread(target=self._run_root, name="inventory", daemon=True)

    def start(self) -> None:
        """Begin to read by itself."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a reading under way is abandoned."""
        self._stop.set()
        self._wake.set()

    def here(self, gateway: str) -> None:
        """A gateway asks for work; the first time its site is looked at now. From any thread."""
        if gateway not in self._met:
            self._met.add(gateway)
            self._wake.set()

    def read(self, gateway: str) -> Changes:
        """Read a site now. Raises GatewaySilent, InventoryRefused, or what the gateway says."""
        try:
            answer = self._asks.ask_now(gateway, "/v1/inventory", seconds_max=ANSWER_SECONDS_MAX)
            if not answer.ok:
                raise _told_error(gateway, answer)
            return self._inventories.record(gateway, parse_told(gateway, answer.body))
        except SecondsiteError as error:
            self._inventories.failed(gateway, error)
            raise

    def _run_root(self) -> None:
        looks = 0
        while not self._stop.is_set():
            try:
                self._look()
                if looks % TIDY_EVERY == 0:
                    self._inventories.tidy()
                    self._asks.tidy()
                looks += 1
            except SecondsiteError as error:
                log.warning("sites are not read: %s", error)
            except Exception:  # a thread's root: told, and tried again
                log.exception("reading the sites failed")
            self._clock.wait(self._wake, LOOK_SECONDS)
            self._wake.clear()

    def _look(self) -> None:
        for gateway in self._connected():
            if self._stop.is_set():
                return
            if self._inventories.due(gateway, seconds=EVERY_SECONDS):
                try:
                    self.read(gateway)
                except SecondsiteError as error:
                    # kept beside the inventory, where people see it
                    log.info("the site of gateway %s was not read: %s", gateway, error)


def _told_error(gateway: str, answer: Answer) -> SecondsiteError:
    try:
        return RemoteError(msgspec.json.decode(answer.body, type=dict[str, object]))
    except JSON_ERRORS:
        return InventoryRefused(gateway=gateway, why=f"it answered with status {answer.status}")
