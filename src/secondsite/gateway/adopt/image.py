"""The image file that holds a copy to be adopted: looked at, watched, read. It is never written.

Its format is what a person said, never guessed: a guest writes what a raw image begins with. A qcow2 image is
read by QEMU's own code (`basehost`), with the files beneath it where it has such; all of them are watched.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from secondsite.base.parse import JSON_ERRORS
from secondsite.gateway.messages.adopterrors import ImageChanged, ImageInUse, ImageRefused
from secondsite.gateway.messages.adoption import ImageFormat
from secondsite.gateway.target.basehost import CONTEXT, BaseHost
from secondsite.journal.bases import RawBase
from secondsite.model.extents import Extents
from secondsite.nbd import wire
from secondsite.nbd.client import NbdClient


class WatchedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file, and by what a change of it shows."""

    path: str
    device: int
    inode: int
    size_bytes: int
    changed_ns: int  # when its content was changed last


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as it was when somebody asked to adopt it."""

    path: str
    format: ImageFormat
    size_bytes: int  # of the disk it holds
    held_bytes: int  # what it takes on its volume: at most so much is taken over
    files: tuple[WatchedFile, ...]


class _Info(msgspec.Struct, rename="kebab"):
    """One image as `qemu-img info` tells of it."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int = 0
    encrypted: bool = False
    backing_filename: str | None = None
    backing_filename_format: str | None = None


class ImageReader(Protocol):
    """An open image."""

    def data_extents(self, offset: int, length: int) -> Extents:
        """Where there may be data; everything else in the range reads as zeros."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; beyond the end are zeros."""


def look_at(path: Path, image_format: ImageFormat) -> Image:
    """What an image is now. Raises ImageRefused, ImageInUse."""
    if not path.is_absolute():
        raise ImageRefused(path=path, why="it is not an absolute path")
    chain = _chain(path, image_format)
    files = tuple(_watch(Path(info.filename)) for info in chain)
    for info in chain:
        if info.encrypted:
            raise ImageRefused(path=path, why=f"{info.filename} is encrypted")
        if info.backing_filename is not None and info.backing_filename_format is None:
            raise ImageRefused(path=path, why=f"{info.filename} does not say of what format its base is")
    top = chain[0]
    held = sum(info.actual_size for info in chain)
    return Image(
        path=str(path),
        format=image_format,
        size_bytes=top.virtual_size,
        held_bytes=min(held, top.virtual_size),
        files=files,
    )


def require_unchanged(image: Image) -> None:
    """Raise ImageChanged unless all files are what they were."""
    for file in image.files:
        try:
            now = _watch(Path(file.path))
        except ImageRefused as error:
            raise ImageChanged(path=image.path, why=str(error)) from error
        if now != file:
            what = "its size" if now.size_bytes != file.size_bytes else "its content"
            if (now.device, now.inode) != (file.device, file.inode):
                what = "the file itself"
            raise ImageChanged(path=image.path, why=f"{what} is another ({file.path})")


@contextlib.contextmanager
def open_image(image: Image) -> Iterator[ImageReader]:
    """Open for reading. Raises BaseFailed; reading raises that and NbdError."""
    path = Path(image.path)
    if image.format == "raw":
        raw = RawBase(path, read_only=True)
        try:
            yield raw
        finally:
            raw.close()
        return
    with BaseHost(path, "adopted").connect(writable=False) as client:
        yield _Qcow2Reader(client)


class _Qcow2Reader:
    """A qcow2 image behind its host, which ends with the last connection to it."""

    def __init__(self, client: NbdClient) -> None:
        self._client = client

    def data_extents(self, offset: int, length: int) -> Extents:
        """See `ImageReader`."""
        end = min(offset + length, self._client.size_bytes)
        if end <= offset:
            return Extents.empty()
        return self._client.map(CONTEXT, offset, end - offset).lacking(wire.STATE_ZERO)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ImageReader`."""
        inside = max(0, min(len(buffer), self._client.size_bytes - offset))
        self._client.read_into(offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)


def _chain(path: Path, image_format: ImageFormat) -> list[_Info]:
    """The image and what lies beneath it. Raises ImageInUse: QEMU locks what it writes."""
    _watch(path)  # a file that is none: qemu-img would tell less clearly
    command = ["qemu-img", "info", "--output=json", "--backing-chain", "-f", image_format, "--", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    except OSError as error:
        raise ImageRefused(path=path, why=f"qemu-img cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.strip() or f"qemu-img ended with {done.returncode}"
        if "lock" in said:
            raise ImageInUse(path=path, why="another process has it open for writing")
        raise ImageRefused(path=path, why=said.splitlines()[0])
    try:
        return msgspec.convert(json.loads(done.stdout), type=list[_Info])
    except JSON_ERRORS as error:
        raise ImageRefused(path=path, why=f"qemu-img says something unknown of it ({error})") from error


def _watch(path: Path) -> WatchedFile:
    try:
        if not path.is_file():
            raise ImageRefused(
                path=path, why="there is no such file" if not path.exists() else "it is no file"
            )
        found = path.stat()
    except OSError as error:
        raise ImageRefused(path=path, why=os.strerror(error.errno or 0)) from error
    return WatchedFile(
        path=str(path),
        device=found.st_dev,
        inode=found.st_ino,
        size_bytes=found.st_size,
        changed_ns=found.st_mtime_ns,
    )
