"""Policies in the database: revisions, the failback policy, and what is refused while items use one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput, SecondsiteError
from secondsite.model.policies import BandwidthWindow, FirstCopyStart, ReplicationPolicy
from secondsite.model.retention import RetentionPolicy
from secondsite.server.database.engine import Database
from secondsite.server.identity.vaults import Vaults
from secondsite.server.policies import service, words
from secondsite.server.policies.errors import (
    FailbackPolicyFixed,
    PolicyChangedMeanwhile,
    PolicyInUse,
    PolicyNameTaken,
    PolicyRefused,
    PolicyUnknown,
)
from secondsite.server.policies.presets import PRESETS
from secondsite.server.policies.service import Policies
from secondsite.transfer.desired import Desired, WantedProtection, read_desired


@dataclass
class Items:
    """Items that are only counted; remembers which policies were refreshed."""

    uses: dict[str, int] = field(default_factory=dict)
    refreshed: list[str] = field(default_factory=list)

    def counts(self, _connection: Connection, _policy_ids: list[str]) -> Mapping[str, int]:
        return self.uses

    def refresh(self, _connection: Connection, policy_id: str) -> int:
        self.refreshed.append(policy_id)
        return self.uses.get(policy_id, 0)


@pytest.fixture
def items() -> Items:
    return Items()


@pytest.fixture
def policies(database: Database, items: Items) -> Policies:
    Vaults(database, SystemClock()).create("North")
    return Policies(database, SystemClock(), items)


def often(seconds: float) -> service.Change:
    return lambda before: before.model_copy(update={"copy_frequency_seconds": seconds})


def test_a_policy_comes_with_its_failback_policy(policies: Policies) -> None:
    asked = ReplicationPolicy(
        copy_frequency_seconds=30, compression_level=None, delete_replica_on_disable=True
    )
    made = policies.create("North", "Gold", asked, by="maria", description="what matters")
    assert (made.revision, made.settings, made.created_by) == (1, asked, "maria")
    assert [one.friendly_name for one in policies.of_vault("north")] == ["Gold", "Gold (failback)"]
    back = policies.find("North", "gold (FAILBACK)")
    assert (back.id, back.failback_of) == (made.failback, made.id)
    assert back.settings == ReplicationPolicy(
        copy_frequency_seconds=30,
        rpo_threshold_seconds=15 * 60,
        retention="all:24h",
        application_consistent_frequency_seconds=60 * 60,
        compression_level=None,
    )
    changes: list[dict[str, object]] = [{"name": "Other"}, {"settings": often(5)}, {"description": "x"}]
    for change in changes:
        with pytest.raises(FailbackPolicyFixed) as refused:
            policies.change("North", back.id, by="maria", **change)  # type: ignore[arg-type]
        assert "'Gold'" in refused.value.sentences()[2]
    with pytest.raises(FailbackPolicyFixed):
        policies.delete("North", back.id)
    copied = policies.copy("North", back.id, "Day", by="maria")
    assert (copied.settings, copied.failback_of) == (back.settings, None)


def test_a_change_is_a_revision_told_to_the_items_of_both(policies: Policies, items: Items) -> None:
    made = policies.create("North", "Gold", ReplicationPolicy(), by="maria")
    assert policies.change("North", "Gold", by="otto", settings=often(5)).revision == 1
    assert items.refreshed == []  # nothing is another
    changed = policies.change("North", "Gold", by="otto", settings=often(60), expected=1)
    assert (changed.revision, changed.settings.copy_frequency_seconds, changed.changed_by) == (2, 60, "otto")
    assert items.refreshed == [made.id, made.failback]
    assert policies.find("North", made.failback or "").settings.copy_frequency_seconds == 60
    with pytest.raises(PolicyChangedMeanwhile):
        policies.change("North", "Gold", by="maria", settings=often(30), expected=1)
    said = [
        (one.revision, one.settings.copy_frequency_seconds, one.by)
        for one in policies.revisions("North", "Gold")
    ]
    assert said == [(2, 60, "otto"), (1, 5, "maria")]
    renamed = policies.change("North", "Gold", by="maria", name="Silver")
    assert renamed.revision == 2  # a name replicates nothing
    assert [one.friendly_name for one in policies.of_vault("North")] == ["Silver", "Silver (failback)"]


def test_what_gateways_get_is_the_newest_revision(database: Database, policies: Policies) -> None:
    made = policies.create("North", "Gold", ReplicationPolicy(), by="maria")
    policies.change("North", made.id, by="maria", settings=often(300))
    with database.read() as connection:
        assert service.get(connection, made.id) == policies.get(connection, made.id)
        assert service.get(connection, made.id) == (ReplicationPolicy(copy_frequency_seconds=300), 2)
        assert service.failback_policy(connection, made.id) == made.failback
        assert service.failback_policy(connection, made.failback or "") is None
        assert service.in_vault(connection, made.vault_id, "gold") == made.id
        with pytest.raises(PolicyUnknown):
            service.get(connection, "no")
        with pytest.raises(PolicyUnknown):
            service.in_vault(connection, "another", made.id)


def test_one_that_is_used_is_not_deleted(policies: Policies, items: Items) -> None:
    made = policies.create("North", "Gold", ReplicationPolicy(), by="maria")
    for uses, said in (
        ({made.id: 2}, "2 items use it"),
        ({made.failback or "": 1}, "1 item uses its failback"),
    ):
        items.uses = uses
        with pytest.raises(PolicyInUse, match=said):
            policies.delete("North", "Gold")
    assert policies.of_vault("North")[1].items == 1
    items.uses = {}
    policies.delete("North", "Gold")
    assert policies.of_vault("North") == []
    with pytest.raises(PolicyUnknown):
        policies.find("North", made.id)


def test_names_are_one_of_a_kind_in_a_vault(database: Database, policies: Policies) -> None:
    policies.create("North", "Gold", ReplicationPolicy(), by="maria")
    other = policies.create("North", "Silver", ReplicationPolicy(), by="maria")
    for name in ("GOLD", "gold "):
        with pytest.raises(PolicyNameTaken):
            policies.create("North", name, ReplicationPolicy(), by="maria")
        with pytest.raises(PolicyNameTaken):
            policies.change("North", other.id, by="maria", name=name)
    assert policies.change("North", other.id, by="maria", name="SILVER").friendly_name == "SILVER"
    for name in ("", "a/b", "x" * 81, "Gold (Failback)", "a\u202eb"):
        with pytest.raises(InvalidInput):
            policies.create("North", name, ReplicationPolicy(), by="maria")
    Vaults(database, SystemClock()).create("South")
    policies.create("South", "Gold", ReplicationPolicy(), by="maria")
    with pytest.raises(PolicyUnknown):
        policies.find("South", other.id)


def test_a_vault_goes_with_its_policies(database: Database, policies: Policies) -> None:
    policies.create("North", "Gold", ReplicationPolicy(), by="maria")
    Vaults(database, SystemClock()).delete("North")
    Vaults(database, SystemClock()).create("North")
    assert policies.of_vault("North") == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"retention": "latest", "applicationConsistentFrequencySeconds": 3600}, "latest point only"),
        ({"retention": "all:30min", "applicationConsistentFrequencySeconds": 3600}, "reaches 30 min back"),
        ({"copyFrequencySeconds": 900, "rpoThresholdSeconds": 60}, "would never end"),
    ],
)
def test_what_could_never_be_met_is_refused(policies: Policies, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(PolicyRefused, match=said):
        policies.create("North", "Gold", ReplicationPolicy.model_validate(wrong), by="maria")
    assert policies.of_vault("North") == []


def test_what_a_policy_costs_is_said() -> None:
    assert words.warnings(ReplicationPolicy()) == ()
    heavy = ReplicationPolicy(
        copy_frequency_seconds=600,
        rpo_threshold_seconds=900,
        application_consistent_frequency_seconds=3600,
        compression_level=None,
        bandwidth=(BandwidthWindow(from_="08:00", until="18:00", bytes_per_second=1e6),),
        first_copy=FirstCopyStart(mode="scheduled", at="22:00"),
        delete_replica_on_disable=True,
    )
    said = [text.partition(":")[0] for text in words.warnings(heavy)]
    assert said == ["Performance", "Alerts", "Network", "Bandwidth", "First copy", "Deletion"]
    offline = ReplicationPolicy(first_copy=FirstCopyStart(mode="offline"))
    assert "seed export" in words.warnings(offline)[0]
    # 2 h and one more hour of 5 s, 22 h by the hour and two more of the next, then a week by two hours
    assert words.points_at_most(PRESETS[0].settings) == 1 + 3 * 720 + 24 + 73


def test_presets_can_be_used(policies: Policies) -> None:
    frequencies = [preset.settings.copy_frequency_seconds for preset in PRESETS]
    assert frequencies == [5, 30, 300, 900]
    for preset in PRESETS:
        made = policies.create("North", preset.name, preset.settings, by="maria")
        assert words.warnings(made.settings) == ()


SECONDS = st.floats(1, 86400) | st.sampled_from([1, 5, 60, 3600, 86400, float("nan"), float("inf")])
TIMES = st.sampled_from(["00:00", "06:30", "12:00", "23:59", "24:00", "7:00"])
RETENTIONS = st.sampled_from(
    [
        "latest",
        "latest+4",
        "latest+24/2h",
        "all:2h",
        "all:2h,1h:1d",
        "1h:1d,all:2d",
        "all:0h",
        "",
        "all:11000d",
    ]
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "copyFrequencySeconds": SECONDS,
        "rpoThresholdSeconds": SECONDS,
        "retention": RETENTIONS,
        "applicationConsistentFrequencySeconds": SECONDS | st.none(),
        "compressionLevel": st.integers(-9, 25) | st.none(),
        "bandwidth": st.lists(
            st.fixed_dictionaries(
                {
                    "from": TIMES,
                    "until": TIMES,
                    "bytesPerSecond": st.sampled_from([1e6, 6e4, 64_000]) | st.none(),
                }
            ),
            max_size=3,
        ),
        "firstCopy": st.fixed_dictionaries(
            {"mode": st.sampled_from(["now", "scheduled", "offline"])}, optional={"at": TIMES}
        ),
        "deleteReplicaOnDisable": st.booleans(),
    },
)


@settings(max_examples=150, deadline=None)
@given(asked=ASKED)
def test_what_the_server_takes_the_gateway_takes(asked: dict[str, object]) -> None:
    """From the wish to the wire and back: nothing a server accepts is refused, or read otherwise, there."""
    try:
        policy = ReplicationPolicy.model_validate(asked)
        words.check(policy)
    except (ValidationError, SecondsiteError):
        return
    wanted = WantedProtection(
        item="i",
        revision=1,
        machine="6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        name="shop",
        peer="gateway-b",
        policy=policy,
    )
    sent = Desired(generation=1, protections=(wanted,)).model_dump_json(by_alias=True)
    received = read_desired(sent)
    assert received.refused == {}
    assert received.desired.protections == (wanted,)
    RetentionPolicy.parse(policy.retention)
    words.warnings(policy)
    assert words.points_at_most(policy) >= 1
    for minute in range(0, 1440, 7):
        policy.bandwidth_at(minute)
