"""The Kubernetes file against the real schemas: pods and ConfigMap as Kubernetes has them, the rest as KubeRay has it.

KubeRay's fields are those of its custom resource definitions (`helm-chart/kuberay-operator/crds`, with `authOptions`,
which came with 1.5.1): names, types, required fields and choices of all that is no pod.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "cluster" / "kuberay.yaml"
KUBERNETES = ("1.29", "1.31", "1.33")
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
ANY = {"type": "object"}  # of a pod: checked by Kubernetes' own schema


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


SCALE = fields(
    workersToDelete={"type": "array", "items": TEXT}, multihostReplicasToDelete={"type": "array", "items": TEXT}
)
CLUSTER = fields(
    "headGroupSpec",
    authOptions=fields(mode={"enum": ["disabled", "token"]}, enableK8sTokenAuth=FLAG),
    autoscalerOptions=fields(
        env={"type": "array"},
        envFrom={"type": "array"},
        idleTimeoutSeconds=NUMBER,
        image=TEXT,
        imagePullPolicy=TEXT,
        resources=ANY,
        securityContext=ANY,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        volumeMounts={"type": "array"},
    ),
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANY,
    headGroupSpec=fields(
        "rayStartParams template",
        enableIngress=FLAG,
        headService=ANY,
        rayStartParams=TEXTS,
        serviceType=TEXT,
        template=ANY,
    ),
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    rayVersion=TEXT,
    suspend=FLAG,
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName maxReplicas minReplicas rayStartParams template",
            groupName=TEXT,
            idleTimeoutSeconds=NUMBER,
            maxReplicas=NUMBER,
            minReplicas=NUMBER,
            numOfHosts=NUMBER,
            rayStartParams=TEXTS,
            replicas=NUMBER,
            scaleStrategy=SCALE,
            suspend=FLAG,
            template=ANY,
        ),
    },
)
JOB = fields(
    activeDeadlineSeconds=NUMBER,
    backoffLimit=NUMBER,
    clusterSelector=TEXTS,
    deletionStrategy=ANY,
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    jobId=TEXT,
    managedBy=TEXT,
    metadata=TEXTS,
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=TEXT,
    shutdownAfterJobFinishes=FLAG,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    submitterConfig=fields(backoffLimit=NUMBER),
    submitterPodTemplate=ANY,
    suspend=FLAG,
    ttlSecondsAfterFinished=NUMBER,
)


def documents() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))}


def check(found: dict[str, dict[str, Any]], version: str) -> None:
    """Raises the validators' errors."""
    cluster, job = found["RayCluster"], found["RayJob"]
    for each, spec in ((cluster, CLUSTER), (job, JOB)):
        jsonschema.validate(each, fields("apiVersion kind spec", apiVersion=TEXT, kind=TEXT, metadata=ANY, spec=spec))
    kubernetes_validate.validate(found["ConfigMap"], version, strict=True)
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(template, version, strict=True)
    resources = cluster["spec"]["autoscalerOptions"]["resources"]
    autoscaler = {"containers": [{"name": "autoscaler", "resources": resources}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": autoscaler}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_file_fits_the_schemas(version: str) -> None:
    check(documents(), version)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ("spec", "authOptions", "mode"), "tokens"),
        ("RayCluster", ("spec", "enableInTreeAutoscaler"), True),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        ("RayCluster", ("spec", "workerGroupSpecs", 1, "rayStartParams", "num-gpus"), 1),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "envForm"), []),
        ("RayCluster", ("spec", "workerGroupSpecs", 1, "template", "spec", "volumes", 1, "emptyDir", "medium"), 1),
        ("RayJob", ("spec", "submissionMode"), "Job"),
        ("ConfigMap", ("data", "WSSS_HOME"), 1),
    ],
)
def test_a_mistake_in_it_is_found(kind: str, path: tuple[str | int, ...], value: object) -> None:
    found = copy.deepcopy(documents())
    place: Any = found[kind]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(found, KUBERNETES[-1])
