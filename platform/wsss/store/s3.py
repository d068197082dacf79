"""A bucket of any S3-compatible object store as the place that holds artifacts.

Downloaded files are kept in a cache folder under their sha256, so that a file is fetched once for all
processes, stages and stores, and a stale copy cannot be taken for another content.

Listings decide only which files belong to an artifact when it is published without naming its shards; a store whose
listings lag (a Swift cluster under load) needs the shards named, as the execution of map stages does.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from wsss.files import finish, remove_unfinished, unfinished
from wsss.store.backend import DamagedArtifact, Entry, OnWait, StoreError, sha256_of
from wsss.store.lease import lease_single_flight
from wsss.store.local import OTHER_CONTENT, PROBE, LocalFiles, explained, held

log = logging.getLogger(__name__)

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_DENIED = {
    "401",
    "403",
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
}
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) for this endpoint, on every machine"

# An endpoint that has never answered is given up after 4 tries: a refused connection within a second or two.
_FIRST = Config(
    connect_timeout=2.5,
    read_timeout=60,
    retries={"total_max_attempts": 4, "mode": "standard"},
    s3={"addressing_style": "path"},
    signature_version="s3v4",
    max_pool_connections=16,
)
# One that has answered this process before will come back, rather than to lose what is being computed. botocore's
# pauses are a random part of what begins at a twentieth of a second and doubles, up to 20 s: these tries take two
# minutes on average, and in 999 cases of 1000 more than the minute in which a server starts again.
_PATIENT = _FIRST.merge(Config(retries={"total_max_attempts": 21, "mode": "standard"}))
_TELL_AT_ATTEMPT = 9  # after about 6 s
_PREFLIGHT = _FIRST.merge(Config(read_timeout=5, retries={"total_max_attempts": 2, "mode": "standard"}))
# Environments, each with its endpoint, in which a call has succeeded.
_answered: set[tuple[tuple[str, str], ...]] = set()
_TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=4)


@dataclass(frozen=True)
class S3Files:
    """Objects below a prefix (without slashes at its ends, may be empty) of an existing bucket.

    Endpoint and credentials come from the environment of each process. `cache`: local folder for downloaded files; on
    a node to which this has travelled, below that node's own WSSS_HOME where it has one.
    `lease_seconds`: of silence after which the holder of a single flight counts as dead.
    """

    bucket: str
    prefix: str
    cache: Path
    lease_seconds: float = 60.0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "answered": _environment() in _answered}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What has answered the driver has answered: its workers are as patient as it is.
        if state.pop("answered", False):
            _answered.add(_environment())
        home = os.environ.get("WSSS_HOME")
        own = {"cache": Path(home).expanduser().absolute() / "cache" / "store"} if home else {}
        for name, value in {**state, **own}.items():
            object.__setattr__(self, name, value)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def describe(self, path: str) -> str:
        return f"{self.url}/{path}".rstrip("/")

    def read(self, path: str) -> bytes | None:
        with self._explained(path):
            try:
                return b"".join(self._blocks(path))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def size(self, path: str) -> int | None:
        with self._explained(path):
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._key(path))["ContentLength"]
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise
            # The answer to HEAD has no body: a missing bucket looks like a missing object.
            _check_bucket(self._client, self.bucket)
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        return {
            path: entry.size
            for path, entry in self._listed(folder).items()
            if not any(part.startswith(".") for part in path.split("/"))
        }

    def entries(self) -> dict[str, Entry]:
        return self._listed("")

    def _listed(self, folder: str) -> dict[str, Entry]:
        base = self._key(f"{folder}/" if folder else "")
        found: dict[str, Entry] = {}
        with self._explained(folder):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base):
                for item in page.get("Contents", ()):
                    found[item["Key"].removeprefix(base)] = Entry(item["Size"], item["LastModified"].timestamp())
        return dict(sorted(found.items()))

    def write(self, path: str, content: bytes | Path) -> None:
        with self._explained(path):
            if isinstance(content, bytes):
                self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=content)
            else:
                with content.open("rb") as file:
                    self.write_stream(path, file)

    def write_stream(self, path: str, content: IO[bytes]) -> None:
        """Put what is read from a stream; the object appears whole."""
        with self._explained(path):
            self._client.upload_fileobj(content, self.bucket, self._key(path), Config=_TRANSFER)

    def write_if_absent(self, path: str, content: bytes) -> bool:
        """Create an object unless it exists. Returns whether it was created."""
        with self._explained(path):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(path), Body=content, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) in _TAKEN:
                    return False
                if _code(error) not in ("501", "NotImplemented"):
                    raise
                # A store without conditional writes: look first; the reader of a lease reads it back anyway.
                if self.size(path) is not None:
                    return False
                self.write(path, content)
        return True

    def remove(self, path: str) -> None:
        with self._explained(path):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def remove_folder(self, folder: str) -> None:
        names = [{"Key": self._key(f"{folder}/{name}")} for name in self._listed(folder)]
        with self._explained(folder):
            for start in range(0, len(names), 1000):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": names[start : start + 1000], "Quiet": True}
                )
                if errors := answer.get("Errors"):
                    raise StoreError(
                        f"{len(errors)} objects could not be removed: {errors[0].get('Message', '?')}",
                        self.describe(folder),
                        "check that these credentials may delete objects",
                    )

    def remove_leftovers(self, folder: str) -> None:
        """Nothing to do: an object appears whole or not at all."""

    def move(self, path: str, target: str) -> None:
        listed = [path, *(f"{path}/{name}" for name in self.sizes(path))]
        for each in listed:
            with self._explained(each):
                try:
                    source = {"Bucket": self.bucket, "Key": self._key(each)}
                    self._client.copy(source, self.bucket, self._key(target + each.removeprefix(path)))
                except ClientError as error:
                    if _code(error) not in _ABSENT:
                        raise
                    continue
            self.remove(each)

    def faults(self, folder: str, files: Mapping[str, Mapping[str, Any]], *, anew: bool = False) -> dict[str, str]:
        listed = self.sizes(folder)
        found: dict[str, str] = {}
        for file, entry in files.items():
            # The listing of an object store may lag behind: what looks wrong in it is asked for directly.
            size = listed.get(file)
            if size != entry["size"]:
                size = self.size(f"{folder}/{file}")
            if size != entry["size"]:
                found[file] = "missing" if size is None else f"{size} bytes instead of {entry['size']}"
            elif anew and self._digest(f"{folder}/{file}") != entry["sha256"]:
                found[file] = OTHER_CONTENT
        return found

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._explained(path):
            for block in self._blocks(path):
                digest.update(block)
        return digest.hexdigest()

    def local_path(self, path: str, size: int, sha256: str, *, anew: bool) -> Path:
        kept = self.cache / "files" / sha256[:2] / sha256 / path.rpartition("/")[2]
        if not _holds(kept, size, sha256, anew):
            with held(self.cache / ".locks" / f"{sha256}.lock", None):
                if not _holds(kept, size, sha256, anew):
                    self._download(path, size, sha256, kept)
        return kept

    def check_writable(self) -> None:
        probe = self._key(f"{PROBE}{uuid.uuid4().hex[:8]}")
        client = _client(_PREFLIGHT)
        with self._explained(""):
            client.put_object(Bucket=self.bucket, Key=probe, Body=b"wsss")
            client.delete_object(Bucket=self.bucket, Key=probe)
        LocalFiles(self.cache).check_writable()

    def single_flight(self, name: str, on_wait: OnWait | None) -> AbstractContextManager[None]:
        return lease_single_flight(self, f".leases/{name}.json", on_wait, self.lease_seconds)

    def blocks(self, path: str, start: int = 0) -> Iterator[bytes]:
        """Content in pieces, from the byte `start`. Raises StoreError."""
        with self._explained(path):
            yield from self._blocks(path, start)

    def _blocks(self, path: str, start: int = 0) -> Iterator[bytes]:
        """Content in pieces; continues where a connection broke (botocore repeats whole requests only)."""
        done, tries = start, 0
        while True:
            span = {"Range": f"bytes={done}-"} if done else {}
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(path), **span)["Body"]
            try:
                for block in body.iter_chunks(1 << 20):
                    done += len(block)
                    yield block
                return
            except (HTTPClientError, IncompleteReadError):
                tries += 1
                if tries == 4:
                    raise
                time.sleep(2.0 ** (tries - 1))

    def _download(self, path: str, size: int, sha256: str, target: Path) -> None:
        digest = hashlib.sha256()
        remove_unfinished(target.parent)
        with explained(target), self._explained(path), unfinished(target) as temporary:
            with temporary.open("wb") as file:
                for block in self._blocks(path):
                    digest.update(block)
                    file.write(block)
            found = temporary.stat().st_size
            if found != size or digest.hexdigest() != sha256:
                fault = f"{found} bytes instead of {size}" if found != size else OTHER_CONTENT
                folder, _, file = path.rpartition("/")
                raise DamagedArtifact(f"{file} ({fault})", self.describe(folder))
            finish(temporary, target, durable=True)

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    @property
    def _client(self) -> Any:
        return _client(_PATIENT if _environment() in _answered else _FIRST)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        """botocore's errors -> StoreError that says what to do, and never shows a secret."""
        where = f"{self.describe(path)} at {endpoint()}"
        try:
            yield
            _answered.add(_environment())
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise StoreError("no credentials for the object store", where, _CREDENTIALS) from error
        except (ConnectionError, HTTPClientError) as error:
            raise StoreError(
                f"cannot reach the object store at {endpoint()} ({type(error).__name__})",
                self.describe(path),
                "check AWS_ENDPOINT_URL and that the server runs; finished work is kept, so just run again",
            ) from error
        except ClientError as error:
            raise self._refused(error, where) from error
        except BotoCoreError as error:
            raise StoreError(f"the object store failed: {error}", where, "run again; finished work is kept") from error

    def _refused(self, error: ClientError, where: str) -> StoreError:
        code = _code(error)
        if code == "NoSuchBucket":
            remedy = f"create it (`aws s3 mb s3://{self.bucket}`) or name another one"
            return StoreError(f"the bucket {self.bucket!r} does not exist", where, remedy)
        if code in _DENIED:
            return StoreError(f"the object store refused the credentials ({code})", where, _CREDENTIALS)
        if code in _ABSENT:
            return DamagedArtifact("an object is missing", where)
        message = error.response.get("Error", {}).get("Message", "")
        return StoreError(f"the object store answered {code}: {message}", where, "run again; finished work is kept")


def _holds(path: Path, size: int, sha256: str, anew: bool) -> bool:
    """Whether a downloaded copy is whole; `anew` also compares its checksum."""
    try:
        return path.stat().st_size == size and (not anew or sha256_of(path)[0] == sha256)
    except OSError:
        return False


def endpoint() -> str:
    """The endpoint in use, without credentials that somebody may have put into its address."""
    value = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not value:
        return "the endpoint of the AWS profile, or AWS itself"
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(v for v in os.environ.items() if v[0].startswith("AWS_")))


def _client(config: Config) -> Any:
    # One client for each process: connections must not be shared over a fork.
    return _cached_client(config, os.getpid(), _environment())


@cache
def _cached_client(config: Config, process: int, environment: tuple[tuple[str, str], ...]) -> Any:
    try:
        client = boto3.Session().client("s3", config=config)
        client.meta.events.register("needs-retry.s3", _tell_of_outage)
        return client
    except ValueError as error:  # botocore repeats the address, which may hold a password
        raise StoreError("AWS_ENDPOINT_URL is not an address", endpoint(), "it looks like http://host:port") from error


def _tell_of_outage(attempts: int, **_: Any) -> None:
    if attempts == _TELL_AT_ATTEMPT:
        log.warning("the object store at %s does not answer; it is asked again for about two minutes", endpoint())


@cache
def _check_bucket(client: Any, bucket: str) -> None:
    client.list_objects_v2(Bucket=bucket, MaxKeys=1)
