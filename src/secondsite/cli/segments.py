"""``secondsite segment``: look at segments, with or without the key."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.base.errors import Outcome
from secondsite.cli.common import LISTING, Listing
from secondsite.cli.output import print_error, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from secondsite.journal.keys import DiskKey


@contextmanager
def _reading(file: Path) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield lambda start, length: os.pread(fd, length, start), os.fstat(fd).st_size
    finally:
        os.close(fd)


def _key(file: Path, key_file: Path | None, wrapped_key: Path | None) -> DiskKey | None:
    """The disk's key: unwrapped from the store the segment lies in, or from a given file."""
    from secondsite.gateway.views import disk_key_of_segment

    return None if key_file is None else disk_key_of_segment(file, key_file, wrapped_key)


def dump(
    file: Path,
    /,
    *,
    key_file: Path | None = None,
    wrapped_key: Path | None = None,
    listing: Listing = LISTING,
) -> None:
    """Show a segment's header, and with the key its index: which blocks it holds and how.

    For example:

        secondsite segment dump /srv/replicas/machines/M/segments/00000001/vda/S

        secondsite segment dump S --key-file vault.key --wrapped-key K --json

    Parameters
    ----------
    file
        A segment.
    key_file
        The recovery key.
    wrapped_key
        The disk's wrapped key; found by itself where the segment lies in its store.
    """
    from secondsite.journal.segment import SegmentReader

    key = _key(file, key_file, wrapped_key)
    with _reading(file) as (read, size):
        reader = SegmentReader(read, size, key)
        head = reader.head
        fields = {
            "machine": head.machine,
            "disk": head.disk,
            "epoch": head.epoch,
            "id": head.id,
            "keyId": head.key_id,
            "diskSizeBytes": head.disk_size_bytes,
            "sizeBytes": size,
        }
        blocks = []
        if key is not None:
            names = reader.index.dtype.names or ()
            blocks = [
                dict(zip(names, (int(value) for value in row), strict=True)) for row in reader.index.tolist()
            ]
    if listing.json:
        print_json({**fields, "blocks": blocks if key is not None else None})
        return
    for name, value in fields.items():
        print(f"{name}: {value}")
    if key is None:
        print("the index is sealed: give --key-file to see it")
    elif blocks:
        columns = list(blocks[0])
        print_table(
            [f"{column.upper()}>" for column in columns],
            ([block[column] for column in columns] for block in blocks),
            empty="",
        )
    else:
        print("it holds no blocks")


def verify(
    files: list[Path],
    /,
    *,
    key_file: Path | None = None,
    wrapped_key: Path | None = None,
    listing: Listing = LISTING,
) -> int:
    """Check segments: without the key their header and hashes, with it every block. Exit code 6 on damage.

    For example:

        secondsite segment verify /srv/replicas/machines/M/segments/00000001/vda/*

        secondsite segment verify S --key-file vault.key --wrapped-key K

    Parameters
    ----------
    files
        Segments.
    key_file
        The recovery key.
    wrapped_key
        The disk's wrapped key; found by itself where a segment lies in its store.
    """
    from secondsite.base.errors import SecondsiteError
    from secondsite.journal.segment import verify_segment

    worst = Outcome.OK
    results = []
    for file in files:
        try:
            key = _key(file, key_file, wrapped_key)
            with _reading(file) as (read, size):
                report = verify_segment(read, size, key)
            results.append({"file": str(file), "sound": True, "report": report})
            if not listing.json:
                print(f"{file}: sound{'' if key else ' as far as can be told without the key'}")
        except SecondsiteError as error:
            worst = max(worst, error.outcome)
            results.append({"file": str(file), "sound": False, "error": error.as_dict()})
            if not listing.json:
                print(f"{file}: damaged", file=sys.stderr)
                print_error(error)
    if listing.json:
        print_json(results)
    return int(worst)
