"""Several threads may decode from the first moment on: what msgspec makes of a struct is made before."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import secondsite
from secondsite.base.parse import _below, prepare_structs
from secondsite.client.messages import Page

SOURCE = Path(secondsite.__file__).parent
# Struct after struct that nobody decoded before, by six threads at once, which change places at every chance.
RACE = """
from __future__ import annotations
import sys, threading, types
import msgspec
from secondsite.base.parse import prepare_structs

class Inner(msgspec.Struct, frozen=True): ...
MADE = '''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    name: str
    started_at: str
    ended_at: str | None = None
class Outer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    id: str
    steps: tuple[Inner, ...] = ()
    more: dict[str, Inner] | None = None
'''
INNER = '{"name": "a", "startedAt": "b"}'
DATA = f'{{"id": "x", "steps": [{INNER}], "more": {{"q": {INNER}}}}}'.encode()

def decode(kind, go):
    go.wait()
    for _ in range(3):
        msgspec.json.decode(DATA, type=kind)

sys.setswitchinterval(1e-6)
for number in range(150):
    module = types.ModuleType(f"made{number}")
    sys.modules[module.__name__] = module
    exec(MADE, module.__dict__)
    if sys.argv[1] == "prepared":
        prepare_structs()
    go = threading.Barrier(6)
    threads = [threading.Thread(target=decode, args=(module.Outer, go)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_decode_for_the_first_time_at_once() -> None:
    """Without it the same ends by SIGSEGV within a few rounds (msgspec 0.22)."""
    done = subprocess.run(
        [sys.executable, "-c", RACE, "prepared"], capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_struct_can_be_prepared() -> None:
    for module in pkgutil.walk_packages(secondsite.__path__, "secondsite."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert [name for name in prepare_structs() if name.startswith("secondsite.")] == []
    ours = [found for found in _below(msgspec.Struct) if found.__module__.startswith("secondsite.")]
    assert len(ours) > 400
    # of a generic one each form is made where it is decoded first: in the commands, by one thread
    generic = [found for found in ours if getattr(found, "__parameters__", ())]
    assert generic == [Page]


@pytest.mark.parametrize(
    "process",
    [
        "gateway/main.py",
        "gateway/recovery/export.py",
        "server/main.py",
        "server/standby/process.py",
        "fabrics/libvirt/guard.py",
    ],
)
def test_what_runs_for_long_prepares_before_its_threads(process: str) -> None:
    assert "    prepare_structs()\n" in (SOURCE / process).read_text()
