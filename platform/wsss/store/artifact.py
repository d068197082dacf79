"""An artifact: the files that one stage computed under one key, and the manifest that makes them visible.

Layout below the store, the same in every back end:

    <stage>/<key>/<file>...              weights, tables, `shard-00000.zip`...
    <stage>/<key>/finished/<file>.json   note (size, sha256, images of a shard), written after its file
    <stage>/<key>/manifest.json          written last; without it readers see nothing
    .damaged/<stage>/<key>/...           what was set aside because it is not what was stored

The notes are what a restarted run trusts: a file without its note was being written when the process died.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsss.store.backend import Backend, DamagedArtifact, StoreError, sha256_of
from wsss.store.shards import ShardIndex, encode_shard

MANIFEST = "manifest.json"
FORMAT = 1
_FINISHED = "finished"
_SHARD = re.compile(r"shard-(\d{5,})\.zip")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]*")

log = logging.getLogger(__name__)


class ForeignManifest(DamagedArtifact):
    """The folder holds another artifact than its name says: none of its files can be trusted."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact, opened for reading. Picklable: travels as store and key, without its manifest."""

    backend: Backend
    stage: str
    key: str

    def __post_init__(self) -> None:
        check_name(self.stage, "stage")
        check_name(self.key, "key")

    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend, "stage": self.stage, "key": self.key}

    @property
    def folder(self) -> str:
        """Path below the store."""
        return f"{self.stage}/{self.key}"

    def place(self, file: str) -> str:
        """Path of one of its files below the store."""
        return f"{self.folder}/{file}"

    @property
    def location(self) -> str:
        """Where it lies, for people."""
        return self.backend.describe(self.folder)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Format, `stage`, `key`, `files` (name -> size, sha256), `shards` (file -> images), `provenance`."""
        content = self.backend.read(self.place(MANIFEST))
        if content is None:
            raise StoreError(
                f"artifact of stage {self.stage!r} is no longer in the store", self.location, "run the stage again"
            )
        try:
            manifest = json.loads(content)
            if isinstance(manifest["format"], int) and manifest["format"] > FORMAT:
                raise StoreError(
                    f"{MANIFEST} has format {manifest['format']}, this version reads format {FORMAT}",
                    self.location,
                    "update wsss, or use another store (--store)",
                )
            checksum = manifest.pop("sha256", None)  # manifests of earlier versions have none
            whole = checksum in (None, _digest(manifest)) and manifest["format"] == FORMAT
            if whole and all(isinstance(manifest[name], dict) for name in ("files", "shards", "provenance")):
                if (manifest["stage"], manifest["key"]) == (self.stage, self.key):
                    return manifest
                foreign = f"{manifest['stage']}/{manifest['key']}"
                raise ForeignManifest(f"{MANIFEST} belongs to {foreign}", self.location)
        except (ValueError, KeyError, TypeError):
            pass
        raise DamagedArtifact(f"{MANIFEST} cannot be read", self.location)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """File name -> {"size": bytes, "sha256": hex digest}."""
        return self.manifest["files"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run wrote about itself at publication: code, environment, data, costs."""
        return self.manifest["provenance"]

    @property
    def size(self) -> int:
        """Bytes of all files, without notes and manifest."""
        return sum(entry["size"] for entry in self.files.values())

    def images(self) -> list[str]:
        """Names of the images that have arrays, in the order of the shards; empty without shards."""
        return list(self._shard_of)

    def arrays(self, image: str) -> dict[str, np.ndarray]:
        """The named arrays of one image; only its own bytes are read.

        Raises:
            StoreError: the artifact has no such image.
            DamagedArtifact: its shard is not what was stored.
        """
        shard = self._shard_of.get(image)
        if shard is None:
            raise StoreError(
                f"image {image!r} is not among the {len(self._shard_of)} of stage {self.stage!r}",
                self.location,
                "check that both stages run over the same image list",
            )
        try:
            if shard not in self._indexes:
                self._indexes[shard] = self._index(shard, self.path(shard))
            return self._indexes[shard].arrays(image)
        except DamagedArtifact:
            path = self._local(shard, anew=True)  # a damaged copy of an object store is fetched again
        try:
            self._indexes[shard] = self._index(shard, path)
            return self._indexes[shard].arrays(image)
        except DamagedArtifact as error:
            raise StoreError(
                f"{shard} was stored damaged: {error}",
                self.location,
                f"remove the artifact (`wsss rm {self.folder}`), run again",
            ) from error

    def path(self, file: str) -> Path:
        """A local path with the content of a file; downloaded once if the store is remote.

        The checksum is compared each time, but for shards: each array has its own, which its reading compares.

        Raises:
            StoreError: the artifact has no such file.
            DamagedArtifact: its content is not what was stored.
        """
        if file not in self.files:
            has = f"it has: {', '.join(self.files) or 'none'}"
            raise StoreError(f"artifact of stage {self.stage!r} has no file {file!r}", self.location, has)
        return self._local(file, anew=_SHARD.fullmatch(file) is None)

    def _index(self, shard: str, path: Path) -> ShardIndex:
        index = ShardIndex.open(path)
        if set(index.entries) != set(self.manifest["shards"][shard]):
            raise DamagedArtifact(f"{shard} holds other images than the manifest says", self.location)
        return index

    def _local(self, file: str, anew: bool) -> Path:
        entry = self.files[file]
        return self.backend.local_path(self.place(file), entry["size"], entry["sha256"], anew=anew)

    def json(self, file: str) -> Any:
        """Content of a JSON file of the artifact."""
        return json.loads(self.path(file).read_text(encoding="utf-8"))

    def check(self, *, anew: bool = False) -> None:
        """Compare all files with the manifest; how far is said at `Backend.faults`.

        Raises:
            DamagedArtifact: names the files that are not what was stored.
        """
        if faults := self.backend.faults(self.folder, self.files, anew=anew):
            raise DamagedArtifact(in_words(faults), self.location)

    @cached_property
    def _shard_of(self) -> dict[str, str]:
        return {image: shard for shard, images in self.manifest["shards"].items() for image in images}

    @cached_property
    def _indexes(self) -> dict[str, ShardIndex]:
        return {}


@dataclass(frozen=True)
class ArtifactWriter:
    """Fills an artifact, possibly from several processes at once, and publishes it. Picklable.

    Whatever was added survives the death of the process. Adding to an artifact that is already published does
    nothing (equal keys mean equal content), and publishing it again returns it.
    """

    artifact: Artifact

    def add_shard(self, index: int, records: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Store the arrays of a group of images: image name -> array name -> array.

        Raises:
            StoreError: a name or an array cannot be stored, or the store cannot be written.
        """
        self._add(shard_file(index), encode_shard(records), sorted(records))

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Store a file under a name (forward slashes allowed) from bytes or from a local file.

        Raises:
            StoreError: the name cannot be used, or the store cannot be written.
        """
        parts = name.split("/")
        for part in parts:
            check_name(part, "file")
        if name == MANIFEST or parts[0] == _FINISHED or _SHARD.fullmatch(name):
            raise StoreError(f"the file name {name!r} is taken by the store itself", remedy="choose another name")
        self._add(name, content, None)

    def finished_images(self) -> dict[int, tuple[str, ...]]:
        """Shard index -> its images, for the shards finished so far, by this or by a dead process.

        A shard that is damaged is not finished.
        """
        notes = {file: note for file, note in self._notes().items() if _SHARD.fullmatch(file)}
        damaged = self._backend.faults(self.artifact.folder, notes)
        shards = {int(file[6:-4]): note for file, note in notes.items() if file not in damaged}
        return {index: tuple(note["images"]) for index, note in sorted(shards.items())}

    def bytes_per_image(self) -> float:
        """Bytes for each image of the shards finished so far; 0.0 where none is."""
        notes = [note for file, note in self._notes().items() if _SHARD.fullmatch(file)]
        images = sum(len(note["images"]) for note in notes)
        return sum(note["size"] for note in notes) / images if images else 0.0

    def discard_shard(self, index: int) -> None:
        """Forget a finished shard, for a run that divides the images into other shards. No error when it is absent."""
        if self._published():
            raise StoreError("a published artifact cannot lose a shard", self.artifact.location)
        self._backend.remove(self._note_path(shard_file(index)))
        self._backend.remove(self.artifact.place(shard_file(index)))

    def publish(self, provenance: Mapping[str, Any], shards: Iterable[int] | None = None) -> Artifact:
        """Write the manifest, which makes the artifact visible in one step.

        Args:
            provenance: JSON values that describe how it came to be.
            shards: indices that must be there and the only ones that belong to it; None takes all that are
                finished.

        Raises:
            StoreError: a shard is missing, an image is in two shards, or the store cannot be written.
        """
        artifact = self.artifact
        if self._published():
            return artifact
        notes = self._notes()
        if shards is not None:
            wanted = {shard_file(index) for index in shards}
            # Asked for by name: the listing of an object store may not show a shard that was just written.
            notes.update({file: note for file in wanted - set(notes) if (note := self._note(file)) is not None})
            if missing := sorted(wanted - set(notes)):
                raise StoreError(
                    f"{len(missing)} of {len(wanted)} shards are not finished, the first is {missing[0]}",
                    artifact.location,
                    "run the stage again; finished shards are kept",
                )
            notes = {file: note for file, note in notes.items() if file in wanted or not _SHARD.fullmatch(file)}
        by_shard = {file: note["images"] for file, note in sorted(notes.items()) if _SHARD.fullmatch(file)}
        seen: set[str] = set()
        for file, images in by_shard.items():
            if twice := seen.intersection(images):
                raise StoreError(
                    f"image {min(twice)!r} is in {file} and in another shard",
                    artifact.location,
                    f"remove the unfinished one (`wsss rm {artifact.folder}`), run the stage again",
                )
            seen.update(images)
        manifest = {
            "format": FORMAT,
            "stage": artifact.stage,
            "key": artifact.key,
            "files": {f: {"size": n["size"], "sha256": n["sha256"]} for f, n in sorted(notes.items())},
            "shards": by_shard,
            "provenance": dict(provenance),
        }
        self._backend.remove_leftovers(artifact.folder)
        self._backend.write(self.artifact.place(MANIFEST), _json({**manifest, "sha256": _digest(manifest)}))
        return artifact

    def _add(self, file: str, content: bytes | Path, images: list[str] | None) -> None:
        if self._published():
            log.info("%s is published already; %s is not written again", self.artifact.location, file)
            return
        if isinstance(content, Path) and not content.is_file():
            raise StoreError(f"the file to store as {file!r} does not exist", str(content))
        digest, size = sha256_of(content)
        note = {"file": file, "size": size, "sha256": digest} | ({} if images is None else {"images": images})
        before = self._content_of_note(file)
        if before == _json(note) and self._backend.size(self.artifact.place(file)) == size:
            return
        if before is not None:  # never leave an old note beside new content
            self._backend.remove(self._note_path(file))
        self._backend.write(self.artifact.place(file), content)
        self._backend.write(self._note_path(file), _json(note))

    @property
    def _backend(self) -> Backend:
        return self.artifact.backend

    def _note_path(self, file: str) -> str:
        return self.artifact.place(f"{_FINISHED}/{file}.json")

    def _published(self) -> bool:
        return self._backend.size(self.artifact.place(MANIFEST)) is not None

    def _note(self, file: str) -> dict[str, Any] | None:
        """The note of a file whose content has the size that the note says."""
        try:
            note = json.loads(self._content_of_note(file) or b"")
            size, images = note["size"], note.get("images", [])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if "sha256" not in note or not isinstance(images, list) or (_SHARD.fullmatch(file) and "images" not in note):
            return None
        return note if size == self._backend.size(self.artifact.place(file)) is not None else None

    def _content_of_note(self, file: str) -> bytes | None:
        try:
            return self._backend.read(self._note_path(file))
        except DamagedArtifact:
            return b""  # it is there, and says nothing

    def _notes(self) -> dict[str, dict[str, Any]]:
        listed = sorted(self._backend.sizes(self.artifact.place(_FINISHED)))
        files = [name.removesuffix(".json") for name in listed if name.endswith(".json")]
        return {file: note for file in files if (note := self._note(file)) is not None}


def shard_file(index: int) -> str:
    """File name of a shard."""
    if index < 0:
        raise StoreError(f"a shard index cannot be negative: {index}")
    return f"shard-{index:05d}.zip"


def check_name(name: str, kind: str) -> None:
    """Raises StoreError when a stage, key or file name cannot be part of a path in every back end."""
    if not _NAME.fullmatch(name):
        remedy = "use letters, digits and _ . = + @ - and begin with a letter, a digit or _"
        raise StoreError(f"{name!r} cannot be the name of a {kind}", remedy=remedy)


def in_words(faults: Mapping[str, str]) -> str:
    """`weights.pt (other content), shard-00003.zip (missing)`; the first few of many."""
    named = [f"{file} ({fault})" for file, fault in sorted(faults.items())]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more files" if len(named) > 5 else "")


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256_of(_json(manifest))[0]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
