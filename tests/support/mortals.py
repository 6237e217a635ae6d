"""A lab's server and gateways that die at marks, one after the other, and are started again at once.

As a supervisor does it, so that whoever asks for something sees no more of it than a user would.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from unittest import mock

from secondsite.lab import processes
from secondsite.lab.gateways import Gateways
from secondsite.lab.place import Site, SiteProcess
from secondsite.lab.server import LabServer

SERVER = "server"
_VARIABLE = "SECONDSITE_CRASH_AT"


class Mortals:
    """deaths: by ``server`` or a site's name, the marks to die at in their order."""

    def __init__(self, server: LabServer, gateways: Gateways, deaths: Mapping[str, Sequence[str]]) -> None:
        self._server, self._gateways = server, gateways
        self._to_come = {name: list(marks) for name, marks in deaths.items()}
        self._now: dict[str, str] = {}
        self.died: list[tuple[str, str]] = []
        self.trouble: list[Exception] = []
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mortals", daemon=True)

    def start_server(self) -> None:
        """The first time, by the lab itself."""
        with mock.patch.dict(os.environ, self._armed(SERVER)):
            self._server.start()

    def start_gateways(self) -> None:
        """And from now on whoever dies is started again."""
        for site in reversed(self._gateways.sites.sites):
            self._gateways.start(site, environment=self._armed(site.name))
        self._watching.start()

    def end(self) -> None:
        """Let them be dead from now on."""
        self._ended.set()
        self._watching.join(120)

    def require_all_died(self) -> None:
        """Each at each of its marks."""
        assert self.trouble == []
        assert not any(self._to_come.values()), f"{self._to_come} are left of {self.died}"
        assert set(self._now) == set(), f"{self._now} were not passed; {self.died}"

    def _armed(self, name: str) -> dict[str, str]:
        left = self._to_come[name]
        self._now.pop(name, None)
        if not left:
            return {}
        self._now[name] = left.pop(0)
        return {_VARIABLE: self._now[name]}

    def _watch(self) -> None:
        try:
            while not self._ended.is_set():
                for name, process in self._running():
                    if not process.running() and not self._ended.is_set():
                        self.died.append((name, self._now[name]))
                        self._revive(name)
                processes.pause(0.1)
        except Exception as error:  # noqa: BLE001 - root of the thread: the test says it
            self.trouble.append(error)

    def _running(self) -> list[tuple[str, SiteProcess]]:
        assert self._server.process is not None
        return [(SERVER, self._server.process), *self._gateways.running.items()]

    def _revive(self, name: str) -> None:
        environment = self._armed(name)
        if name != SERVER:
            self._gateways.start(self._site(name), environment=environment)
            return
        config = str(self._server.home / "server.toml")
        words = [sys.executable, "-m", "secondsite", "server", "--config", config]
        self._server.process = self._server.site.spawn("server", words, environment=environment)

    def _site(self, name: str) -> Site:
        return next(site for site in self._gateways.sites.sites if site.name == name)
