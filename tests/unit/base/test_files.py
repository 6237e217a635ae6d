"""Durable files: whole or not at all, also when killed or out of room."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from secondsite.base import files


def test_replace_leaves_one_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.replace_file(path, b"one")
    files.replace_file(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_create_has_exactly_one_winner(tmp_path: Path) -> None:
    path, wins = tmp_path / "record", []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        if files.create_file(path, str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert path.read_bytes() == str(wins[0]).encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    files.replace_file(path, b"old")

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_data_is_synced_before_the_name_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        calls.append("dir" if _is_directory(fd) else "data")
        real_fsync(fd)

    def link(source: str, name: str) -> None:
        calls.append("name")
        real_link(source, name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    assert files.create_file(tmp_path / "x", b"data")
    assert calls == ["data", "name", "dir"]


def _is_directory(fd: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{fd}")  # noqa: PTH112 - a descriptor has no Path


def test_read_limited_refuses_more(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 11)
    assert files.read_limited(path, size_bytes_max=11) == b"x" * 11
    with pytest.raises(files.FileTooLarge, match="11 bytes; at most 10"):
        files.read_limited(path, size_bytes_max=10)


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    files.temporary_beside(tmp_path / "a").write_bytes(b"half")
    (tmp_path / "kept").write_bytes(b"whole")
    assert files.remove_leftovers(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
