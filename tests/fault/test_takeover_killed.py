"""kill -9 at every mark of following, taking over, handing over and becoming a standby: it goes on, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secondsite.base.crash import MARKS
from secondsite.journal.store_local import LocalStore
from secondsite.server.database.engine import open_database
from secondsite.server.standby import becoming, follower, takeover
from secondsite.server.standby.errors import ClaimedElsewhere
from secondsite.server.standby.files import Role, StandbyFiles
from secondsite.server.standby.follower import Follower
from secondsite.server.standby.takeover import SENTENCE, Order, take_over
from secondsite.server.survival import handover, restore
from secondsite.server.survival.incarnation import read_incarnation
from secondsite.transfer.serverclaims import ServerClaim, newest_claims
from support.lonely import CLOCK, config_of, new_standby, new_state, put_copy
from support.takeover_process import run

pytestmark = pytest.mark.fault
FULL = os.environ.get("SECONDSITE_MATRIX") == "full"
TAKEOVER = (takeover.INTENT, takeover.CLAIMED, restore.RESTORE_SETTLED, takeover.RESTORED, takeover.ROLE_SET)
FOLLOW = (follower.COPY_FETCHED, follower.COPY_NOTED)
BECOME = (becoming.ROLE_SET, becoming.ASIDE)
HAND_OVER = (handover.NOTED, handover.STOPPED, handover.COPIED)


def some(marks: tuple[str, ...], *always: int) -> list[str]:
    """All of them by `./run standby`; of each kind one or two else: a process takes two seconds to start."""
    return [mark for number, mark in enumerate(marks) if FULL or number in always]


def _killed(what: str, root: Path, name: str, at: str) -> None:
    words = [sys.executable, "-m", "support.takeover_process", what, str(root), name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SECONDSITE_CRASH_AT": at}
    done = subprocess.run(words, env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def _claims(root: Path) -> list[ServerClaim]:
    return list(newest_claims(LocalStore(root / "store")))


def _incarnation(root: Path, name: str) -> int:
    database = open_database(config_of(root, name).database_url(), CLOCK)
    with database.read() as connection:
        found = read_incarnation(connection).number
    database.close()
    return found


def test_every_mark_is_killed_at() -> None:
    ours = {mark for mark in MARKS if mark.startswith(("takeover.", "standby.", "become.", "handover."))}
    assert ours == {*TAKEOVER, *FOLLOW, *BECOME, *HAND_OVER} - {restore.RESTORE_SETTLED}


@pytest.mark.parametrize("at", some(TAKEOVER, 1))
def test_a_killed_takeover_goes_on_with_its_claim(at: str, tmp_path: Path) -> None:
    state = new_state(tmp_path)
    put_copy(tmp_path, state)
    new_standby(tmp_path, "b")
    _killed("take-over", tmp_path, "b", at)
    files = StandbyFiles(tmp_path / "b")
    before = _claims(tmp_path)
    assert bool(before) == (at != takeover.INTENT)
    # meanwhile a newer copy came: a takeover that has begun goes on with the state it claimed with
    put_copy(tmp_path, state)
    if before and files.role() is Role.STANDBY:
        other = Follower(new_standby(tmp_path, "c"), CLOCK)
        with pytest.raises(ClaimedElsewhere):  # another standby of this store is too late
            take_over(other, Order(SENTENCE))
        assert _claims(tmp_path) == before
        assert not other.files.begun()
    if files.role() is Role.STANDBY:
        Follower(config_of(tmp_path, "b"), CLOCK).look()
        run("take-over", tmp_path, "b")
    [claim] = _claims(tmp_path)
    assert claim.number == 1
    assert not before or before == [claim]
    assert files.role() is Role.ACTIVE
    assert _incarnation(tmp_path, "b") == claim.incarnation > _incarnation(tmp_path, "active")


@pytest.mark.parametrize("at", some(FOLLOW, 0))
def test_a_standby_killed_while_it_takes_a_copy_holds_one_or_the_other(at: str, tmp_path: Path) -> None:
    state = new_state(tmp_path)
    first = put_copy(tmp_path, state)
    standby = Follower(new_standby(tmp_path, "b"), CLOCK)
    assert not standby.look().problem
    second = put_copy(tmp_path, state)
    _killed("look", tmp_path, "b", at)
    held = standby.held()
    assert held is not None
    assert held.name == (first if at == follower.COPY_FETCHED else second)
    assert not standby.look().problem
    held = standby.held()
    assert held is not None
    assert held.name == second
    assert [path.name for path in standby.files.copies()] == [held.file]  # nothing is left over


@pytest.mark.parametrize("at", some(BECOME, 0))
def test_a_server_killed_while_it_becomes_a_standby_is_never_another_new_one(at: str, tmp_path: Path) -> None:
    state = new_state(tmp_path)
    put_copy(tmp_path, state)
    state.close()
    take_over(Follower(new_standby(tmp_path, "b"), CLOCK), Order(SENTENCE))
    _killed("become", tmp_path, "active", at)
    assert StandbyFiles(tmp_path / "active").role() is Role.STANDBY
    run("become", tmp_path, "active")
    aside = [path.name for path in (tmp_path / "active").glob("*superseded*")]
    assert len(aside) == 1
    assert not (tmp_path / "active" / "server.db").exists()
    # and back again: what it follows now is the other one's
    back = Follower(config_of(tmp_path, "active"), CLOCK)
    assert not back.look().problem


@pytest.mark.parametrize("at", some(HAND_OVER, 0))
def test_a_server_killed_while_it_hands_over_goes_on_with_that(at: str, tmp_path: Path) -> None:
    new_state(tmp_path).close()
    _killed("hand-over", tmp_path, "active", at)
    run("hand-over", tmp_path, "active")
    standby = Follower(new_standby(tmp_path, "b"), CLOCK)
    standby.look()
    held = standby.held()
    assert held is not None
    assert held.handed_over_at is not None
