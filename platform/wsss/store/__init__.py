"""Content-addressed store of what stages compute, in a folder or in any S3-compatible object store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wsss.store.artifact import Artifact, ArtifactWriter
from wsss.store.backend import DamagedArtifact, StoreError
from wsss.store.local import LocalFiles
from wsss.store.shards import ShardIndex, encode_shard
from wsss.store.store import CHECKPOINTS, ArtifactRef, Store

__all__ = [
    "CHECKPOINTS",
    "Artifact",
    "ArtifactRef",
    "ArtifactWriter",
    "DamagedArtifact",
    "ShardIndex",
    "Store",
    "StoreError",
    "encode_shard",
    "open_store",
]


def open_store(url: str, cache: Path | None = None, lease_seconds: float = 60.0) -> Store:
    """Open the store at a folder path (or `file://` address) or at `s3://bucket/prefix`.

    Opening creates and contacts nothing; call `Store.check_writable` before long work. The endpoint and the
    credentials of an object store come from the environment, as for every AWS client: AWS_ENDPOINT_URL,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, or a profile.

    Args:
        url: where artifacts lie.
        cache: folder for downloaded files; required for `s3://`, unused for folders.
        lease_seconds: of silence after which the holder of a single flight counts as dead (`s3://`).

    Raises:
        StoreError: the address is of another kind, holds credentials, or needs a cache folder.
    """
    if "://" not in url:
        if not url:
            raise StoreError("the address of the store is empty", remedy="name a folder or s3://bucket/prefix")
        return Store(LocalFiles(Path(url).expanduser().absolute()))
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The address is written to logs and manifests, so it must not carry secrets; nor is it repeated here.
        raise StoreError(
            "the address of the store holds credentials or parameters",
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            "set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment instead",
        )
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Store(LocalFiles(Path(unquote(parts.path))))
    if parts.scheme != "s3" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", parts.netloc):
        raise StoreError(
            "not an address of a store", url, "name a folder, or s3://bucket/prefix with a bucket in lower case"
        )
    if cache is None:
        raise StoreError("an object store needs a cache folder", url, "pass cache=")
    from wsss.store.s3 import S3Files  # boto3 takes half a second that a local store need not pay

    return Store(S3Files(parts.netloc, parts.path.strip("/"), Path(cache).expanduser().absolute(), lease_seconds))
