"""Small parts of the lab that need no hypervisor."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from secondsite.base.toml import encode_toml
from secondsite.lab import processes
from secondsite.lab.cpio import directory, encode_archive, regular
from secondsite.lab.errors import LabCommandFailed, LabTimeout, LabToolMissing
from secondsite.lab.machine import read_checks

LAB = Path(processes.__file__).parent


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox unpacks the archive")
def test_an_archive_is_unpacked_as_it_was_meant(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    entries = [
        directory("bin"),
        regular("bin/tool", b"#!/bin/sh\n", executable=True),
        regular("odd", b"12345", executable=False),
    ]
    archive.write_bytes(encode_archive(entries))
    out = tmp_path / "out"
    out.mkdir()
    with archive.open("rb") as stream:
        subprocess.run(
            ["busybox", "cpio", "-i", "-d"], cwd=out, stdin=stream, check=True, capture_output=True
        )
    assert (out / "bin" / "tool").read_bytes() == b"#!/bin/sh\n"
    assert (out / "bin" / "tool").stat().st_mode & 0o777 == 0o755
    assert (out / "odd").read_bytes() == b"12345"


def test_settings_are_toml() -> None:
    settings = {
        "name": 'a "quoted" name',
        "bytes": 5,
        "on": True,
        "tls": {"cert": "/x", "inner": {"deep": "ä"}},
    }
    text = encode_toml({"table": settings["tls"], "name": settings["name"]})
    assert tomllib.loads(text) == {"table": {"cert": "/x", "inner": {"deep": "ä"}}, "name": settings["name"]}


def test_a_failed_command_tells_its_output() -> None:
    with pytest.raises(LabCommandFailed, match="exit code 3: why") as failure:
        processes.run(["sh", "-c", "echo why >&2; exit 3"])
    assert "sh -c" in failure.value.sentences()[0]
    with pytest.raises(LabToolMissing):
        processes.run(["no-such-program-of-the-lab"])


def test_waiting_ends_with_the_evidence(tmp_path: Path) -> None:
    with pytest.raises(LabTimeout, match=r"a miracle\. nothing yet"):
        processes.wait_until(
            lambda: None, what="a miracle", root=tmp_path, seconds=0.05, evidence=lambda: "nothing yet"
        )


def test_a_process_is_found_by_neighbouring_words_only() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "input()", "lab-word-1", "lab-word-2"], stdin=subprocess.PIPE
    )
    try:
        processes.wait_until(  # until the child has become the program
            lambda: child.pid in processes.find_by_arguments("lab-word-1", "lab-word-2"),
            what="the child",
            root=LAB,
            seconds=20,
        )
        assert child.pid not in processes.find_by_arguments("lab-word-2", "lab-word-1")
        assert child.pid not in processes.find_by_arguments("lab-word")
    finally:
        child.kill()
        child.wait()


def test_the_checkers_line_parses(tmp_path: Path) -> None:
    log = tmp_path / "console"
    log.write_text(
        'HELLO\r\nCHECK {"good": true, "first": 1, "last": 9, "token": 5, "ahead": 0, "bad": 0, "gaps": 0, '
        '"misplaced": 0, "tokens_back": 0, "lines": [8, 8], "lines_bad": 0}\r\nCHECK {"good": tr'
    )
    checks = read_checks(log)
    assert [(check.good, check.last, check.lines) for check in checks] == [(True, 9, (8, 8))]
