"""The runbook's page about a drill, typed as it stands: a real server, and two gateways enrolled with it.

Their hosts are twins of a hypervisor; see `./run demo` for real guests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.units import MIB
from support.control import command_environment
from support.databases import Databases
from support.joined import ITEMS, A, B, Joined, hurry, joined
from support.runbook import DO, SURE, WORKED, page, walk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


class Person:
    """Logged in at the server, with a shell at either site."""

    def __init__(self, place: Joined) -> None:
        self._place = place
        token = place.root / "token"
        token.write_text(place.token)
        authority = place.root / "server" / "authority.crt"
        line = f"secondsite login --server {place.url} --token-file {token} --authority {authority}"
        code, printed = self.run("B", line)
        assert code == 0, printed

    def run(self, host: str, line: str) -> tuple[int, str]:
        """A line typed there: its exit code, and all it printed."""
        root = self._place.root
        bin_ = root / "bin"
        bin_.mkdir(exist_ok=True)
        script = bin_ / "secondsite"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m secondsite "$@"\n')
        script.chmod(0o755)
        done = subprocess.run(
            ["/bin/sh", "-euc", line],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=command_environment(
                PATH=f"{bin_}:{os.environ['PATH']}",
                SECONDSITE_CLIENT=str(root / "client.json"),
                SECONDSITE_GATEWAY=str(root / {"A": A, "B": B}[host] / "c.sock"),
                COLUMNS="500",
            ),
            text=True,
            check=False,
            timeout=90,
        )
        return done.returncode, done.stdout


@pytest.fixture
def place(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    hurry(monkeypatch)
    with (
        tempfile.TemporaryDirectory(prefix="rd") as name,  # short: sockets lie below it
        databases.ready("sqlite") as url,
        joined(url, Path(name)) as made,
    ):
        yield made


def test_drill(place: Joined) -> None:
    fabric = place.fabrics[A]
    machine = fabric.add_machine("shop", {"vda": 2 * MIB})
    fabric.write(machine, "vda", 65536, b"hello" * 4000)
    place.read_site(A)
    assert place.prove_through_server()["state"] == "Succeeded"
    done = place.job("POST", ITEMS, {"machine": machine, "provider": A, "targetProvider": B})
    assert done["state"] == "Succeeded", done["error"]
    person, drill = Person(place), page("drill")
    walk(drill.steps(SURE), person.run, repeat=True)
    walk(drill.steps(DO), person.run, repeat=False)
    walk(drill.steps(WORKED), person.run, repeat=True)
    assert place.fabrics[B].recovered() == []
    assert fabric.runs(machine)
