"""``secondsite segment``: look at segments, with or without the key."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secondsite.base.errors import Outcome, SecondsiteError
from secondsite.cli.common.gateways import LISTING, Listing
from secondsite.cli.common.output import print_error, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from secondsite.journal.keys import DiskKey


class WrappedKeyMissing(SecondsiteError):
    """The disk's key is not where it was looked for."""

    code = "segment.wrapped-key-missing"
    outcome = Outcome.NOT_FOUND
    happened = "{file} is sealed with key {key}, which is not in {path}."
    cause = "The segment was copied out of its store, or the store is incomplete."
    action = "Give --wrapped-key FILE: the object named {key} in the machine's keys directory of its store."


@contextmanager
def _reading(file: Path) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    from secondsite.journal.errors import damaged

    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def read(start: int, length: int) -> bytes:
        data = os.pread(fd, length, start)
        if len(data) != length:
            raise damaged(str(file), f"it ends before byte {start + length}")
        return data

    try:
        yield read, os.fstat(fd).st_size
    finally:
        os.close(fd)


def _key(file: Path, key_file: Path | None, wrapped_key: Path | None) -> DiskKey | None:
    """The disk's key: unwrapped from the store the segment lies in, or from a given file."""
    from secondsite.base.files import read_limited
    from secondsite.gateway.target.views import load_key
    from secondsite.journal.keys import WRAPPED_KEY_BYTES_MAX, decode_wrapped
    from secondsite.journal.segment_read import SegmentReader

    if key_file is None:
        return None
    vault = load_key(key_file)
    with _reading(file) as (read, size):
        key_id = SegmentReader(read, size, None).head.key_id
    # machines/<machine>/segments/<epoch>/<disk>/<id>, and beside segments: keys/<key id>
    path = wrapped_key or file.resolve().parents[3] / "keys" / key_id
    if wrapped_key is None and not path.is_file():  # the vault key was rotated
        names = [wrapped.name for wrapped in path.parent.glob(f"{key_id}.*")]
        opened = [name for name in names if vault.opens(name.partition(".")[2])]
        path = path.with_name(min(opened, default=key_id))
    if not path.is_file():
        raise WrappedKeyMissing(file=file, key=key_id, path=path)
    _, _, key = decode_wrapped(vault, read_limited(path, size_bytes_max=WRAPPED_KEY_BYTES_MAX))
    if key.id != key_id:
        raise WrappedKeyMissing(file=file, key=key_id, path=path)
    return key


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
    from secondsite.journal.segment_read import SegmentReader

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
    from secondsite.journal.segment_read import verify_segment

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
