from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.nbd.client import NbdClient
from secondsite.nbd.errors import NbdUnreachable


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NbdUnreachable) as caught:
        NbdClient.connect_unix(str(tmp_path / "none"))
    assert caught.value.retryable
