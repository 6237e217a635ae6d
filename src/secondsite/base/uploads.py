"""Counting what is sent to one place: tries, those made again, those that failed, and bytes there."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class UploadFigures:
    """Since the process began. size_bytes: what arrived, each object once; requests: tries, also again."""

    size_bytes: int = 0
    requests: int = 0
    retries: int = 0
    failures: int = 0


class Uploads:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures = UploadFigures()

    @property
    def figures(self) -> UploadFigures:
        """As they are now, of one moment."""
        with self._lock:
            return self._figures

    def tried(self, *, again: bool) -> None:
        """A request begins; again: one for the same object failed."""
        with self._lock:
            now = self._figures
            self._figures = replace(now, requests=now.requests + 1, retries=now.retries + int(again))

    def failed(self) -> None:
        """A request came to nothing."""
        with self._lock:
            self._figures = replace(self._figures, failures=self._figures.failures + 1)

    def arrived(self, size_bytes: int) -> None:
        """An object is there."""
        with self._lock:
            self._figures = replace(self._figures, size_bytes=self._figures.size_bytes + size_bytes)
