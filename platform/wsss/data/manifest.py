"""Content digests of a data set: what stage keys know of the data. They do not depend on where it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.data.errors import Problem, raise_problems
from wsss.data.file_facts import file_facts, sha256_of_file

if TYPE_CHECKING:
    from wsss.data.dataset import Dataset

NEEDS = ("images", "image_labels", "masks")


def list_digest(dataset: Dataset, list_name: str | None, reads: Iterable[str]) -> str:
    """Digest (32 hex digits) of the names of a list and of the content of what is read of it.

    Args:
        list_name: a list; None stands for the images of all lists.
        reads: any of "images", "image_labels", "masks".

    Raises:
        DataError: the list does not exist, or files or labels that are read are missing (all named).
    """
    needs = set(reads)
    content = {
        "classes": dataset.classes,
        "ignore_index": dataset.ignore_index,
        "names": dataset.names(list_name),
        **{need: need_digest(dataset, list_name, need) for need in NEEDS if need in needs},
    }
    return _digest(content)


def need_digest(dataset: Dataset, list_name: str | None, need: str) -> str:
    """Digest of one need of a list: picture files, mask files, or image-level labels and their source."""
    names = dataset.names(list_name)
    if need == "image_labels":
        missing = [name for name in names if name not in dataset.image_labels]
        raise_problems(
            [
                Problem(f"image {name} has no image-level label", f"list {list_name}", "add it to the label file")
                for name in missing
            ],
            f"data set {dataset.name}",
        )
        labels = [[name, [dataset.classes[label] for label in dataset.image_labels[name]]] for name in names]
        return _digest([dataset.label_source, labels])
    if need not in NEEDS:
        raise ValueError(f"a stage can read {', '.join(NEEDS)}; not {need!r}")
    if need == "masks":
        dataset.prepare_masks(list_name)
    paths = {
        name: dataset.image_path(name) if need == "images" else dataset.mask_path(name, list_name) for name in names
    }
    hashes = file_facts(paths.values(), "sha256", sha256_of_file, dataset.cache)
    raise_problems([Problem.of(error) for error in hashes.errors.values()], f"data set {dataset.name}")
    return _digest([[name, hashes.facts[path]] for name, path in paths.items()])


def data_manifest(dataset: Dataset, lists: Iterable[str] | None = None, reads: Iterable[str] = NEEDS) -> dict[str, Any]:
    """Plain values to record beside results: classes, label source, count and digests of each list.

    The test list has no labels and no masks, so that it is digested by its pictures alone.
    """
    entries: dict[str, Any] = {}
    for list_name in lists if lists is not None else dataset.lists:
        needs = [need for need in NEEDS if need in set(reads) and (list_name != "test" or need == "images")]
        entries[list_name] = {
            "images": len(dataset.names(list_name)),
            "digests": {need: need_digest(dataset, list_name, need) for need in needs},
        }
    manifest = {
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "label_provenance": dataset.label_provenance,
        "mask_provenance": dataset.files.mask_provenance,
        "lists": entries,
    }
    # Words may change; what they stand for is in the digests.
    content = {name: value for name, value in manifest.items() if name != "mask_provenance"}
    return {**manifest, "digest": _digest({**content, "label_provenance": dataset.label_source})}


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of an external file, such as weights; DataError when it cannot be read."""
    return sha256_of_file(path)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
