"""Asks the connected Ray by which nodes it can grow: Ray counts only what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import RayError

from wsss.execution.nodes import (
    NODE_TYPES_VARIABLE,
    Cluster,
    NodeType,
    declared_types,
    growing_cluster,
    present_cluster,
    types_of_configuration,
)

HEAD = "node:__internal_head__"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_ASK_SECONDS = 60.0


def current_cluster() -> Cluster:
    """The connected cluster as it stands and as it can become.

    Node types are those that WSSS_NODE_TYPES declares, else those that Ray knows, else those of the configuration that
    its autoscaler reads: the file on the head node, or the groups of a RayCluster of KubeRay.

    Raises:
        NodeTypesError: WSSS_NODE_TYPES can not be read.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    alive = [node["Resources"] for node in nodes]
    declared = os.environ.get(NODE_TYPES_VARIABLE, "")
    if declared:
        return growing_cluster(declared_types(declared), None, alive)
    published = _published_types()
    if published:
        return growing_cluster(published, None, alive)
    config = _configuration(nodes)
    return growing_cluster(*types_of_configuration(config), alive) if config else present_cluster(alive)


def _published_types() -> tuple[NodeType, ...]:
    """Types that a platform which manages Ray has told it; Ray's own autoscaler tells none."""
    from ray._private.state import state

    config = state.get_cluster_config()
    types = [] if config is None else list(config.node_group_configs)
    return tuple(
        NodeType(
            name=each.name,
            cpus=int(each.resources.get("CPU", 0)),
            gpus=int(each.resources.get("GPU", 0)),
            most=each.max_count if each.max_count >= 0 else 1024,
        )
        for each in types
        if each.max_count
    )


def _configuration(nodes: list[dict[str, Any]]) -> Mapping[str, Any] | None:
    """What the autoscaler of this Ray reads, in the words of the cluster launcher; None where there is none."""
    context = ray.get_runtime_context()
    head = [node for node in nodes if HEAD in node["Resources"]]
    if not head or head[0]["NodeID"] == context.get_node_id():
        return autoscaler_configuration(context.gcs_address)
    # The driver is on another machine: a task on the head node looks there. DEFAULT: a trial of a sweep has reserved
    # nothing of the head.
    task = ray.remote(num_cpus=0, resources={HEAD: 0.001}, scheduling_strategy="DEFAULT")(autoscaler_configuration)
    try:
        return ray.get(task.remote(context.gcs_address), timeout=_ASK_SECONDS)
    except RayError:
        return None


def autoscaler_configuration(gcs_address: str) -> Mapping[str, Any] | None:
    """The configuration of the autoscaler that serves a Ray, looked for on this machine."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode(errors="replace").split("\0")
            options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
            if options.get("gcs-address") != gcs_address or not options.get("autoscaling-config"):
                continue
            config = yaml.safe_load(Path(options["autoscaling-config"]).expanduser().read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):  # the process has ended, or belongs to somebody else
            continue
        if isinstance(config, dict) and "available_node_types" in config and "head_node_type" in config:
            return config
    return _groups_of_kuberay()


def _groups_of_kuberay() -> Mapping[str, Any] | None:
    """The RayCluster of this pod, asked of Kubernetes with the rights that KubeRay gives a head that scales."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not _NAMESPACE_FILE.is_file():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    try:
        return AutoscalingConfigProducer(name, namespace)()
    except Exception:  # no rights, or not the head of an autoscaling cluster
        return None
