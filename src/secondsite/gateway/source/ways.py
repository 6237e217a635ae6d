"""The ways to other gateways: those the configuration names, and those the server tells of at run time.

A way is made when something is first protected over it: a vault may have a thousand gateways, and a site uses
one or two. What the cache may hold is divided evenly among the ways there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from secondsite.base.uploads import UploadFigures
from secondsite.transfer.link import HttpsLink
from secondsite.transfer.sender import LinkShipper
from secondsite.transfer.spool import Spool


@dataclass(frozen=True)
class Route:
    """The way to one peer."""

    link: HttpsLink
    shipper: LinkShipper
    spool: Spool
    url: str

    def close(self) -> None:
        """End what waits for the link. What is sealed stays in the cache."""
        self.shipper.close()
        self.link.close()


class Routes(Mapping[str, Route]):
    """By the peer's name. Thread-safe."""

    def __init__(
        self, configured: Mapping[str, str], make: Callable[[str, str], Route], *, cache_limit_bytes: int
    ) -> None:
        """configured: peer -> URL; these win over what a server says. make: peer, URL -> the way."""
        self._configured = dict(configured)
        self._told: dict[str, str] = {}
        self._make = make
        self._cache_limit_bytes = cache_limit_bytes
        self._lock = threading.Lock()
        self._made: dict[str, Route] = {}

    def __getitem__(self, peer: str) -> Route:
        """The way, made where there is none yet. Raises KeyError for a peer nobody names, InvalidInput."""
        with self._lock:
            found = self._made.get(peer)
            if found is None:
                found = self._made[peer] = self._make(peer, self._urls()[peer])
                self._share()
            return found

    def __contains__(self, peer: object) -> bool:
        with self._lock:
            return peer in self._configured or peer in self._told

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(sorted(self._urls()))

    def __len__(self) -> int:
        with self._lock:
            return len(self._urls())

    def urls(self) -> dict[str, str]:
        """Peer -> where it listens."""
        with self._lock:
            return self._urls()

    def tell(self, told: Mapping[str, str]) -> list[tuple[str, Route]]:
        """What a server says now, in place of what it said before.

        Returns the ways that lead elsewhere from now on, already taken out, for the caller to close once
        nothing uses them.
        """
        with self._lock:
            self._told = dict(told)
            urls = self._urls()
            moved = [
                (peer, route) for peer, route in self._made.items() if urls.get(peer, route.url) != route.url
            ]
            for peer, _ in moved:
                del self._made[peer]
            return moved

    def uploads(self) -> dict[str, UploadFigures]:
        """What was sent over each way that stands, by the peer's name."""
        with self._lock:
            return {peer: route.shipper.uploads.figures for peer, route in self._made.items()}

    def reload(self) -> None:
        """Take the certificate as it is now."""
        for route in self._standing():
            route.link.reload()

    def stop_shipping(self) -> None:
        """End what waits for any link."""
        for route in self._standing():
            route.shipper.close()

    def close(self) -> None:
        """Close all."""
        for route in self._standing():
            route.close()

    def _standing(self) -> list[Route]:
        with self._lock:
            return list(self._made.values())

    def _urls(self) -> dict[str, str]:
        return {**self._told, **self._configured}

    def _share(self) -> None:
        for route in self._made.values():
            route.spool.set_limit(self._cache_limit_bytes // len(self._made))
