"""The cluster files, checked without any cloud."""

from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


def load(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def test_aws_description_is_valid_for_the_launcher() -> None:
    config = prepare_config(load("aws.yaml")[0])
    validate_config(config)
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and head["max_workers"] == 0
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers), (
        "the cluster can not shrink to nothing"
    )
    assert sum(node["max_workers"] for node in workers) <= config["max_workers"]
    assert {bool(node["resources"].get("GPU")) for node in workers} == {True, False}
    assert any("--num-cpus=0" in command for command in config["head_start_ray_commands"])


def test_authentication_is_explicit_everywhere() -> None:
    assert "--env=RAY_AUTH_MODE=token" in load("aws.yaml")[0]["docker"]["run_options"]
    assert load("kuberay.yaml")[0]["spec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in text_of("Dockerfile")
    assert "RAY_AUTH_MODE=token" in text_of("README.md")


def test_kuberay_description_scales_and_its_job_finds_the_cluster() -> None:
    cluster, job = load("kuberay.yaml")
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    assert cluster["apiVersion"] == job["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert group["rayStartParams"]["num-cpus"] == container["resources"]["limits"]["cpu"]
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["nvidia.com/gpu"] == groups["gpu"]["rayStartParams"]["num-gpus"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert {"WSSS_AUTOSCALING", "WSSS_HOME", "WSSS_STORE"} <= set(environment)


def test_job_environment_holds_no_credentials() -> None:
    (environment,) = load("runtime_env.yaml")
    assert {"WSSS_AUTOSCALING", "WSSS_HOME", "WSSS_STORE"} <= set(environment["env_vars"])
    assert not [name for name in environment["env_vars"] if name.startswith("AWS_")]
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
    assert "/.wsss/" in environment["excludes"]


def test_one_version_of_ray_and_one_image_everywhere() -> None:
    import ray

    assert f"FROM rayproject/ray:{ray.__version__}-py311" in text_of("Dockerfile")
    assert load("kuberay.yaml")[0]["spec"]["rayVersion"] == ray.__version__
    image = load("aws.yaml")[0]["docker"]["image"]
    assert text_of("kuberay.yaml").count(f"image: {image}\n") == 3
    assert image in text_of("tracking_server.yaml") and image in text_of("README.md")


def test_tracking_server_names_its_database_driver_and_its_hosts() -> None:
    (compose,) = load("tracking_server.yaml")
    command = compose["services"]["mlflow"]["command"]
    assert command[command.index("--backend-store-uri") + 1].startswith("postgresql+psycopg2://")
    assert "--allowed-hosts" in command and "--artifacts-destination" in command
    assert compose["services"]["mlflow"]["ports"] == ["${WSSS_TRACKING_BIND:-127.0.0.1}:5000:5000"]
