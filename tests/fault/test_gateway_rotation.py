"""kill -9 of real gateways in the middle of a rotation of their vault key; it goes on, and no point is lost.

What is killed inside one journal's rotation is in tests/fault/test_rotation_killed.py.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base import crash
from secondsite.base.errors import RemoteError, SecondsiteError
from secondsite.gateway.control.client import GatewayUnreachable
from secondsite.gateway.keys import rotation as keyrotation
from secondsite.gateway.keys import sourcekeys
from secondsite.gateway.messages.gateway import FileIdentity
from secondsite.gateway.messages.keys import FinishRotation, KeyPhase, KeyStatus, RenewDataKeys
from secondsite.gateway.target.views import open_point_definition
from secondsite.journal import chain, key_rotation
from secondsite.journal.chain import Journal
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.names import wrapped_keys_prefix
from secondsite.journal.store_local import LocalStore
from secondsite.journal.view import open_view
from secondsite.lab import processes
from secondsite.model.ids import MachineId
from support.forked import GATEWAY, Forked, forked_gateway
from support.gateway_pair import A, B, Pair
from support.guest_log import MACHINE, GuestLog, contents_at, positions_of

pytestmark = pytest.mark.fault


class Site:
    """Both gateways as processes."""

    def __init__(self, root: Path) -> None:
        self.pair = Pair(root)
        self.guest_dir = root / "guest"
        self.guest_dir.mkdir()
        self.guest = GuestLog(self.guest_dir)
        self.new = self.pair.vault.renew("2026-01-01T00:00:00+00:00")
        self.copy = root / "safe" / "new.key"
        self.new.save(self.copy)
        self.port = self.pair.start_b()[1]  # for a free port
        self.pair.stop_b()
        self.processes: dict[str, Forked] = {}

    def start(self, name: str, crash_at: str = "") -> None:
        if name == A:
            config = self.pair.config_a(("127.0.0.1", self.port))
            words, module = [str(config), str(self.guest_dir)], GATEWAY
        else:
            config = self.pair.config(B, listen=self.port, peers={A: "https://127.0.0.1:1"})
            words, module = ["gateway", "--config", str(config)], "secondsite"
        with (self.pair.root / f"{name}.log").open("ab") as output:
            made = forked_gateway(*words, module=module, output=output, crash_at=crash_at)
            self.processes[name] = made

    def stop(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            process.terminate()
            process.wait(30)

    def killed(self, name: str) -> None:
        assert self.processes.pop(name).wait(60) == -signal.SIGKILL, "the mark was never passed"

    def give(self, name: str) -> None:
        """The new key file in place of the gateway's."""
        path = self.pair.root / name / "vault.key"
        path.unlink(missing_ok=True)
        shutil.copy(self.copy, path)

    def until(self, condition: object, what: str) -> None:
        assert callable(condition)
        processes.wait_until(
            condition,
            what=what,
            root=self.pair.root,
            seconds=60,
            poll_seconds=0.1,
            evidence=lambda: "\n".join(path.read_text()[-3000:] for path in self.pair.root.glob("*.log")),
        )

    def key(self) -> KeyStatus | None:
        with contextlib.suppress(SecondsiteError), self.pair.client_b() as client:
            return client.key()
        return None

    def is_in(self, phase: KeyPhase) -> bool:
        status = self.key()
        return status is not None and status.phase is phase and not status.waits

    def newest(self) -> int:
        with contextlib.suppress(SecondsiteError), self.pair.client_a() as client:
            return client.status().protections[0].last_point or 0
        return 0

    def more_points(self) -> None:
        """Replication goes on: the guest writes, and what it wrote comes."""
        before = self.newest()
        self.guest.write("vda", 4096 * (before % 8), b"more" * 1024)
        self.until(lambda: self.newest() > before, "another point")

    def prove(self) -> None:
        status = self.copy.stat()
        with self.pair.client_b() as client:
            question = client.challenge()
            client.finish_rotation(
                FinishRotation(
                    nonce=question.nonce,
                    proof=self.new.prove(bytes.fromhex(question.nonce)).hex(),
                    key_file=FileIdentity(path=str(self.copy), device=status.st_dev, inode=status.st_ino),
                )
            )

    def check(self) -> None:
        """Every point holds what the guest had written, read with the store and the new file alone."""
        key = VaultKey.load(self.copy)
        store = LocalStore(self.pair.root / B / "store")
        journal = Journal(store, MachineId(MACHINE), key)
        points = journal.points()
        assert points
        positions = positions_of(self.guest_dir)
        expected = contents_at(self.guest_dir, [positions[point.checkpoint] for point in points])
        for point in points:
            open_point_definition(key, point)  # raises with a wrong key
            keys = KeyRing(store, journal.machine, key)
            with open_view(journal, point.number, keys, bases=lambda _: None) as view:
                found = {disk: shown.read(0, shown.size_bytes) for disk, shown in view.disks.items()}
            assert found == expected[positions[point.checkpoint]], f"point {point.number}"

    def later_keys(self) -> set[str]:
        """Disks of which a point names a segment that another key than the first sealed."""
        journal = Journal(LocalStore(self.pair.root / B / "store"), MachineId(MACHINE), self.new)
        return {ref.disk for p in journal.points() for ref in p.segments if ref.key_id is not None}

    def names(self) -> list[str]:
        store = LocalStore(self.pair.root / B / "store")
        return list(store.list(wrapped_keys_prefix(MachineId(MACHINE))))


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="gk") as name:
        made = Site(Path(name))
        made.start(B)
        made.until(lambda: made.key() is not None, "B runs")
        made.start(A)
        made.until(lambda: _answers(made), "A runs")
        made.pair.protect(MACHINE, frequency_seconds=1.0)
        made.until(lambda: made.newest() > 0, "the first point")
        made.more_points()
        yield made
        for gateway in (A, B):
            made.stop(gateway)


def _answers(site: Site) -> bool:
    with contextlib.suppress(SecondsiteError), site.pair.client_a() as client:
        client.status()
        return True
    return False


def test_the_gateways_marks_are_all_here() -> None:
    here = {keyrotation.AFTER_FINISH, sourcekeys.AFTER_REWRAP, sourcekeys.AFTER_RENEWED}
    assert here <= crash.MARKS


def test_killed_after_a_new_data_key_was_made(site: Site) -> None:
    site.stop(A)
    site.start(A, sourcekeys.AFTER_RENEWED)
    site.until(lambda: _answers(site), "A runs")
    with contextlib.suppress(GatewayUnreachable), site.pair.client_a() as client:
        client.renew_data_keys(MACHINE, RenewDataKeys())
    site.killed(A)
    site.check()
    site.start(A)
    site.until(lambda: _answers(site), "A runs")
    site.more_points()
    site.until(site.later_keys, "what was written is a point")
    assert site.later_keys() == {"vda"}, "the first disk's key was made, and it seals"
    site.check()


def test_killed_at_every_step_of_one_rotation(site: Site) -> None:
    """The target after a wrapping, the boundary, the proof and a deletion; the source after its own."""
    site.stop(B)
    site.give(B)
    for mark in (key_rotation.AFTER_WRAP, chain.AFTER_BOUNDARY):
        site.start(B, mark)
        site.killed(B)
        site.check()
    site.start(B)
    site.more_points()
    site.stop(A)
    site.give(A)
    site.start(A, sourcekeys.AFTER_REWRAP)
    site.killed(A)
    site.start(A)
    site.until(lambda: _answers(site), "A runs")
    site.more_points()
    site.until(lambda: site.is_in(KeyPhase.PROOF), "everything is sealed again")
    site.stop(B)
    site.start(B, keyrotation.AFTER_FINISH)
    site.until(lambda: site.is_in(KeyPhase.PROOF), "everything is sealed again")
    with contextlib.suppress(GatewayUnreachable, RemoteError):
        site.prove()
    site.killed(B)
    site.check()
    assert len(site.names()) == 4, "the proof is kept, nothing is deleted yet"
    site.start(B, f"{key_rotation.DURING_DELETE}:1")
    site.killed(B)
    site.check()
    assert len(site.names()) == 3
    site.start(B)
    site.until(lambda: site.is_in(KeyPhase.FINISHED), "finished without another proof")
    assert len(site.names()) == 2
    site.more_points()
    site.check()
