"""Which versions work together: the server first, then gateways, then agents; rolled back in reverse.

A server works with gateways of its own version and older ones down to one minor version below. A gateway that
does not fit goes on replicating: only the server has nothing to do with it until one of the two is updated.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from secondsite.base.errors import InvalidInput

UPDATE_ORDER = ("server", "gateways", "agents")
MINORS_OLDER_MAX = 1

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})\Z", re.ASCII)


@dataclass(frozen=True, order=True)
class Version:
    """Major, minor, patch."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """``1.2.3``. Raises InvalidInput."""
        match = _VERSION.match(text)
        if match is None:
            raise InvalidInput(what=f"the version {text[:40]!r}", why="it is not of the form 1.2.3")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Fit(enum.Enum):
    """How a gateway's version stands to the server's."""

    FITS = "Fits"
    UPDATE_AVAILABLE = "UpdateAvailable"  # older, but it works
    TOO_NEW = "TooNew"
    TOO_OLD = "TooOld"

    @property
    def works(self) -> bool:
        """Whether the two work together."""
        return self in {Fit.FITS, Fit.UPDATE_AVAILABLE}


def fit(server: Version, gateway: Version) -> Fit:
    """How a gateway's version stands to the server's. Another major version never fits."""
    if gateway == server:
        return Fit.FITS
    if gateway > server:
        return Fit.TOO_NEW
    if gateway.major != server.major or server.minor - gateway.minor > MINORS_OLDER_MAX:
        return Fit.TOO_OLD
    return Fit.UPDATE_AVAILABLE
