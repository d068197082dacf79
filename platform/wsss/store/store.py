"""The store: artifacts by stage and key, on any back end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from wsss.store.artifact import MANIFEST, Artifact, ArtifactWriter, ForeignManifest, in_words
from wsss.store.backend import Backend, DamagedArtifact, OnWait, StoreError

DAMAGED = ".damaged"
# Folder below an object store, or below a home, of the checkpoints of trainings that are under way.
CHECKPOINTS = "checkpoints"
_SET_ASIDE = "set aside, to be computed again"


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

    def artifact(self, stage: str, key: str) -> Artifact:
        """The artifact of that name, whether there is one or not."""
        return Artifact(self.backend, stage, key)

    def find(self, stage: str, key: str) -> Artifact | None:
        """The published artifact, or None.

        Raises:
            DamagedArtifact: what is there is not what was stored.
            StoreError: the store cannot be read.
        """
        artifact = Artifact(self.backend, stage, key)
        if self.backend.size(artifact.place(MANIFEST)) is None:
            return None
        artifact.check()
        return artifact

    def find_or_set_aside(self, stage: str, key: str, tell: Callable[[str], None]) -> Artifact | None:
        """As `find`; what is damaged is set aside and told in one line. The caller holds the single flight.

        Raises:
            StoreError: the artifact was imported, or the store cannot be read or written.
        """
        try:
            return self.find(stage, key)
        except DamagedArtifact:
            self.set_aside(stage, key, tell)
            return None

    def set_aside(self, stage: str, key: str, tell: Callable[[str], None]) -> None:
        """Move what is damaged of an artifact below `.damaged`, which makes it one that is not finished.

        Every file is compared anew. What is whole stays: a map stage computes the shards that are gone. Nothing
        happens to an artifact that is whole or not there. The caller holds the single flight.

        Args:
            tell: gets one line of what was wrong.

        Raises:
            StoreError: the artifact was imported, so that a run would put something else in its place.
        """
        artifact = Artifact(self.backend, stage, key)
        if self.backend.size(artifact.place(MANIFEST)) is None:
            return
        away = f"{DAMAGED}/{artifact.folder}/{time.time_ns()}"
        try:
            files = artifact.files
        except ForeignManifest as error:
            self.backend.move(artifact.folder, away)
            tell(f"{stage}: {error.what}; {_SET_ASIDE}")
            return
        except DamagedArtifact as error:
            self.backend.move(artifact.place(MANIFEST), f"{away}/{MANIFEST}")
            tell(f"{stage}: {error.what}; {_SET_ASIDE}")
            return
        faults = self.backend.faults(artifact.folder, files, anew=True)
        if not faults:
            return
        if artifact.provenance.get("imported"):
            raise StoreError(
                f"imported artifact of stage {stage!r} is damaged: {in_words(faults)}",
                artifact.location,
                f"import it again (`wsss import`) from {artifact.provenance.get('imported_from', 'its source')}, "
                f"or remove it (`wsss rm {artifact.folder}`), and the stage is computed",
            )
        self.backend.move(artifact.place(MANIFEST), f"{away}/{MANIFEST}")  # readers first
        for file in faults:
            self.backend.move(artifact.place(file), f"{away}/{file}")
        tell(f"{stage}: {in_words(faults)}; {_SET_ASIDE}")

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
            if path.count("/") >= 2 and not path.startswith(f"{CHECKPOINTS}/"):
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
