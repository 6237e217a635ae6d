"""A server and two whole gateways, each a source and a target, between which machines go to and fro."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support.circle import CircleFabric
from support.databases import Databases
from support.exports import end_exports
from support.joined import A, Joined, free_port, hurry

P = TypeVar("P", bound="JoinedCircle")


class JoinedCircle(Joined):
    """Both gateways keep a store and listen; their hosts' machines work on where they were committed."""

    def _config(self, name: str, port: int) -> str:
        lines, (before, after) = [], super()._config(name, port).split("[tls]")
        if name == A:
            lines = [f"store = {json.dumps('file://' + str(self.root / name / 'store'))}", ""]
            listens = free_port()
            after = after.replace(
                "[server]",
                f'[listen]\nhost = "127.0.0.1"\nport = {listens}\n'
                f'advertise = "https://127.0.0.1:{listens}"\n[server]',
            )
        return before + "\n".join(lines) + "[tls]" + after

    def prove(self, name: str) -> None:
        key = f"/api/v1/vaults/North/recoveryServicesProviders/{name}/recoveryKey"
        question = self.call("POST", f"{key}/challenge").json()
        proof = self.vault.prove(bytes.fromhex(question["nonce"])).hex()
        file = {"path": "/media/vault.key", "device": 1, "inode": 1, "host": "ab" * 16}
        said = {"nonce": question["nonce"], "proof": proof, "keyFile": file}
        assert self.job("POST", f"{key}/proof", said)["state"] == "Succeeded"

    def circles(self, name: str) -> CircleFabric:
        found = self.fabrics[name]
        assert isinstance(found, CircleFabric)
        return found


@contextlib.contextmanager
def running(
    kind: type[P], names: tuple[str, ...], databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> Iterator[P]:
    """A server on SQLite and gateways with these names, started in that order."""
    hurry(monkeypatch)
    with tempfile.TemporaryDirectory(prefix="jc") as name, databases.ready("sqlite") as url:
        root = Path(name)  # short: sockets lie below it
        fabrics: dict[str, Any] = {one: CircleFabric(root / f"images-{one}") for one in names}
        made = kind(root, url, free_port(), fabrics=fabrics)
        made.start_server()
        try:
            made.enrol()
            for one in names:
                made.start(one)
            yield made
        finally:
            for one in list(made.gateways):
                made.stop(one)
            made.stop_server()
            end_exports(root)
