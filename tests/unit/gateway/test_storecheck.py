"""A gateway probes its store before it entrusts anything to it, once, and again when it is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondsite.base.clock import Clock, FakeClock, SystemClock
from secondsite.gateway.common.config import GatewayConfig, Tls
from secondsite.gateway.common.events import EventLog
from secondsite.gateway.target import storecheck
from secondsite.gateway.target.storecheck import StoreUnfit, open_checked
from secondsite.journal.probe import Check, Finding, StoreAbilities, Verdict, probe_store
from secondsite.journal.store import ObjectStore
from support.object_servers import Azurite, SeaweedFS, environment


def _config(path: Path, store: str, *, lock_days: int = 0, credentials: Path | None = None) -> GatewayConfig:
    (path / "state").mkdir(exist_ok=True)
    (path / "cache").mkdir(exist_ok=True)
    return GatewayConfig(
        name="gateway-b",
        site="b",
        state_dir=path / "state",
        cache_dir=path / "cache",
        store=store,
        store_lock_days=lock_days,
        store_credentials=credentials,
        vault_key=path / "vault.key",
        tls=Tls(cert=path / "c", key=path / "k", ca=path / "a"),
    )


class Rig:
    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.clock: Clock = FakeClock()
        self.events = EventLog(self.clock)
        self.probes = 0

        def counted(store: ObjectStore, *, lock_days: int, clock: Clock) -> StoreAbilities:
            self.probes += 1
            return probe_store(store, lock_days=lock_days, clock=clock)

        monkeypatch.setattr(storecheck, "probe_store", counted)

    def open(self, store: str, *, lock_days: int = 0, credentials: Path | None = None) -> ObjectStore:
        config = _config(self.path, store, lock_days=lock_days, credentials=credentials)
        opened = open_checked(config, clock=self.clock, events=self.events)
        assert opened is not None
        return opened

    def codes(self) -> list[str]:
        return [event.code for _, event in self.events.since(0, 100)]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def test_a_store_is_probed_once_and_again_when_it_is_another(rig: Rig, tmp_path: Path) -> None:
    first, second = (tmp_path / "one").as_uri(), (tmp_path / "two").as_uri()
    rig.open(first)
    rig.open(first)
    assert (rig.probes, rig.codes()) == (1, ["store.probed"])
    rig.open(second)
    assert rig.probes == 2
    rig.open(second, lock_days=7)
    rig.open(second, lock_days=7)
    assert rig.probes == 3
    assert rig.codes()[2:] == ["store.probed", "store.degraded", "store.degraded"], "told at every start"


def test_what_is_remembered_and_damaged_is_found_out_again(rig: Rig, tmp_path: Path) -> None:
    rig.open((tmp_path / "one").as_uri())
    (tmp_path / "state" / "store.json").write_bytes(b"{")
    rig.open((tmp_path / "one").as_uri())
    assert rig.probes == 2


def test_a_refused_store_is_told_why_and_not_remembered(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "one").as_uri()
    with monkeypatch.context() as patch:
        found = StoreAbilities(
            url=url,
            verdict=Verdict.REFUSED,
            reasons=("a name can be created twice",),
            checks=(Check("create once", Finding.NO),),
            probed_at="2026-01-01T00:00:00Z",
        )
        patch.setattr(storecheck, "probe_store", lambda *_, **__: found)
        with pytest.raises(StoreUnfit, match="created twice"):
            rig.open(url)
    assert rig.codes() == ["store.unfit"]
    rig.open(url)
    assert rig.codes() == ["store.unfit", "store.probed"]


def test_an_s3_bucket_with_locks(rig: Rig, seaweedfs: SeaweedFS) -> None:
    rig.clock = SystemClock()  # the server has a clock of its own
    rig.open(f"s3://{seaweedfs.make_bucket(locks=True)}/site-b", lock_days=1)
    assert rig.codes() == ["store.probed"]
    [(_, event)] = rig.events.since(0, 10)
    assert "object lock" in event.text
    rig.open(f"s3://{seaweedfs.bucket()}/site-b", lock_days=1)
    assert rig.codes()[-1] == "store.degraded"


def test_credentials_from_a_file_above_those_of_the_environment(
    rig: Rig, azurite_server: Azurite, tmp_path: Path
) -> None:
    wrong = {**azurite_server.environment(), "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="}
    url = f"az://{azurite_server.bucket()}/site-b"
    with environment(wrong), pytest.raises(StoreUnfit) as caught:
        rig.open(url)
    assert "d3Jvbmc=" not in str(caught.value.sentences())
    file = tmp_path / "azure.env"
    lines = ["# of site b", *(f'{name}="{value}"' for name, value in azurite_server.environment().items())]
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    with environment(wrong):
        rig.open(url, credentials=file).put("machines/x", b"1")
