"""``python -m support.rotation_steps URL MASTER_KEY``: a rotation without gateways, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from secondsite.base.clock import SystemClock
from secondsite.server.database.engine import open_database
from secondsite.server.identity.authority import ServerAuthority
from secondsite.server.survival.rotation import Rotation

if __name__ == "__main__":
    clock = SystemClock()
    database = open_database(sys.argv[1], clock)
    authority = ServerAuthority.open(database, Path(sys.argv[2]), name="server", clock=clock)
    rotation = Rotation(database, authority, "server", clock)
    if [one.phase for one in rotation.status()] == ["Current"]:
        database.run(rotation.begin)
        authority.look()
    while rotation.advance():
        pass
    print(" ".join(one.phase for one in rotation.status()), authority.current)
