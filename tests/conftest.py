"""Fixtures of real things: two libvirt sites and object stores for the whole run, a guest for one test."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

from secondsite.base.clock import SystemClock
from secondsite.base.parse import prepare_structs
from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from secondsite.server.database.engine import Database, open_database
from support.databases import KINDS, Databases, databases_of_a_run
from support.lab import RunningGuest, running_guest, running_sites
from support.object_servers import Azurite, SeaweedFS, azurite_path, environment, running, weed_path
from support.pair import Pair
from support.station import Station, Stations

SAID_MAX = 2000  # characters of each failure
OWN_DIRECTORY = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)  # before pytest makes its directory
def pytest_configure(config: pytest.Config) -> None:
    """The same run wherever it is started: by hand, by CI, in a shell's background."""
    if not hasattr(config, "workerinput") and config.option.basetemp is None:
        # a short one: sockets lie in tests' directories, and their names have 107 bytes at most
        config.option.basetemp = config.stash[OWN_DIRECTORY] = tempfile.mkdtemp(prefix="ss")
    # Where CI is set, pytest writes out the whole difference of what a failed comparison compared: of two
    # disks' contents, as a planted bug leaves them, that takes hours (_pytest.assertion._compare_sequence).
    os.environ.pop("CI", None)
    # Tables are as wide as this says; beside other test processes it says 80.
    os.environ.pop("COLUMNS", None)
    # A shell starts what it puts in the background with SIGINT ignored, and so would every command of ours.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes minutes: real sites and guests.
LONG = (
    "tests/e2e/",
    "tests/unit/lab/",
    "tests/contract/test_libvirt.py",
    "tests/contract/test_fabrics.py",
    "tests/fault/test_guard.py",
    "tests/fault/test_libvirt_crash.py",
)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The directories of a run that failed stay, to be looked into."""
    made = session.config.stash.get(OWN_DIRECTORY, None)
    if made is not None and exitstatus == 0:
        shutil.rmtree(made, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each failure said, together at the end: it is there where only the end of the output is kept."""
    reports = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    for report in reports:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr)
        terminalreporter.write_line(f"{report.nodeid} ({report.when}): {text[:SAID_MAX]}")


def pytest_collection_finish() -> None:
    """Parts of gateways and servers, threads and all, are tried without the start that makes this ready."""
    prepare_structs()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: of two test processes one begins with them, one with the others."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


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
def stations() -> Iterator[Stations]:
    """Two sites with a server and gateways, for all tests of this process that leave them in order."""
    if os.geteuid() != 0:
        pytest.skip("sites need root (./run test uses sudo)")
    made = Stations()
    yield made
    made.drop()


@pytest.fixture
def station(request: pytest.FixtureRequest, stations: Stations) -> Iterator[Station]:
    """It, in order; gone with a test that fails."""
    failed = request.session.testsfailed
    yield stations.get()
    if request.session.testsfailed > failed:
        stations.tell()
        stations.drop()


@pytest.fixture
def unprotected(station: Station) -> Pair:
    """The station's guest under load, of which nothing is kept yet."""
    station.shop.unprotect(delete_replica=True)
    return station.shop


@pytest.fixture
def pair(station: Station) -> Pair:
    """The station's guest under load, protected every second through the server."""
    station.shop.protect()
    station.shop.wait_protected()
    return station.shop


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
