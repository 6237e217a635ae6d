"""Many machines' threads in one: tasks on greenlets, switched by a heap of events, on a clock of its own.

The product's own code runs here unchanged, threads, locks, waits and all: while a `World` is installed, the
modules that use `threading` are given this module's primitives instead, which switch to the world's loop
where a thread would block. Nothing else decides who runs next than the heap of (time, sequence, event) and
one `random.Random(seed)`, so a seed gives the same run every time.

A killed process is never switched to again: no handler of its runs, as none runs after SIGKILL. What its
frames hold is let go of when the world ends, after everything they could touch is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import random
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import greenlet

START = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS_MAX = 400_000  # a run that needs more goes round in circles

# Code is switched at waits and at operations of devices. Fabrics and stores in memory are devices, whose
# operations are atomic: they keep real locks.
_KEEP_REAL = {
    "secondsite.base.clock",
    "secondsite.base.crash",
    "secondsite.fabrics.memory",
    "secondsite.fabrics.memory_guest",
    "secondsite.fabrics.memory_machine",
    "secondsite.journal.bases_memory",
    "secondsite.journal.store_memory",
}


class RunFailed(AssertionError):
    """Something the simulation must never see."""


class _Killed(BaseException):
    """Thrown into what is left of killed processes when the world ends."""


class Task:
    """A thread of a simulated process."""

    def __init__(self, process: Process, target: Callable[[], object], name: str) -> None:
        self.process = process
        self.name = name
        self.token = 0  # of its newest wait; what would end an older one is ignored
        self.done = False
        self.waiters: list[tuple[Task, int]] = []
        self._target = target
        self.glet = greenlet.greenlet(self._run, parent=process.world.hub)

    def _run(self, _: object = None) -> None:
        world = self.process.world
        world.current = self
        try:
            self._target()
        except _Killed:
            return
        except BaseException as error:  # noqa: BLE001 - the task's root: the run has failed
            world.fail(f"{self.process.name}/{self.name} ended by {type(error).__name__}: {error}", error)
        self.done = True
        for task, token in self.waiters:
            world.wake(task, token)
        world.current = None


class Process:
    """A simulated process: tasks that die together. `clock` is its host's."""

    def __init__(self, world: World, name: str, clock: SimClock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.alive = True
        self.tasks: list[Task] = []
        self.marks_left = 0  # dies at the so-many-th crash mark it passes; 0: at none
        self.operations_left = 0  # dies at the so-many-th operation on a device; 0: at none

    def spawn(self, target: Callable[[], object], name: str = "main") -> Task:
        """Start a thread in it."""
        assert self.alive, f"{self.name} is dead"
        task = Task(self, target, name)
        self.tasks = [t for t in self.tasks if not t.done]
        self.tasks.append(task)
        self.world.at(self.world.jitter(), lambda: self.world.switch_to(task, None))
        return task

    def kill(self) -> None:
        """SIGKILL; when its own task asks for it, this never returns."""
        self.alive = False
        self.world.note("killed", self.name)
        current = self.world.current
        if current is not None and current.process is self:
            self.world.current = None
            self.world.hub.switch()
            raise AssertionError("a killed process was switched to")


class World:
    """The loop. `run` from the main greenlet; install it around everything that makes product objects."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 0.0
        self.hub = greenlet.getcurrent()
        self.current: Task | None = None
        self.processes: list[Process] = []
        self.failure: BaseException | None = None
        self.events = 0
        self.trace = hashlib.sha256()
        self.story: deque[str] = deque(maxlen=400)  # the end of it is shown when a run fails
        self.on_crash: Callable[[Process], None] = lambda process: None
        self.ended = False  # what is left of frames only unwinds
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    # -- events -----------------------------------------------------------------------------------

    def at(self, delay: float, event: Callable[[], None]) -> None:
        """Let `event` happen so many seconds from now; in the main greenlet, so it must not wait."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay, self._sequence, event))

    def jitter(self) -> float:
        """How long a thread takes to be scheduled: so that ties are broken in every order."""
        return self.chance.random() * 1e-3

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; True once `until` holds. Raises what failed."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            if until is not None and until():
                return True
            when, _, event = heapq.heappop(heap)
            self.now = max(self.now, when)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise RunFailed(f"{EVENTS_MAX} events and no end: something goes round in circles")
            event()
            if self.failure is not None:
                raise self.failure
        self.now = max(self.now, end)
        return until is not None and until()

    def note(self, *what: object) -> None:
        """Add a fact to the trace; facts are the same for the same seed, random names are not among them."""
        line = f"{self.now:.6f} " + " ".join(str(part) for part in what)
        self.trace.update(line.encode() + b"\n")
        self.story.append(line)

    def fail(self, text: str, cause: BaseException | None = None) -> None:
        """End the run as failed, once the loop is back."""
        if self.failure is None:
            self.failure = cause if isinstance(cause, RunFailed) else RunFailed(text)
            if cause is not None and self.failure is not cause:
                self.failure.__cause__ = cause

    # -- tasks ------------------------------------------------------------------------------------

    def switch_to(self, task: Task, value: object) -> None:
        """Run a task until it waits; from the main greenlet."""
        if not task.process.alive or task.done:
            return
        self.current = task
        task.glet.switch(value)
        self.current = None

    def block(self, seconds: float | None) -> bool:
        """Wait in a task; False when the time was up. With None only `wake` ends it."""
        if self.ended:
            raise _Killed
        task = self.current
        assert task is not None, "the main greenlet must not wait"
        task.token += 1
        token = task.token
        if seconds is not None:
            self.at(max(0.0, seconds), lambda: self._resume(task, token, False))
        self.current = None
        woken = bool(self.hub.switch())
        self.current = task
        return woken

    def wake(self, task: Task, token: int) -> None:
        """End that wait of the task, soon."""
        self.at(self.jitter(), lambda: self._resume(task, token, True))

    def pause(self, seconds_max: float = 2e-3) -> None:
        """Let others run, when in a task."""
        if self.current is not None:
            self.block(self.chance.random() * seconds_max)

    def _resume(self, task: Task, token: int, woken: bool) -> None:
        if task.token == token:
            task.token += 1
            self.switch_to(task, woken)

    # -- devices and crash marks ------------------------------------------------------------------

    def operation(self, what: str, effect: Callable[[], Any]) -> Any:
        """Something a process does to a device: others may run before, the process may die around it."""
        task = self.current
        if task is None:
            return effect()
        self.pause()
        process = task.process
        if process.operations_left:
            process.operations_left -= 1
            if not process.operations_left:
                landed = self.chance.random() < 0.5
                self.note("dies at", what.split(" ", maxsplit=1)[0], "landed" if landed else "lost")
                if landed:
                    with contextlib.suppress(Exception):
                        effect()
                self.on_crash(process)
                process.kill()
        return effect()

    def crash_mark(self, name: str) -> None:
        """Takes the place of `base.crash.crash_point`."""
        task = self.current
        if task is None or not task.process.marks_left:
            return
        task.process.marks_left -= 1
        if not task.process.marks_left:
            self.note("dies at", name)
            self.on_crash(task.process)
            task.process.kill()

    # -- taking the place of the real things ------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within this, the product's modules use this world's threads and chance."""
        names = _Threading(self)
        changed: list[tuple[object, str, object]] = []

        def put(owner: object, name: str, value: object) -> None:
            changed.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

        for module_name, module in product_modules():
            if getattr(module, "threading", None) is threading and module_name not in _KEEP_REAL:
                put(module, "threading", names)
            if hasattr(module, "crash_point") and module_name not in _KEEP_REAL:
                put(module, "crash_point", self.crash_mark)
        chance = random.Random(self.seed ^ 0x5EC5)
        put(secrets, "token_hex", lambda count=16: chance.randbytes(count).hex())
        put(secrets, "token_bytes", chance.randbytes)
        try:
            yield
        finally:
            for owner, name, value in reversed(changed):
                setattr(owner, name, value)

    def end(self) -> None:
        """Let go of every frame that is left. Call it once nothing they could touch is there any more."""
        self.ended = True
        self._heap.clear()
        for process in self.processes:
            for task in process.tasks:
                if not task.glet.dead and task.glet:
                    with contextlib.suppress(BaseException):
                        task.glet.throw(_Killed())

    def process(self, name: str, clock: SimClock) -> Process:
        """A new process."""
        made = Process(self, name, clock)
        self.processes.append(made)
        return made


def product_modules() -> list[tuple[str, Any]]:
    """Every module of the product that is imported, by name."""
    return [(n, m) for n, m in list(sys.modules.items()) if n.startswith("secondsite.") and m is not None]


class SimClock:
    """One host's clock: the world's time since its start, and a time of day that may jump."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.skew = 0.0  # of the time of day

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._world.now

    def utc(self) -> datetime:
        """See `Clock`."""
        return START + timedelta(seconds=self._world.now + self.skew)

    def wait(self, event: Any, seconds: float) -> bool:
        """See `Clock`."""
        if isinstance(event, SimEvent):
            return event.wait(max(0.0, seconds))
        end = self._world.now + seconds  # an event made when the module was imported: asked from time to time
        while not event.is_set() and self._world.now < end:
            self._world.block(min(0.25, end - self._world.now))
        return bool(event.is_set())

    def wait_on(self, condition: Any, seconds: float) -> None:
        """See `Clock`; the condition is one of this world."""
        condition.wait(max(0.0, seconds))


class _Threading:
    """What `import threading` gives to a module while a world is installed."""

    def __init__(self, world: World) -> None:
        self._world = world

    def Event(self) -> SimEvent:  # noqa: N802 - the name it stands for
        return SimEvent(self._world)

    def Lock(self) -> SimLock:  # noqa: N802
        return SimLock(self._world)

    def RLock(self) -> SimRLock:  # noqa: N802
        return SimRLock(self._world)

    def Condition(self, lock: SimRLock | None = None) -> SimCondition:  # noqa: N802
        return SimCondition(self._world, lock)

    def Thread(  # noqa: N802
        self,
        *,
        target: Callable[..., object],
        name: str = "thread",
        daemon: bool = True,
        args: tuple[Any, ...] = (),
    ) -> SimThread:
        return SimThread(self._world, target, name, args)

    def __getattr__(self, name: str) -> object:
        return getattr(threading, name)


class SimThread:
    """Stands for `threading.Thread`."""

    def __init__(self, world: World, target: Callable[..., object], name: str, args: tuple[Any, ...]) -> None:
        self._world, self._target, self._name, self._args = world, target, name, args
        self._task: Task | None = None

    @property
    def ident(self) -> int | None:
        return id(self._task) if self._task is not None else None

    def start(self) -> None:
        current = self._world.current
        assert current is not None, "threads are started by processes"
        self._task = current.process.spawn(lambda: self._target(*self._args), self._name)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done

    def join(self, timeout: float | None = None) -> None:
        task, current = self._task, self._world.current
        assert task is not None, "join what was started"
        if not task.done and current is not None:
            task.waiters.append((current, current.token + 1))
            self._world.block(timeout)


class SimEvent:
    """Stands for `threading.Event`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._flag = False
        self._waiters: list[tuple[Task, int]] = []

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        waiters, self._waiters = self._waiters, []
        for task, token in waiters:
            self._world.wake(task, token)

    def clear(self) -> None:
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            task = self._world.current
            if task is not None:
                self._waiters.append((task, task.token + 1))
            self._world.block(timeout)
        return self._flag


class SimRLock:
    """Stands for `threading.RLock`. Nobody is preempted: it is contended only where its holder waited."""

    again = True

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: object = None
        self._depth = 0
        self._waiters: deque[tuple[Task, int]] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._world.ended:
            return True
        me: object = self._world.current or self._world
        if self._depth and (self._owner is not me or not self.again):
            if not blocking:
                return False
            assert self._world.current is not None, "the main greenlet met a lock that is held"
            assert self._owner is not me, "a thread waits for itself"
            while self._depth:
                task = self._world.current
                self._waiters.append((task, task.token + 1))
                self._world.block(None)
        self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        if self._world.ended:
            return
        assert self._depth, "released a lock nobody holds"
        self._depth -= 1
        if not self._depth:
            self._owner = None
            if self._waiters:
                self._world.wake(*self._waiters.popleft())

    def locked(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> Literal[False]:
        self.release()
        return False

    def let_go(self) -> int:
        depth, self._depth = self._depth, 1
        self.release()
        return depth

    def take_back(self, depth: int) -> None:
        self.acquire()
        self._depth = depth


class SimLock(SimRLock):
    """Stands for `threading.Lock`."""

    again = False


class SimCondition:
    """Stands for `threading.Condition`."""

    def __init__(self, world: World, lock: SimRLock | None = None) -> None:
        self._world = world
        self._lock = lock if lock is not None else SimRLock(world)
        self._waiters: deque[tuple[Task, int]] = deque()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> Literal[False]:
        self._lock.release()
        return False

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        task = self._world.current
        if task is None:
            return self._world.block(timeout)
        entry = (task, task.token + 1)
        self._waiters.append(entry)
        depth = self._lock.let_go()
        woken = self._world.block(timeout)
        if not woken:
            with contextlib.suppress(ValueError):
                self._waiters.remove(entry)
        self._lock.take_back(depth)
        return woken

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        end = None if timeout is None else self._world.now + timeout
        while not predicate():
            left = None if end is None else end - self._world.now
            if left is not None and left <= 0:
                return False
            self.wait(left)
        return True

    def notify(self, n: int = 1) -> None:
        while n and self._waiters:
            self._world.wake(*self._waiters.popleft())
            n -= 1

    def notify_all(self) -> None:
        self.notify(len(self._waiters))
