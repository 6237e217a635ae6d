"""The process that serves one point: ``python -m secondsite.gateway.recovery.export DIRECTORY READY_FD``.

It takes the lock of its directory, reads what to serve, opens the view and serves until SIGTERM. It holds no
state: started again it serves the same bytes. The gateway may come and go meanwhile (see `exports`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from secondsite.base.errors import SecondsiteError
from secondsite.base.parse import prepare_structs
from secondsite.gateway.recovery.exportdir import ExportSpec, RunState, read_spec, take_lock, write_run
from secondsite.gateway.recovery.exports import ExportFailed
from secondsite.gateway.target.views import load_key, open_point_view
from secondsite.journal.chain import Journal
from secondsite.journal.stores import open_store
from secondsite.nbd.server import serve

log = logging.getLogger(__name__)


def run(directory: Path, ready_fd: int) -> int:
    """Serve the export of `directory`; returns the exit code."""
    lock = take_lock(directory)
    if lock is None:
        return 0  # another process serves it
    prepare_structs()
    # after the lock: a gateway that ends the export writes so first and then waits for the lock
    spec = read_spec(directory)
    if spec is None or spec.ending:
        return 0
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    write_run(directory, RunState(process=os.getpid()))
    try:
        vault = load_key(Path(spec.key_file))
        credentials = Path(spec.store_credentials) if spec.store_credentials else None
        store = open_store(spec.store_url, create=False, credentials=credentials)
        journal = Journal(store, spec.machine, vault)
        with open_point_view(journal, spec.point, vault, moved=spec.bases) as view:
            owner = (spec.access.user, spec.access.group)
            with serve(
                {disk: view.disks[disk] for disk in spec.disks},
                spec.socket_path,
                mode=spec.access.mode,
                owner=None if owner == (-1, -1) else owner,
            ):
                _say_ready(ready_fd)
                log.info("serving point %d of %s at %s", spec.point, spec.machine_name, spec.socket_path)
                ended.wait()
    except (SecondsiteError, OSError) as caught:
        error = caught if isinstance(caught, SecondsiteError) else _failed(spec, caught)
        told = {key: str(value) for key, value in error.as_dict().items()}
        write_run(directory, RunState(process=os.getpid(), error=told))
        log.error("%s", " ".join(error.sentences()))  # noqa: TRY400 - a sentence for people, no traceback
        return int(error.outcome) or 1
    return 0


def _failed(spec: ExportSpec, error: OSError) -> ExportFailed:
    why = f"{error.strerror}: {error.filename or spec.socket_path}"
    return ExportFailed(point=spec.point, machine=spec.machine_name, why=why)


def _say_ready(fd: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the gateway ended meanwhile; the next one finds our lock
        os.write(fd, b"ready")
    os.close(fd)


def main() -> int:
    """From the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.umask(0o077)
    return run(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
