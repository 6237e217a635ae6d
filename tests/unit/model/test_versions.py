"""Which versions work together."""

from __future__ import annotations

import pytest

from secondsite.base.errors import InvalidInput
from secondsite.model.versions import Fit, Version, fit

RULE = """
server  gateway  fit
1.4.2   1.4.2    Fits
1.4.2   1.4.1    UpdateAvailable
1.4.2   1.3.9    UpdateAvailable
1.4.2   1.2.9    TooOld
1.4.2   0.4.2    TooOld
1.4.2   1.4.3    TooNew
1.4.2   1.5.0    TooNew
1.4.2   2.0.0    TooNew
2.0.0   1.9.9    TooOld
0.1.0   0.1.0    Fits
1.10.0  1.9.0    UpdateAvailable
"""


@pytest.mark.parametrize("row", RULE.strip().splitlines()[1:])
def test_the_rule(row: str) -> None:
    server, gateway, expected = row.split()
    found = fit(Version.parse(server), Version.parse(gateway))
    assert found is Fit(expected)
    assert found.works == (expected in {"Fits", "UpdateAvailable"})


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "1.2.3.4", "1.2.x", "v1.2.3", "1.2.3\n", "\uff11.2.3", "99999.0.0"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Version.parse(text)


def test_a_version_reads_as_it_was_written() -> None:
    assert str(Version.parse("12.0.7")) == "12.0.7"
