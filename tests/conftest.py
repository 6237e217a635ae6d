"""Fixtures of real things: two libvirt sites and object stores for the whole run, a guest for one test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from secondsite.base.clock import SystemClock
from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from secondsite.server.database.engine import Database, open_database
from support.databases import KINDS, Databases, databases_of_a_run
from support.lab import RunningGuest, running_guest, running_sites
from support.object_servers import Azurite, SeaweedFS, azurite_path, environment, running, weed_path


def pytest_configure() -> None:
    """The same run wherever it is started: by hand, by CI, in a shell's background."""
    # Where CI is set, pytest writes out the whole difference of what a failed comparison compared: of two
    # disks' contents, as a planted bug leaves them, that takes hours (_pytest.assertion._compare_sequence).
    os.environ.pop("CI", None)
    # A shell starts what it puts in the background with SIGINT ignored, and so would every command of ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sites() -> Iterator[Sites]:
    """Two libvirt sites joined by a line; they live as long as the run."""
    if os.geteuid() != 0:
        pytest.skip("sites need root (./run test uses sudo)")
    with running_sites() as both:
        yield both


@pytest.fixture
def site_a(sites: Sites) -> Site:
    """The source site."""
    return sites.a


@pytest.fixture
def guest(site_a: Site) -> Iterator[RunningGuest]:
    """A small guest at A that writes all the time."""
    with running_guest(site_a) as running:
        yield running


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[SeaweedFS]:
    """A real S3 server, for the whole run."""
    with running(SeaweedFS, "SeaweedFS", weed_path()) as server:
        yield server


@pytest.fixture
def seaweedfs(seaweedfs_server: SeaweedFS) -> Iterator[SeaweedFS]:
    """The S3 server, with the environment its user sets."""
    with environment(seaweedfs_server.environment()):
        yield seaweedfs_server


@pytest.fixture(scope="session")
def azurite_server() -> Iterator[Azurite]:
    """Microsoft's emulator of Azure Blob Storage, for the whole run."""
    with running(Azurite, "Azurite", azurite_path()) as server:
        yield server


@pytest.fixture
def azurite(azurite_server: Azurite) -> Iterator[Azurite]:
    """The emulator, with the environment its user sets."""
    with environment(azurite_server.environment()):
        yield azurite_server


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Makes databases on SQLite and on a PostgreSQL of its own, for the whole run."""
    with databases_of_a_run() as made:
        yield made


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The address of a database with the server's tables, once on each kind."""
    with databases.ready(request.param) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the server's tables, once on each kind."""
    opened = open_database(database_url, SystemClock())
    yield opened
    opened.close()
