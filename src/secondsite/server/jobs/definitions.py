"""What a job does: a list of steps, each a few functions that may be called again at any time.

A step's functions are at-least-once: a server may die after the work and before the note of it, so each must
come to the same end when it is called again, also by another server, also while the first call still runs
somewhere. They are called with (job, epoch): what acts elsewhere refuses an epoch lower than one it has seen.
`undo` may be called for a `do` that was cut anywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from secondsite.server.jobs.errors import JobKindUnknown
from secondsite.server.jobs.states import Action

if TYPE_CHECKING:
    from secondsite.server.jobs.run import StepRun

# No wait is longer: a moment that a wrong clock put far ahead is looked at again.
WAIT_SECONDS_MAX = 86_400.0


@dataclass(frozen=True)
class Done:
    """The step is done; `output` is kept for later steps and, of the last one that gave one, as the job's.

    warnings: how many things did not come out as they should, which is told of the job when it has ended.
    """

    output: msgspec.Struct | None = None
    warnings: int = 0


@dataclass(frozen=True)
class RetryAfter:
    """Not yet: call again in `seconds`, or when the job is woken. No thread waits. `reason` is shown.

    asked: only a question was put, which says nothing of whether it will do: the tries that failed before
    still count. Else a gateway that never answers would be asked for as long as the server lives.
    """

    seconds: float
    reason: str
    asked: bool = False


@dataclass(frozen=True)
class Ask:
    """A person must answer (only from do and verify); then it is called again, with `run.answer`.

    approval: the operation that a second person must approve; set by `people.asking.ask_approval` alone.
    """

    question: str
    choices: tuple[str, ...] = ()
    approval: str = ""


@dataclass(frozen=True)
class WaitForChildren:
    """Call again when a child job has ended."""

    reason: str = "waits for its child jobs"


Result = Done | RetryAfter | Ask | WaitForChildren
DONE = Done()

Input = TypeVar("Input", bound=msgspec.Struct)


class OnFailure(enum.Enum):
    """What becomes of the steps already done when one fails for good."""

    UNDO = "undo"  # they are taken back
    KEEP = "keep"  # they stay, for a person to retry from there or to cancel


@dataclass(frozen=True)
class Step(Generic[Input]):
    """One step; what is None needs nothing."""

    name: str
    do: Callable[[StepRun[Input]], Result]
    undo: Callable[[StepRun[Input]], Result] | None = None
    verify: Callable[[StepRun[Input]], Result] | None = None  # after do: proof that it took effect
    clean_up: Callable[[StepRun[Input]], Result] | None = None  # once the whole job can no more be undone
    tries: int = 6  # of an action that fails in a way that may pass
    weight: float = 1.0  # its share of the job's progress
    on_failure: OnFailure | None = None  # when this step fails; None: as the definition says

    def function(self, action: Action) -> Callable[[StepRun[Input]], Result] | None:
        """What is to be called."""
        return {
            Action.DO: self.do,
            Action.VERIFY: self.verify,
            Action.UNDO: self.undo,
            Action.CLEAN_UP: self.clean_up,
        }[action]


@dataclass(frozen=True)
class Upgrade(Generic[Input]):
    """How a job begun with an older version goes on with this one."""

    steps: Mapping[str, str]  # old name -> new name, of every step that may have been begun
    input: Callable[[bytes], Input]  # the old input's JSON -> the new input


def _no_locks(_input: msgspec.Struct) -> tuple[str, ...]:
    return ()


def _no_vault(_input: msgspec.Struct) -> str | None:
    return None


@dataclass(frozen=True)
class Definition(Generic[Input]):
    """A kind of job. Raise `version` with every change of the steps' names or order, or the input's form."""

    kind: str
    version: int
    input: type[Input]
    steps: tuple[Step[Input], ...]
    title: Callable[[Input], str]
    locks: Callable[[Input], Sequence[str]] = _no_locks  # what no other live job may hold: "machine:<id>"
    # the id of the vault it belongs to, where who starts it does not say; a child job is of its parent's
    vault: Callable[[Input], str | None] = _no_vault
    # operations its steps may ask an approval of (`people.asking.ask_approval`): what a vault can demand
    approvals: tuple[str, ...] = ()
    on_failure: OnFailure = OnFailure.UNDO
    upgrades: Mapping[int, Upgrade[Input]] = field(default_factory=dict)  # by the older version

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        assert names, f"{self.kind} has no steps"
        assert len(set(names)) == len(names), f"{self.kind} has two steps of one name: {names}"


class Registry:
    """The definitions a server knows."""

    def __init__(self, definitions: Sequence[Definition[Any]]) -> None:
        self._by_kind = {one.kind: one for one in definitions}
        assert len(self._by_kind) == len(definitions), "two definitions of one kind"

    def get(self, kind: str) -> Definition[Any]:
        """The definition of a kind. Raises JobKindUnknown."""
        if kind not in self._by_kind:
            raise JobKindUnknown(kind=kind, known=", ".join(sorted(self._by_kind)) or "none")
        return self._by_kind[kind]

    @property
    def approvals(self) -> frozenset[str]:
        """The operations that some definition asks an approval of."""
        return frozenset(name for one in self._by_kind.values() for name in one.approvals)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._by_kind))
