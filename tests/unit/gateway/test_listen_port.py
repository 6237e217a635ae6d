"""A port that is taken: who holds it, at the start and when asked before."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.gateway.common.listenport import (
    Holder,
    PortHeld,
    PortRefused,
    cannot_listen,
    check_port,
    holder,
    is_ours,
)
from support.gateway_pair import Pair


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        yield int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")],
)
def test_the_holder_is_named(held: str, wanted: str) -> None:
    with listening(held) as port:
        found = holder(wanted, port)
        assert found is not None
        assert found.pid == os.getpid()
        assert "python" in found.command
        with pytest.raises(PortHeld) as refused:
            check_port(wanted, port)
        _, cause, action = refused.value.sentences()
        assert f"Process {os.getpid()} (" in cause
        assert "[listen] port" in action
    check_port(wanted, port)  # it is free again
    assert holder(wanted, port) is None


def test_an_address_beside_it_is_free() -> None:
    with listening("127.0.0.1") as port:
        check_port("127.0.0.2", port)
        assert holder("127.0.0.2", port) is None


def test_what_else_stands_in_the_way_is_told() -> None:
    with pytest.raises(PortRefused, match=r"192\.0\.2\.1:9443"):
        check_port("192.0.2.1", 9443)
    refused = cannot_listen("192.0.2.1", 9443, OSError(errno.EADDRNOTAVAIL, "no such address"))
    assert "No network interface" in refused.sentences()[1]
    refused = cannot_listen("0.0.0.0", 443, OSError(errno.EACCES, "denied"))
    assert "CAP_NET_BIND_SERVICE" in refused.sentences()[1]
    unseen = cannot_listen("127.0.0.1", 1, OSError(errno.EADDRINUSE, "in use"))
    assert "only root may see" in unseen.sentences()[1]


def test_a_gateway_that_runs_is_no_trouble() -> None:
    assert is_ours(Holder(1, "/usr/bin/python3 -m secondsite gateway --config x"))
    assert is_ours(Holder(1, "/usr/bin/secondsite gateway --config x"))
    assert not is_ours(Holder(1, "/usr/sbin/nginx"))
    assert not is_ours(Holder(os.getpid(), "secondsite gateway check-port"))


def test_a_gateway_does_not_start_and_says_who_is_there() -> None:
    with tempfile.TemporaryDirectory(prefix="gp") as name, listening() as port:
        pair = Pair(Path(name))
        with pytest.raises(PortHeld, match=f"127.0.0.1:{port}: the port is in use"):
            pair.start_b(port)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with listening() as port:
        words = ["gateway", "check-port", "--host", "127.0.0.1", "--port", str(port)]
        assert main(words) == Outcome.REFUSED
        assert "gateway.port-held" in capsys.readouterr().err
    assert main([*words, "--json"]) == Outcome.OK
    assert json.loads(capsys.readouterr().out) == {
        "host": "127.0.0.1",
        "port": port,
        "free": True,
        "holder": None,
    }
    with tempfile.TemporaryDirectory(prefix="gp") as name:
        config = Pair(Path(name)).config("gateway-b", listen=port, peers={})
        assert main(["gateway", "check-port", "--config", str(config)]) == Outcome.OK
        assert capsys.readouterr().out == f"port {port} is free at 127.0.0.1\n"
        nothing = Pair(tmp_path / "x").config("gateway-a", listen=None, peers={})
        assert main(["gateway", "check-port", "--config", str(nothing)]) == Outcome.USAGE
        assert "receives nothing" in capsys.readouterr().err
