"""The store: artifacts by stage and key, on any back end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from wsss.store.artifact import MANIFEST, Artifact, ArtifactWriter, check_name
from wsss.store.backend import Backend, OnWait


@dataclass(frozen=True)
class ArtifactRef:
    """One line of a listing.

    Attributes:
        stage: name of the stage.
        key: content key.
        size: bytes of everything stored for it.
        published: False while it is being computed, or after a crash before its publication.
    """

    stage: str
    key: str
    size: int
    published: bool


@dataclass(frozen=True)
class Store:
    """Artifacts by stage and key. Picklable; open it with `wsss.store.open_store`."""

    backend: Backend

    @property
    def url(self) -> str:
        """Folder, or `s3://bucket/prefix`."""
        return self.backend.url

    def find(self, stage: str, key: str) -> Artifact | None:
        """The published artifact, or None.

        Raises:
            StoreError: it is there but a file is missing or short, or the store cannot be read.
        """
        check_name(stage, "stage")
        check_name(key, "key")
        artifact = Artifact(self.backend, stage, key)
        if self.backend.size(f"{artifact.folder}/{MANIFEST}") is None:
            return None
        artifact.check_sizes()
        return artifact

    def writer(self, stage: str, key: str) -> ArtifactWriter:
        """Begin, or continue, to fill an artifact."""
        return ArtifactWriter(self.backend, stage, key)

    def single_flight(self, stage: str, key: str, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        """Be the only one, in all processes and threads, that computes this artifact.

        Look for the artifact again inside: whoever held it before has probably published it. When the holder
        dies, a waiting run enters (at once in a folder, after `lease_seconds` in an object store). Not
        re-entrant.

        Args:
            stage: name of the stage.
            key: content key.
            on_wait: called once with a description of the holder if this has to wait.
        """
        check_name(stage, "stage")
        check_name(key, "key")
        return self.backend.single_flight(f"{stage}/{key}", on_wait)

    def list(self, include_unfinished: bool = False) -> Iterator[ArtifactRef]:
        """Published artifacts, sorted by stage and key; on demand also those that are not published."""
        found: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for path, size in self.backend.sizes("").items():
            parts = path.split("/", 2)
            if len(parts) == 3:
                found.setdefault((parts[0], parts[1]), []).append((parts[2], size))
        for (stage, key), files in sorted(found.items()):
            published = any(file == MANIFEST for file, _ in files)
            if published or include_unfinished:
                yield ArtifactRef(stage, key, sum(size for _, size in files), published)

    def delete(self, stage: str, key: str) -> bool:
        """Remove an artifact, published or not. Returns whether there was one."""
        check_name(stage, "stage")
        check_name(key, "key")
        folder = f"{stage}/{key}"
        if not self.backend.sizes(folder):
            return False
        self.backend.remove(f"{folder}/{MANIFEST}")  # readers first: from here on they see nothing
        self.backend.remove_folder(folder)
        return True

    def check_writable(self) -> None:
        """Call before hours are spent. Raises StoreError when artifacts could not be written here."""
        self.backend.check_writable()
