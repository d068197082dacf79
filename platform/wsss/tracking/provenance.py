"""Where a number comes from: the code, the machine, the libraries and the job. Cheap, and never a reason to fail."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "ray", "mlflow", "optuna", "pydensecrf2", "pillow")
_CODE = Path(__file__).resolve().parent
COMMIT_VARIABLE = "WSSS_GIT_COMMIT"
_TIMEOUT_SECONDS = 5.0
# `ray job submit` starts the driver with its job config in this variable (Ray 2.60, job_supervisor); the submission
# id is in its metadata. Ray offers no plainer variable.
_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class Provenance:
    """Facts of one process.

    Attributes:
        git_commit: full commit hash, "" outside a repository.
        git_dirty: tracked files differ from the commit; None when unknown.
        machine: see `machine_facts`.
        libraries: distribution name -> version, for those installed, and python.
        ray_job_id: id given by `ray job submit`, "" otherwise.
    """

    git_commit: str
    git_dirty: bool | None
    machine: Mapping[str, Any]
    libraries: Mapping[str, str]
    ray_job_id: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def tags(self) -> dict[str, str]:
        """The tags of a tracked run: git_commit (with "-dirty"), machine, ray_job_id when there is one."""
        commit = self.git_commit + ("-dirty" if self.git_commit and self.git_dirty else "")
        gpus = ", ".join(self.machine["gpus"]) or "no GPU"
        machine = f"{self.machine['cpu']}, {self.machine['cores']} cores, {self.machine['memory_gib']} GiB, {gpus}"
        tags = {"git_commit": commit or "unknown", "machine": machine}
        return tags | ({"ray_job_id": self.ray_job_id} if self.ray_job_id else {})


def commit_in_words(code: Mapping[str, Any]) -> str:
    """The commit of recorded facts (`Provenance.as_dict`), and whether files differ from it."""
    dirty = {True: " with changes that are not committed", None: " (changes unknown)"}.get(code.get("git_dirty"), "")
    return f"{code['git_commit']}{dirty}" if code.get("git_commit") else "unknown (not a git checkout)"


def machine_in_words(code: Mapping[str, Any]) -> str:
    """Host name, CPU, cores and GPUs of recorded facts (`Provenance.as_dict`)."""
    machine = code.get("machine", {})
    gpus = ", ".join(machine.get("gpus", ())) or "no GPU"
    parts = [machine.get("hostname", "unknown"), machine.get("cpu", ""), f"{machine.get('cores', '?')} cores", gpus]
    return ", ".join(part for part in parts if part)


def collect_provenance(code: Path = _CODE) -> Provenance:
    """Facts of this process and of the repository around the folder `code`; what cannot be found is left empty."""
    return Provenance(*git_state(code), machine_facts(), library_versions(_LIBRARIES), ray_job_id())


def git_state(folder: Path) -> tuple[str, bool | None]:
    """(commit, dirty) of the repository around `folder`; outside one (WSSS_GIT_COMMIT or "", None).

    A submitted job and an image hold the code without its repository: whoever starts them says the commit.
    """
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if not commit:
        return os.environ.get(COMMIT_VARIABLE, ""), None
    # --no-optional-locks: reading the state must not take the index lock from someone who commits.
    status = _output(["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return commit, None if status is None else bool(status)


def machine_facts() -> dict[str, Any]:
    """hostname, system, cpu, cores, memory_gib, gpus (one text per GPU: name, memory, driver)."""
    return {
        "hostname": platform.node(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions from the installed metadata (nothing is imported); missing libraries are left out."""
    versions = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def ray_job_id(environment: Mapping[str, str] = os.environ) -> str:
    """The submission id ("raysubmit_...") from the environment, "" when the process is no submitted Ray job."""
    return str((ray_job_config(environment).get("metadata") or {}).get("job_submission_id", ""))


def ray_job_config(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The job config of a submitted Ray job, empty in other processes."""
    try:
        config = json.loads(environment.get(_JOB_CONFIG_VARIABLE, "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> float:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0.0
    return round(size / 2**30, 1)


def _gpus() -> list[str]:
    # nvidia-smi instead of torch: a driver process must not open a CUDA context just to name the card.
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    listing = _output(["nvidia-smi", query, "--format=csv,noheader"]) or ""
    return [line.strip() for line in listing.splitlines() if line.strip()]


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
