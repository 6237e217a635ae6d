"""Fixtures that need a real libvirt: two sites for the whole run, a guest for one test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from secondsite.lab.place import Site
from secondsite.lab.sites import Sites
from support.lab import RunningGuest, running_guest, running_sites


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
