"""obstore's clients for S3 and Azure Blob, made from the variables their users know."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, S3Store

from secondsite.base.clock import SystemClock
from secondsite.base.errors import InvalidInput
from secondsite.base.files import read_limited
from secondsite.base.units import MIB
from secondsite.journal.store_object_settings import AZURE, Credentials, ObjectPlace, check_endpoint

# Ours above, one request each (see `store_object_errors.Retries`).
NO_RETRIES = {"max_retries": 0}
CONNECT_TIMEOUT = "5s"
# A segment of 17 MiB over 5 Mbit/s; what hangs longer is asked again, over another connection.
TIMEOUT = "30s"
# How soon a key rotated in the credentials' file is used.
CREDENTIALS_SECONDS = 60.0

S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
AZURE_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")

# Variables of a file that are settings, not secrets: obstore takes those of the environment by itself.
_S3_SETTINGS = {
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "virtual_hosted_style_request",
    "AWS_UNSIGNED_PAYLOAD": "unsigned_payload",
    "AWS_SERVER_SIDE_ENCRYPTION": "server_side_encryption",
    "AWS_SSE_KMS_KEY_ID": "sse_kms_key_id",
}
_AZURE_ACCOUNTS = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_AZURE_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCESS_KEY")
_AZURE_SAS = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")


def open_client(place: ObjectPlace, credentials: Credentials) -> S3Store | AzureStore:
    """A client of the bucket or container. Raises InvalidInput for settings that make no sense."""
    variables = credentials.read()
    try:
        if place.scheme == AZURE:
            return _azure(place, variables, credentials)
        return _s3(place, variables, credentials)
    except (BaseError, ValueError) as error:
        # the texts name settings, never their values
        why = str(error).split("\n", 1)[0]
        raise InvalidInput(what=f"the settings of the store {place.url}", why=why) from None


def _client_options(endpoint: str | None, variables: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "timeout": TIMEOUT,
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
    }
    bundle = variables.get("AWS_CA_BUNDLE")
    if bundle:
        try:
            options["root_certificate"] = read_limited(Path(bundle), size_bytes_max=16 * MIB)
        except OSError as error:
            raise InvalidInput(what=f"AWS_CA_BUNDLE={bundle}", why=error.strerror or str(error)) from None
    return options


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((variables[name] for name in names if variables.get(name)), None)


def s3_region(variables: Mapping[str, str]) -> str:
    """The region; servers of one's own ignore it, but it goes into every signature."""
    return _first(variables, ("AWS_REGION", "AWS_DEFAULT_REGION")) or "us-east-1"


def _s3(place: ObjectPlace, variables: Mapping[str, str], credentials: Credentials) -> S3Store:
    endpoint = check_endpoint(variables, S3_ENDPOINTS, "AWS_ALLOW_HTTP")
    # the checksum is what buckets with a default retention insist on, and servers without TLS need most
    config: dict[str, Any] = {"region": s3_region(variables), "checksum_algorithm": "sha256"}
    if endpoint:
        config["endpoint"] = endpoint
    config.update({ours: variables[name] for name, ours in _S3_SETTINGS.items() if name in variables})
    more: dict[str, Any] = {}
    if credentials.file is not None and "AWS_ACCESS_KEY_ID" in variables:
        more["credential_provider"] = _provider(credentials, _s3_credential)
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        config=config,  # type: ignore[arg-type]
        client_options=_client_options(endpoint, variables),  # type: ignore[arg-type]
        retry_config=NO_RETRIES,  # type: ignore[arg-type]
        **more,
    )


def _azure(place: ObjectPlace, variables: Mapping[str, str], credentials: Credentials) -> AzureStore:
    endpoint = check_endpoint(variables, AZURE_ENDPOINTS, "AZURE_ALLOW_HTTP")
    account = _first(variables, _AZURE_ACCOUNTS)
    if account is None:
        raise InvalidInput(what=f"the store {place.url}", why="AZURE_STORAGE_ACCOUNT_NAME is not set")
    config: dict[str, Any] = {"account_name": account}
    if endpoint:
        config["endpoint"] = endpoint
    more: dict[str, Any] = {}
    key, sas = _first(variables, _AZURE_KEYS), _first(variables, _AZURE_SAS)
    if credentials.file is not None and (key or sas):
        more["credential_provider"] = _provider(credentials, _azure_credential)
    elif key:
        config["account_key"] = key
    elif sas:
        config["sas_key"] = sas
    return AzureStore(
        place.bucket,
        prefix=place.prefix or None,
        config=config,  # type: ignore[arg-type]
        client_options=_client_options(endpoint, variables),  # type: ignore[arg-type]
        retry_config=NO_RETRIES,  # type: ignore[arg-type]
        **more,
    )


def _s3_credential(variables: Mapping[str, str]) -> dict[str, Any]:
    return {
        "access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "secret_access_key": variables.get("AWS_SECRET_ACCESS_KEY", ""),
        "token": variables.get("AWS_SESSION_TOKEN") or None,
    }


def _azure_credential(variables: Mapping[str, str]) -> dict[str, Any]:
    key = _first(variables, _AZURE_KEYS)
    return {"access_key": key} if key else {"sas_token": _first(variables, _AZURE_SAS) or ""}


class _Provider:
    """Reads the credentials' file again; the library calls it when the last ones are old."""

    def __init__(self, credentials: Credentials, make: Any) -> None:
        self._credentials, self._make = credentials, make

    def __call__(self) -> dict[str, Any]:
        until = SystemClock().utc() + timedelta(seconds=CREDENTIALS_SECONDS)
        return {**self._make(self._credentials.read()), "expires_at": until}


def _provider(credentials: Credentials, make: Any) -> _Provider:
    return _Provider(credentials, make)
