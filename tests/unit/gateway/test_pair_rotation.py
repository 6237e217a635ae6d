"""Two whole gateways, and the vault key they share is rotated under a running replication."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.errors import RemoteError
from secondsite.base.units import MIB
from secondsite.fabrics.memory import MemoryFabric
from secondsite.gateway.common.seedmedia import SeedManifest, encode_manifest, read_manifest
from secondsite.gateway.control.client import GatewayClient
from secondsite.gateway.keys import rotation as keyrotation
from secondsite.gateway.main import Gateway
from secondsite.gateway.messages.gateway import FileIdentity, ProtectionState
from secondsite.gateway.messages.keys import FinishRotation, KeyPhase, RenewDataKeys
from secondsite.gateway.target.bases import base_opener
from secondsite.gateway.target.views import open_point_definition, open_point_view
from secondsite.journal.chain import KEY_ROTATION, Journal
from secondsite.journal.errors import KeyRetired
from secondsite.journal.format import SEGMENT_BYTES_MAX
from secondsite.journal.keys import KeyRing, VaultKey
from secondsite.journal.names import wrapped_keys_prefix
from secondsite.journal.scrub import scrub
from secondsite.journal.segment_head import decode_head
from secondsite.journal.store_local import LocalStore
from secondsite.model.ids import DiskId, MachineId
from secondsite.model.points import PointProposal
from secondsite.transfer.protocols import error_code
from support.format_samples import sample_point
from support.gateway_pair import A, B, Pair
from support.until import until

AT = "2026-01-01T00:00:00+00:00"


class Rotated(Pair):
    """A pair over one machine; `copy` is what the person in charge holds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fabric = MemoryFabric()
        self.machine: MachineId = self.fabric.add_machine("shop", {"vda": 2 * MIB, "vdb": MIB})
        self.fabric.write(self.machine, "vda", 65536, b"hello" * 4000)
        self.contents: dict[int, dict[str, bytes]] = {}
        self.old = self.vault
        self.new = self.old.renew(AT)
        self.copy = root / "safe" / "new.key"
        self.new.save(self.copy)
        self.a: Gateway | None = None
        self.address = self.start_b()
        self.restart_a()
        self.protect("shop")
        with self.client_a() as client:
            until(lambda: client.status().protections[0].state is ProtectionState.PROTECTED, "Protected")

    def stop_a(self) -> None:
        if self.a is not None:
            self.a.stop()
            self.a = None

    def restart_a(self) -> None:
        self.stop_a()
        self.a = self.start_a(self.address, self.fabric)

    def restart_b(self) -> None:
        self.stop_b()
        self.start_b(self.address[1])

    def give(self, name: str) -> None:
        """The new key file in place of the gateway's."""
        path = self.root / name / "vault.key"
        path.unlink()
        shutil.copy(self.copy, path)

    def take_point(self) -> int:
        self.fabric.write(self.machine, "vdb", 4096 * len(self.contents), b"world %d" % len(self.contents))
        content = {disk: self.fabric.content(self.machine, disk) for disk in ("vda", "vdb")}
        with self.client_a() as client:
            number = client.take_point("shop").number
        self.contents[number] = content
        return number

    def journal(self, key: VaultKey | None) -> Journal:
        return Journal(LocalStore(self.root / B / "store"), self.machine, key)

    def check(self, key: VaultKey) -> None:
        """Every point taken here reads right with nothing but the store and `key`, as a rescue does."""
        journal = self.journal(key)
        listed = {point.number for point in journal.points()}
        for number, content in self.contents.items():
            if number not in listed:
                continue
            open_point_definition(key, journal.point(number))  # raises with a wrong key
            with open_point_view(journal, number, key) as view:
                assert {d: v.read(0, v.size_bytes) for d, v in view.disks.items()} == content

    def phase(self) -> KeyPhase:
        with self.client_b() as client:
            return client.key().phase

    def finish(self, key: VaultKey, file: Path) -> None:
        status = file.stat()
        with self.client_b() as client:
            question = client.challenge()
            client.finish_rotation(
                FinishRotation(
                    nonce=question.nonce,
                    proof=key.prove(bytes.fromhex(question.nonce)).hex(),
                    key_file=FileIdentity(path=str(file), device=status.st_dev, inode=status.st_ino),
                )
            )

    def codes(self, client: GatewayClient) -> list[str]:
        return [entry.event.code for entry in client.events()]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rotated]:
    monkeypatch.setattr(keyrotation, "PASS_SECONDS", 0.2)
    monkeypatch.setattr(keyrotation, "WAITS_SECONDS", 0.2)
    with tempfile.TemporaryDirectory(prefix="gp") as name, contextlib.ExitStack() as stack:
        made = Rotated(Path(name))
        stack.callback(made.stop_b)
        stack.callback(made.stop_a)
        yield made


def test_rotated_from_end_to_end(pair: Rotated) -> None:
    pair.take_point()
    pair.give(B)
    pair.restart_b()
    until(lambda: pair.phase() is KeyPhase.PROOF, "everything is sealed again")
    pair.take_point()  # by a source that has the old key still
    pair.check(pair.new)
    until(lambda: bool(_waits(pair)), "the source is seen to be behind")
    with pytest.raises(RemoteError, match="still seals with an old key") as caught:
        pair.finish(pair.new, pair.copy)
    assert error_code(caught.value) == "key.rotation-not-ready"
    pair.give(A)
    pair.restart_a()
    pair.take_point()
    pair.check(pair.new)
    until(lambda: not _waits(pair), "the source is seen to have the new key")
    for wrong, code in ((pair.old, "recovery-key.not-proved"), (pair.new, "recovery-key.not-exported")):
        with pytest.raises(RemoteError) as caught:
            pair.finish(wrong, pair.root / B / "vault.key")
        assert error_code(caught.value) == code
    assert pair.phase() is KeyPhase.PROOF
    names = list(pair.journal(None).store.list(wrapped_keys_prefix(pair.machine)))
    assert len(names) == 4, "nothing is deleted before the proof"
    pair.finish(pair.new, pair.copy)
    until(lambda: pair.phase() is KeyPhase.FINISHED, "finished")
    names = list(pair.journal(None).store.list(wrapped_keys_prefix(pair.machine)))
    assert len(names) == 2
    assert all(name.endswith(f".{pair.new.id}") for name in names)
    pair.take_point()
    pair.check(pair.new)
    with pair.client_b() as client:
        status = client.key()
        assert {"key.rotation-began", "key.rotation-waits", "key.rotation-finished"} <= set(
            pair.codes(client)
        )
    [retired] = status.retired
    assert (retired.key_id, retired.wrapped_keys, retired.copies) == (pair.old.id, 0, 0)
    assert retired.machines == ("shop",), "the points of its time need it"
    # after a restart it is finished still, and there was one boundary
    pair.restart_b()
    until(lambda: pair.phase() is KeyPhase.FINISHED, "finished still")
    pair.take_point()
    pair.check(pair.new)
    journal = pair.journal(pair.new)
    assert [getattr(r, "reason", "") for r in journal.records()].count(KEY_ROTATION) == 1
    assert {point.epoch for point in journal.points()} == {1}, "no resync, no claim"
    keys = KeyRing(journal.store, pair.machine, pair.new)
    found = scrub(journal, keys, base_opener(journal, {}), clock=SystemClock())
    assert not found.damaged
    with pair.client_a() as client:
        assert "resync.began" not in pair.codes(client)


def _waits(pair: Rotated) -> tuple[str, ...]:
    with pair.client_b() as client:
        return client.key().waits


def test_the_source_first_waits_for_the_target(pair: Rotated) -> None:
    pair.take_point()
    pair.give(A)
    pair.restart_a()
    with pair.client_a() as client:
        until(lambda: "the receiving gateway has" in str(client.protection("shop").note), "it is told")
        assert pair.old.id in str(client.protection("shop").note)
    pair.give(B)
    pair.restart_b()
    pair.take_point()
    pair.check(pair.new)


def test_a_source_left_behind_is_told_once_it_is_finished(
    pair: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.take_point()
    pair.stop_a()
    pair.give(B)
    pair.restart_b()
    until(lambda: pair.phase() is KeyPhase.PROOF, "everything is sealed again")
    monkeypatch.setattr(keyrotation, "ACTIVE", keyrotation.ACTIVE * 0)  # it is silent for an hour
    until(lambda: not _waits(pair), "nobody is waited for")
    pair.finish(pair.new, pair.copy)
    until(lambda: pair.phase() is KeyPhase.FINISHED, "finished")
    pair.restart_a()
    with pair.client_a() as client:
        until(lambda: "which was retired" in str(client.protection("shop").note), "it is told")
    pair.give(A)
    pair.restart_a()
    pair.take_point()
    pair.check(pair.new)


def test_without_a_rotation_there_is_nothing_to_finish(pair: Rotated) -> None:
    assert pair.phase() is KeyPhase.NEVER
    with pytest.raises(RemoteError) as caught:
        pair.finish(pair.old, pair.root / "safe" / "vault.key")
    assert error_code(caught.value) == "key.no-rotation"
    with pair.client_a() as client:
        assert client.key().phase is KeyPhase.NO_STORE


def sealed_by(pair: Rotated, number: int, key: VaultKey) -> set[str]:
    """The data keys in the headers of the newest segments of vdb, as of a point.

    What was written before `take_point` may have come with the cycle just before it.
    """
    journal = pair.journal(key)
    for point in reversed(journal.points()):
        refs = [ref for ref in point.segments if ref.disk == "vdb" and point.number <= number]
        if refs:
            names = [journal.segment_name(ref) for ref in refs]
            data = [journal.store.get(name, size_bytes_max=SEGMENT_BYTES_MAX) for name in names]
            found = {str(decode_head(part, "a segment")[0].key_id) for part in data}
            state = next(disk for disk in point.disks if disk.id == "vdb")
            assert found == {ref.sealed_by(state) for ref in refs}
            return found
    raise AssertionError("nothing of vdb was sent")


def test_new_data_keys_from_end_to_end(pair: Rotated) -> None:
    before = pair.take_point()
    first = sealed_by(pair, before, pair.old)
    with pair.client_a() as client:
        with pytest.raises(RemoteError, match="shop has vda, vdb"):
            client.renew_data_keys("shop", RenewDataKeys(disks=(DiskId("vdx"),)))
        made = client.renew_data_keys("shop", RenewDataKeys())
        assert sorted(made.keys) == ["vda", "vdb"]
        sent = client.status().protections[0].total_sent_bytes
    after = pair.take_point()
    assert sealed_by(pair, after, pair.old) == {made.keys[DiskId("vdb")]}
    assert first != {made.keys[DiskId("vdb")]}
    journal = pair.journal(pair.old)
    # what is computed with the first key's seed is still comparable
    assert {disk.key_id for disk in journal.point(after).disks} == {
        disk.key_id for disk in journal.point(before).disks
    }
    assert all(disk.fingerprint for disk in journal.point(after).disks)
    pair.check(pair.old)
    # lost tracking: compared by hashes as before
    pair.fabric.write(pair.machine, "vda", 8192, b"nobody saw it" * 100)
    pair.fabric.lose_tracking(pair.machine)
    pair.take_point()
    pair.check(pair.old)
    with pair.client_a() as client:
        assert "replicate.resynced" in pair.codes(client)
        assert client.status().protections[0].total_sent_bytes - sent < MIB
    # once more, one disk, and the vault key with it
    with pair.client_a() as client:
        again = client.renew_data_keys("shop", RenewDataKeys(disks=(DiskId("vdb"),)))
    pair.take_point()
    for name in (B, A):
        pair.give(name)
    pair.restart_b()
    pair.restart_a()
    newest = pair.take_point()
    assert sealed_by(pair, newest, pair.new) == {again.keys[DiskId("vdb")]}
    pair.check(pair.new)
    until(lambda: pair.phase() is KeyPhase.PROOF and not _waits(pair), "all is sealed with the new key")
    pair.finish(pair.new, pair.copy)
    until(lambda: pair.phase() is KeyPhase.FINISHED, "finished")
    pair.check(pair.new)
    journal = pair.journal(pair.new)
    assert len(list(journal.store.list(wrapped_keys_prefix(pair.machine)))) == 5
    keys = KeyRing(journal.store, pair.machine, pair.new)
    assert not scrub(journal, keys, base_opener(journal, {}), clock=SystemClock()).damaged


def test_a_seed_of_before_is_taken_until_the_rotation_is_finished(tmp_path: Path) -> None:
    fields = {name: getattr(sample_point(), name) for name in PointProposal.__struct_fields__}
    manifest = SeedManifest(
        machine=sample_point().machine,
        machine_name="shop",
        writer=A,
        created_at=AT,
        keys={},
        proposal=PointProposal(**fields),
    )
    old, path = VaultKey.create(), tmp_path / "manifest"
    new = old.renew(AT)
    path.write_bytes(encode_manifest(manifest, old))
    assert read_manifest(path, new).machine_name == "shop"
    new.strictness.finished = True
    with pytest.raises(KeyRetired, match="export the seed again"):
        read_manifest(path, new)
