"""A hypervisor whose recovered machines and networks outlive the process, as a real one's do."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from secondsite.base import files
from secondsite.fabrics.base import Flattening, Life, Recovered, RecoverySpec, Shape
from secondsite.fabrics.errors import RecoveryFailed
from secondsite.fabrics.memory import MemoryFabric
from secondsite.fabrics.memory_settings import shape_seen
from secondsite.model.ids import machine_id
from secondsite.model.machines import Network, PowerState


class FileFabric(MemoryFabric):
    """Keeps what it made in one file; every change is whole or not there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if not path.exists():
            self._save({"machines": [], "networks": []})

    def _load(self) -> dict[str, list[dict[str, str]]]:
        loaded: dict[str, list[dict[str, str]]] = json.loads(self._path.read_text())
        return loaded

    def _save(self, state: dict[str, list[dict[str, str]]]) -> None:
        files.replace_file(self._path, json.dumps(state).encode())

    def networks(self) -> Sequence[Network]:
        made = [Network(name=net["name"], active=True, isolated=True) for net in self._load()["networks"]]
        return [*super().networks(), *made]

    def make_isolated_network(self, name: str) -> Network:
        state = self._load()
        if all(net["name"] != name for net in state["networks"]):
            state["networks"].append({"name": name})
            self._save(state)
        return Network(name=name, active=True, isolated=True)

    def remove_network(self, name: str) -> None:
        state = self._load()
        state["networks"] = [net for net in state["networks"] if net["name"] != name]
        self._save(state)

    def start_recovered(self, spec: RecoverySpec) -> Recovered:
        state = self._load()
        if any(machine["name"] == spec.name for machine in state["machines"]):
            raise RecoveryFailed(machine=spec.name, why="a machine of this name exists")
        made = {"id": str(uuid.uuid4()), "name": spec.name, "network": spec.network or "", "note": spec.note}
        made["shape"] = msgspec.json.encode(shape_seen(self.outlook(spec))).decode()
        state["machines"].append(made)
        self._save(state)
        return self._recovered_of(made)

    def _recovered_of(self, made: dict[str, str]) -> Recovered:
        return Recovered(id=machine_id(made["id"]), name=made["name"], overlays=[], networks=[])

    def run_recovered(self, recovered: Recovered) -> bool:
        return any(made["id"] == recovered.id for made in self._load()["machines"])

    def life_of(self, recovered: Recovered) -> Life:
        runs = self.run_recovered(recovered) or recovered.name in self.kept
        return Life(power=PowerState.RUNNING if runs else PowerState.OFF, console=runs, agent=runs)

    def shape_of(self, recovered: Recovered) -> Shape | None:
        shapes = [made["shape"] for made in self._load()["machines"] if made["id"] == recovered.id]
        return msgspec.json.decode(shapes[0], type=Shape) if shapes else None

    def flatten(self, recovered: Recovered, *, bytes_per_second: int | None) -> Flattening:
        state = self._load()
        [made] = [made for made in state["machines"] if made["id"] == recovered.id]
        made["done"] = str(min(int(made.get("done", "0")) + 1, 3))
        self._save(state)
        return Flattening(int(made["done"]), 3, finished=made["done"] == "3")

    def settle_recovered(self, recovered: Recovered, *, autostart: bool) -> None:
        state = self._load()
        for made in state["machines"]:
            if made["id"] == recovered.id:
                state.setdefault("kept", []).append(made)
        state["machines"] = [made for made in state["machines"] if made["id"] != recovered.id]
        self._save(state)

    @property
    def kept(self) -> list[str]:
        """Names of machines that were settled."""
        return [made["name"] for made in self._load().get("kept", [])]

    def recovered(self) -> Sequence[Recovered]:
        return [self._recovered_of(made) for made in self._load()["machines"]]

    def remove_recovered(self, recovered: Recovered) -> None:
        state = self._load()
        state["machines"] = [made for made in state["machines"] if made["id"] != recovered.id]
        self._save(state)
