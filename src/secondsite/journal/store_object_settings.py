"""What an object store is opened with: its place from the URL, all else from the environment or a file.

``s3://bucket/prefix`` and ``az://container/prefix`` say where and nothing else, so they may stand in
configurations, logs and records. Endpoint, region and credentials come from the variables that other tools
use (AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY, …), or from a file of ``NAME=VALUE`` lines with the same
names, which wins over the environment and is read again when it changed: rotated keys need no restart.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from secondsite.base.errors import InvalidInput
from secondsite.base.files import read_limited
from secondsite.base.units import KIB
from secondsite.journal.store import check_key

S3, AZURE = "s3", "az"
SCHEMES = (S3, AZURE)

FILE_BYTES_MAX = 64 * KIB
_VARIABLES = re.compile(r"(AWS|AZURE)_[A-Z0-9_]+\Z")
# As the providers allow for buckets and containers; neither can hold a slash, a percent or a user's name.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")


@dataclass(frozen=True)
class ObjectPlace:
    """Where objects lie."""

    scheme: str  # S3 or AZURE
    bucket: str
    prefix: str  # without slashes at its ends; may be empty

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def parse_place(url: str) -> ObjectPlace:
    """Read a URL of an object store. Raises InvalidInput, also for anything that looks like a secret."""
    what = "the store's URL"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInput(what=what, why=str(error)) from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        why = "credentials and settings belong into the environment or a file, never into the URL"
        raise InvalidInput(what=what, why=why)
    if parts.scheme not in SCHEMES or not _BUCKET.match(parts.netloc):
        why = f"{parts.scheme}://{parts.netloc} names no bucket or container"
        raise InvalidInput(what=what, why=why)
    prefix = parts.path.strip("/")
    if prefix:
        check_key(prefix)
    return ObjectPlace(parts.scheme, parts.netloc, prefix)


@dataclass(frozen=True)
class Credentials:
    """The variables in force: the environment's, and above them those of a file."""

    file: Path | None = None

    def read(self) -> dict[str, str]:
        """All ``AWS_…`` and ``AZURE_…`` variables. Raises InvalidInput for a file that does not parse."""
        found = {name: value for name, value in os.environ.items() if _VARIABLES.match(name)}
        if self.file is not None:
            mine = _read_file(self.file)
            if "AWS_ACCESS_KEY_ID" in mine:
                # a token of the environment belongs to the key of the environment
                found.pop("AWS_SESSION_TOKEN", None)
            found.update(mine)
        return found


def _read_file(path: Path) -> dict[str, str]:
    what = f"the file of store credentials {path}"
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise InvalidInput(what=what, why="others than its owner may read it; run `chmod 600` on it")
        text = read_limited(path, size_bytes_max=FILE_BYTES_MAX).decode()
    except OSError as error:
        raise InvalidInput(what=what, why=error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(what=what, why=str(error)) from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip().removeprefix("export ")
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not _VARIABLES.match(name.strip()):
            raise InvalidInput(what=what, why=f"line {number} is not AWS_…=VALUE or AZURE_…=VALUE")
        found[name.strip()] = _unquoted(value.strip())
    return found


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def check_endpoint(variables: Mapping[str, str], names: tuple[str, ...], allow: str) -> str | None:
    """The endpoint set by one of `names`; one without TLS only where the variable `allow` says so."""
    endpoint = next((variables[name] for name in names if variables.get(name)), None)
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise InvalidInput(what=f"the endpoint in {names[0]}", why="it is not https://HOST[:PORT]")
    if parts.scheme == "http" and variables.get(allow, "").lower() not in {"1", "true", "yes"}:
        why = f"it has no TLS; set {allow}=true if the network between is trusted"
        raise InvalidInput(what=f"the endpoint in {names[0]}", why=why)
    return endpoint
