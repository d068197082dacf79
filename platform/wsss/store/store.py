"""The store: artifacts by stage and key, on any back end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from wsss.store.artifact import MANIFEST, Artifact, ArtifactWriter
from wsss.store.backend import Backend, OnWait


@dataclass(frozen=True)
class ArtifactRef:
    """One line of a listing. `size`: bytes of everything stored for it. `published`: False before its publication."""

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
        artifact = Artifact(self.backend, stage, key)
        if self.backend.size(artifact.place(MANIFEST)) is None:
            return None
        artifact.check_sizes()
        return artifact

    def writer(self, stage: str, key: str) -> ArtifactWriter:
        """Begin, or continue, to fill an artifact."""
        return ArtifactWriter(Artifact(self.backend, stage, key))

    def single_flight(self, stage: str, key: str, on_wait: OnWait | None = None) -> AbstractContextManager[None]:
        """Be the only one, in all processes and threads, that computes this artifact.

        Look for the artifact again inside: the holder before has probably published it. When a holder dies, a
        waiting run enters: at once in a folder, after `lease_seconds` in an object store. Not re-entrant.

        Args:
            on_wait: called once with a description of the holder if this has to wait.
        """
        return self.backend.single_flight(Artifact(self.backend, stage, key).folder, on_wait)

    def list(self, include_unfinished: bool = False) -> Iterator[ArtifactRef]:
        """Published artifacts, sorted by stage and key; on demand also those that are not published."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for path, size in self.backend.sizes("").items():
            if path.count("/") >= 2:
                stage, key, file = path.split("/", 2)
                found.setdefault((stage, key), {})[file] = size
        for (stage, key), sizes in sorted(found.items()):
            if MANIFEST in sizes or include_unfinished:
                yield ArtifactRef(stage, key, sum(sizes.values()), MANIFEST in sizes)

    def delete(self, stage: str, key: str) -> bool:
        """Remove an artifact, published or not. Returns whether there was one."""
        artifact = Artifact(self.backend, stage, key)
        if not self.backend.sizes(artifact.folder):
            return False
        self.backend.remove(artifact.place(MANIFEST))  # readers first: from here on they see nothing
        self.backend.remove_folder(artifact.folder)
        return True

    def check_writable(self) -> None:
        """Call before hours are spent. Raises StoreError when artifacts could not be written here."""
        self.backend.check_writable()
