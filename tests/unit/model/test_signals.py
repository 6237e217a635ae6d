"""The detector on series of points as machines make them: what must alert, what must not, and what it costs.

A series is a function of the point's number and a seeded chance. Rates are per 5 s unless said otherwise, on
32 GiB of disks. The series are made up, the shares of hard data chosen: no machine was recorded for them, and
the detector was tuned on the same series it is tested with. They hold its behaviour, not its error rates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from secondsite.base.units import GIB, KIB, MIB
from secondsite.model.signals import (
    BURST_SECONDS,
    WARM_UP_POINTS,
    WINDOW_POINTS,
    Alert,
    Detector,
    Episode,
    Sample,
    Signals,
    floor_bytes,
    last_clean,
    signals_wrong,
)

Series = Callable[[random.Random, int], Signals]
DISK = 32 * GIB


def writes(
    *, new: float = 0, new_hard: float = 0, over: float = 0, over_hard: float = 0, seconds: float = 5.0
) -> Signals:
    """From bytes of new and overwritten data and the shares of each that do not compress."""
    block = 4 * KIB
    fresh, replaced = int(new) // block * block, int(over) // block * block
    scrambled = int(replaced * over_hard) // block * block
    hard = int(fresh * new_hard) // block * block + scrambled
    written = fresh + replaced
    mixed = scrambled / replaced if replaced else 0.0
    return Signals(
        written_bytes=written,
        rewritten_bytes=replaced,
        hard_bytes=hard,
        scrambled_bytes=scrambled,
        packed_bytes=int(hard + (written - hard) * 0.35),
        entropy=int(4800 + 3150 * (hard / written)) if written else 0,
        rewritten_entropy=int(4800 + 3150 * mixed) if replaced else 0,
        seconds=seconds,
    )


def together(*parts: Signals) -> Signals:
    """Two workloads in the same interval."""
    total = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("written_bytes", "rewritten_bytes", "hard_bytes", "scrambled_bytes", "packed_bytes")
    }
    weighed = sum(part.rewritten_entropy * part.rewritten_bytes for part in parts)
    entropy = weighed // max(1, total["rewritten_bytes"])
    return Signals(**total, entropy=entropy, rewritten_entropy=entropy, seconds=parts[0].seconds)


def idle(chance: random.Random, _: int) -> Signals:
    """Logs, the journal's own blocks, a browser's cache now and then."""
    return writes(
        new=chance.expovariate(1 / (60 * KIB)),
        new_hard=chance.uniform(0, 0.5),
        over=chance.uniform(40, 400) * KIB,
        over_hard=chance.choice([0, 0, 0, 0.05, 0.12]),
    )


def database(chance: random.Random, _: int) -> Signals:
    """20 to 80 MB of pages written again; some hold compressed values."""
    burst = 3 if chance.random() < 0.05 else 1
    return writes(
        new=chance.uniform(0, 4) * MIB,
        new_hard=0.1,
        over=chance.lognormvariate(3.6, 0.4) * MIB * burst,
        over_hard=chance.uniform(0.01, 0.06),
    )


def desktop(chance: random.Random, _: int) -> Signals:
    """Files saved and caches replaced, in bursts; pictures among them."""
    if chance.random() < 0.7:
        return idle(chance, 0)
    return writes(
        new=chance.expovariate(1 / (3 * MIB)),
        new_hard=chance.random(),
        over=chance.expovariate(1 / MIB),
        over_hard=chance.uniform(0, 0.7),
    )


def encrypted_guest(chance: random.Random, _: int) -> Signals:
    """A guest that encrypts its own disks: nothing ever compresses."""
    return writes(over=chance.lognormvariate(0, 1.5) * MIB, over_hard=1.0, new=256 * KIB, new_hard=1.0)


def run(
    series: Iterable[Signals],
    *,
    size_bytes: int = DISK,
    detector: Detector | None = None,
    number: int = 1,
    at: float = 0.0,
) -> list[Alert]:
    detector = detector or Detector()
    alerts = []
    for signals in series:
        at += signals.seconds
        alert = detector.feed(Sample(number, at, size_bytes, whole=False, signals=signals))
        if alert is not None:
            alerts.append(alert)
        number += 1
    return alerts


def usual(load: Series, points: int, seed: int = 1) -> list[Signals]:
    chance = random.Random(seed)
    return [load(chance, number) for number in range(points)]


def over(load: Series, extra: Signals, points: int, seed: int = 2) -> list[Signals]:
    return [together(signals, extra) for signals in usual(load, points, seed)]


@pytest.mark.parametrize("load", [idle, database, desktop, encrypted_guest])
@pytest.mark.parametrize("seed", range(2))
def test_a_day_of_ordinary_load_raises_nothing(load: Series, seed: int) -> None:
    assert run(usual(load, 17_280, seed)) == []


def upgrade() -> list[Signals]:
    """300 MiB of packages into new space, then 900 MiB unpacked, a fifth of it over old files."""
    fetched = [writes(new=25 * MIB, new_hard=0.99, over=300 * KIB) for _ in range(12)]
    unpacked = [writes(new=25 * MIB, new_hard=0.15, over=6 * MIB, over_hard=0.1) for _ in range(30)]
    return fetched + unpacked


def rotation(*, reused: bool) -> list[Signals]:
    """Logs of 200 MiB compressed to 14 MiB, all at once; reused: into space where other logs were."""
    packed = 14 * MIB
    made = writes(over=packed, over_hard=0.97) if reused else writes(new=packed, new_hard=0.97)
    return [made, writes(over=2 * MIB, over_hard=0)]


ORDINARY = {
    "os upgrade": upgrade(),
    "log rotation": rotation(reused=False),
    "log rotation into reused space": rotation(reused=True),
    "zero fill": [Signals(zeroed_bytes=500 * MIB, seconds=5.0)] * 20,
    "a large database load": [writes(new=400 * MIB, new_hard=0.1, over=50 * MIB, over_hard=0.05)] * 60,
    "a text search index is made again": [writes(over=200 * MIB, over_hard=0.08)] * 60,
    "films are copied to new space": [writes(new=500 * MIB, new_hard=1.0, over=200 * KIB)] * 60,
    "a defragmentation moves compressible files": [writes(over=150 * MIB, over_hard=0.12)] * 60,
    "an hour in one point after an outage": [
        writes(over=3 * GIB, over_hard=0.04, new=GIB, new_hard=0.3, seconds=3600)
    ],
}


@pytest.mark.parametrize("what", ORDINARY)
@pytest.mark.parametrize("load", [idle, database, desktop])
def test_ordinary_things_raise_nothing(what: str, load: Series) -> None:
    chance = random.Random(5)
    extra = [
        together(signals, load(chance, 0)) if signals.rewritten_bytes else signals
        for signals in ORDINARY[what]
    ]
    assert run([*usual(load, 500), *extra, *usual(load, 300, 9)]) == []


@pytest.mark.parametrize("load", [idle, database, desktop])
@pytest.mark.parametrize("speed", [1 * MIB, 5 * MIB, 20 * MIB, 200 * MIB])
def test_encryption_in_place_alerts_and_names_its_beginning(load: Series, speed: int) -> None:
    if load is database and speed < 5 * MIB:
        pytest.skip("a twentieth of the load's own writes: see the next test")
    before = 500
    attack = writes(over=5 * speed, over_hard=0.99)
    alerts = run([*usual(load, before), *over(load, attack, 900)])
    assert len(alerts) == 1
    alert = alerts[0]
    assert before - 2 <= alert.first <= before + 1, "the last clean point is not later than the attack"
    # what was lost when it was certain: the floor and one interval
    encrypted = (alert.number - before) * 5 * speed
    assert encrypted <= floor_bytes(DISK) + 2 * 5 * speed + 16 * MIB
    assert "MiB of data were replaced by data that does not compress" in alert.reason


def test_how_slow_is_still_seen() -> None:
    """The floor in a quarter of an hour on an idle machine; in a database's load its own spread as well."""

    def seen(load: Series, speed: int) -> bool:
        return bool(run([*usual(load, 500), *over(load, writes(over=5 * speed, over_hard=0.99), 900)]))

    assert seen(idle, 100 * KIB)
    assert not seen(idle, 40 * KIB)
    assert seen(database, 3 * MIB)
    assert not seen(database, 256 * KIB)


@pytest.mark.parametrize("seconds", [1.0, 5.0, 60.0, 300.0])
def test_the_interval_of_points_does_not_matter(seconds: float) -> None:
    chance = random.Random(3)

    def quiet() -> Signals:
        return writes(over=chance.uniform(20, 60) * KIB * seconds, over_hard=0.02, seconds=seconds)

    attack = [writes(over=4 * MIB * seconds, over_hard=1.0, seconds=seconds) for _ in range(60)]
    alerts = run([*(quiet() for _ in range(200)), *attack])
    assert [alert.first for alert in alerts] == [201]


def test_intermittent_encryption_alerts() -> None:
    """Half of each file's blocks, to be fast: the other half is not written at all."""
    assert len(run([*usual(idle, 200), *over(idle, writes(over=10 * MIB, over_hard=0.95), 60)])) == 1


def test_it_warms_up_before_it_judges() -> None:
    attack = [writes(over=100 * MIB, over_hard=1.0)] * 10
    assert run([*usual(idle, WARM_UP_POINTS - 12), *attack]) == []
    assert len(run([*usual(idle, WARM_UP_POINTS), *attack])) == 1


def test_a_copy_of_everything_is_not_judged_and_teaches_nothing() -> None:
    detector = Detector()
    everything = writes(over=5 * GIB, over_hard=1.0)
    for number in range(WARM_UP_POINTS + 10):
        assert detector.feed(Sample(number, number * 5.0, DISK, whole=True, signals=everything)) is None
    assert not detector.warm


def test_points_of_older_sources_are_passed_over() -> None:
    detector = Detector()
    assert detector.feed(Sample(1, 0.0, DISK, whole=False, signals=None)) is None


def test_once_an_episode_and_again_in_the_next() -> None:
    attack = over(idle, writes(over=30 * MIB, over_hard=1.0), 100)
    quiet = usual(idle, int(BURST_SECONDS / 5) + 20, 7)
    alerts = run([*usual(idle, 200), *attack, *quiet, *attack])
    first, second = (alert.first for alert in alerts)
    assert first in (200, 201)
    assert second == 301 + len(quiet)


def test_a_nightly_dump_over_the_last_one_is_learnt_after_three_nights() -> None:
    """A false alarm, honestly: compressed data replaces compressed data. It ends once it is a habit."""
    night = [writes(over=120 * MIB, over_hard=0.98)] * 20
    quiet = usual(idle, 400)
    alerts = run([*quiet, *(night + quiet) * 7])
    assert len(alerts) == 3


def test_a_lasting_change_becomes_usual() -> None:
    """Somebody turned on disk encryption: one alert, and then a machine that is blind, and says so."""
    detector = Detector()
    series = [*usual(idle, 200), *[writes(over=20 * MIB, over_hard=1.0)] * (2 * WINDOW_POINTS)]
    assert len(run(series, detector=detector)) == 1
    assert detector.blind


def test_a_guest_that_encrypts_its_disks_cannot_be_judged() -> None:
    detector = Detector()
    run(usual(encrypted_guest, 200), detector=detector)
    assert detector.blind
    clear = Detector()
    run(usual(database, 200), detector=clear)
    assert not clear.blind


def test_a_large_burst_is_critical_and_a_small_one_a_warning() -> None:
    fast = run([*usual(idle, 200), *[writes(over=GIB, over_hard=1.0)] * 3])
    slow = run([*usual(idle, 200), *[writes(over=10 * MIB, over_hard=1.0)] * 30])
    assert (fast[0].critical, slow[0].critical) == (True, False)


def test_what_is_assumed_is_said() -> None:
    attack = writes(over=100 * MIB, over_hard=1.0)
    assumed = Signals(
        **{name: getattr(attack, name) for name in Signals.__struct_fields__ if name != "assumed_bytes"},
        assumed_bytes=4 * KIB,
    )
    assert "assumed" in run([*usual(idle, 200), assumed])[0].reason


def test_the_last_clean_point() -> None:
    numbers = [3, 5, 8, 9, 12]
    assert last_clean(numbers, []) == 12
    assert last_clean(numbers, [Episode(9)]) == 8
    assert last_clean(numbers, [Episode(9, until=12)]) == 12
    assert last_clean(numbers, [Episode(12), Episode(5)]) == 3
    assert last_clean(numbers, [Episode(2)]) is None
    assert last_clean([], []) is None


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, False),
        ({"written_bytes": -1}, True),
        ({"written_bytes": 2**63}, True),
        ({"written_bytes": 4, "rewritten_bytes": 5}, True),
        ({"written_bytes": 4, "hard_bytes": 4, "rewritten_bytes": 3, "scrambled_bytes": 4}, True),
        ({"entropy": 8001}, True),
        ({"seconds": float("nan")}, True),
        ({"seconds": float("inf")}, True),
        ({"seconds": -1.0}, True),
        ({"written_bytes": 8, "rewritten_bytes": 8, "assumed_bytes": 9}, True),
    ],
)
def test_signals_of_another_site_are_checked(fields: dict[str, float], wrong: bool) -> None:
    assert (signals_wrong(Signals(**fields)) is not None) is wrong  # type: ignore[arg-type]
