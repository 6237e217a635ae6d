"""docs/stores.md against the code: its commands run on real stores, its variables and settings are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from secondsite.base.errors import Outcome
from secondsite.cli.main import main
from secondsite.gateway.common.config import GatewayConfig
from secondsite.journal import store_object_clients
from secondsite.journal.probe import Verdict
from support.object_servers import Azurite, SeaweedFS

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "stores.md").read_text()
COMMANDS = [shlex.split(line)[1:] for line in re.findall(r"^    (secondsite .*)$", TEXT, re.MULTILINE)]


def check(scheme: str, place: str, credentials: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the document's command for this kind of store, at `place`."""
    [words] = [words for words in COMMANDS if words[2].startswith(scheme)]
    swapped = {words[2]: place, "/etc/secondsite/store.env": str(credentials)}
    code = main([swapped.get(word, word) for word in words])
    return code, capsys.readouterr().out


def credentials_file(tmp_path: Path, variables: dict[str, str]) -> Path:
    path = tmp_path / "store.env"
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    return path


def test_a_directory_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check("/", str(tmp_path), tmp_path, capsys)
    assert code == Outcome.OK
    assert f"{tmp_path.as_uri()}: {Verdict.FULL}" in out
    assert [path.name for path in tmp_path.rglob("*")] == ["probe"]


def test_a_mistyped_directory_is_told_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "mistyped"
    assert main(["store", "check", str(place)]) == Outcome.UNAVAILABLE
    assert "no such directory" in capsys.readouterr().err
    assert not place.exists()


def test_a_bucket_with_object_lock_is_checked(
    tmp_path: Path, seaweedfs: SeaweedFS, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = seaweedfs.make_bucket(locks=True)
    code, out = check(
        "s3:", f"s3://{bucket}/site-b", credentials_file(tmp_path, seaweedfs.environment()), capsys
    )
    assert code == Outcome.OK
    assert f"s3://{bucket}/site-b: {Verdict.FULL}" in out


def test_a_bucket_without_object_lock_is_degraded_with_the_reason(
    tmp_path: Path, seaweedfs: SeaweedFS, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = seaweedfs.make_bucket()
    code, out = check(
        "s3:", f"s3://{bucket}/site-b", credentials_file(tmp_path, seaweedfs.environment()), capsys
    )
    assert code == Outcome.OK
    assert f"{Verdict.DEGRADED}" in out
    assert "without object lock" in out


def test_a_container_is_checked(tmp_path: Path, azurite: Azurite, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check("az:", f"az://{azurite.make_bucket()}/site-b", tmp_path, capsys)
    assert code == Outcome.OK
    assert f'"verdict": "{Verdict.FULL}"' in out


def test_every_variable_is_read() -> None:
    source = Path(store_object_clients.__file__).read_text()
    for name in re.findall(r"`((?:AWS|AZURE)_[A-Z0-9_]+)", TEXT):
        assert f'"{name}"' in source, name


def test_every_setting_exists() -> None:
    for name in re.findall(r"`(store[a-z_]*)(?: = \d+)?`", TEXT):
        assert name in GatewayConfig.model_fields


def test_every_verdict_is_told() -> None:
    assert re.findall(r"^\| `(\w+)` \| [a-z].* \|.*\|$", TEXT, re.MULTILINE)[-3:] == [
        one.value for one in Verdict
    ]
