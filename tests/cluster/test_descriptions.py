"""The cluster files, checked without any cloud."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from wsss.execution.nodes import declared_types, types_of_configuration
from wsss.shapes_weights import SHAPES_WEIGHTS, shapes_file

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"


def load(name: str) -> list[Any]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def files() -> list[Path]:
    return [path for path in CLUSTER.iterdir() if path.is_file()]


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


def test_every_machine_of_aws_names_its_image_and_gpu_nodes_have_cuda() -> None:
    config = load("aws.yaml")[0]
    nodes = config["available_node_types"].values()
    assert all(node["node_config"]["ImageId"].startswith("ami-") for node in nodes), "Ray's own has Ubuntu 18.04"
    for node in nodes:
        image = node.get("docker", {}).get("worker_image", config["docker"]["image"])
        assert image.endswith("-gpu" if node["resources"].get("GPU") else "-cpu")
        assert ("--gpus=all" in node.get("docker", {}).get("worker_run_options", ())) is ("GPU" in node["resources"])


def test_authentication_is_explicit_everywhere() -> None:
    assert "--env=RAY_AUTH_MODE=token" in load("aws.yaml")[0]["docker"]["run_options"]
    assert kuberay("RayCluster")["spec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in text_of("Dockerfile")
    assert "RAY_AUTH_MODE=token" in text_of("README.md")


def kuberay(kind: str) -> dict[str, Any]:
    (found,) = [each for each in load("kuberay.yaml") if each["kind"] == kind]
    return found


def test_kuberay_description_scales_and_its_job_finds_the_cluster() -> None:
    cluster, job = kuberay("RayCluster"), kuberay("RayJob")
    assert cluster["apiVersion"] == job["apiVersion"] == "ray.io/v1"
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for name, group in groups.items():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert group["rayStartParams"]["num-cpus"] == container["resources"]["limits"]["cpu"]
        assert container["image"].endswith(f"-{name}")
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert gpu["nvidia.com/gpu"] == groups["gpu"]["rayStartParams"]["num-gpus"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_kuberay_groups_are_what_ray_and_jobs_take_them_for() -> None:
    """The declared node types, Ray's own reading of the groups and the groups are one and the same."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = kuberay("RayCluster")
    cluster["metadata"]["namespace"] = "default"
    types, limit = types_of_configuration(_derive_autoscaling_config_from_ray_cr(cluster))
    assert types == declared_types(kuberay("ConfigMap")["data"]["WSSS_NODE_TYPES"])
    assert limit == sum(each.most for each in types)


def test_every_container_has_the_places_and_the_credentials() -> None:
    cluster = kuberay("RayCluster")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    wanted = [{"configMapRef": {"name": "wsss"}}, {"secretRef": {"name": "wsss-credentials"}}]
    assert all(group["template"]["spec"]["containers"][0]["envFrom"] == wanted for group in groups)
    assert {"WSSS_HOME", "WSSS_STORE", "MLFLOW_TRACKING_URI"} <= set(kuberay("ConfigMap")["data"])
    options = " ".join(load("aws.yaml")[0]["docker"]["run_options"])
    assert "--env=WSSS_HOME=/mnt/wsss" in options and "--env=WSSS_STORE=s3://" in options
    assert "wsss-credentials" in text_of("README.md")


def test_a_job_brings_no_places_and_no_credentials() -> None:
    """The runtime environment is for any cluster, also a reader's own machine."""
    (environment,) = load("runtime_env.yaml")
    assert "env_vars" not in environment and "/.wsss/" in environment["excludes"]
    job = yaml.safe_load(kuberay("RayJob")["spec"]["runtimeEnvYAML"])
    assert set(job) == {"working_dir"}


def test_a_job_brings_what_the_demos_start_from_and_no_other_weights() -> None:
    from ray._private.runtime_env.packaging import _get_excludes

    (environment,) = load("runtime_env.yaml")
    root = CLUSTER.parent
    excluded = _get_excludes(root, environment["excludes"])
    for name in SHAPES_WEIGHTS:
        assert shapes_file(name).is_file() and not excluded(shapes_file(name))
    assert excluded(root / "resnet50.pth") and excluded(root / "platform" / "wsss" / "resnet50.pth")
    assert excluded(root / ".wsss" / "runs")


def test_no_secret_is_committed() -> None:
    secret = re.compile(r"(SECRET|ACCESS_KEY|PASSWORD|TOKEN)[A-Z_]*[=:][ \t]*[\"']?[A-Za-z0-9/+]{8,}")
    for path in files():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if secret.search(line) and "auth_token" not in line] == [], path.name


def test_versions_are_those_of_the_project() -> None:
    import ray

    project = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert kuberay("RayCluster")["spec"]["rayVersion"] == ray.__version__
    assert not re.search(r"(ray|torch|mlflow|optuna)\S*==", text_of("Dockerfile")), "pyproject.toml says them"
    images = re.findall(r"wsss:([\w.]+)-[cg]pu", "".join(text_of(path.name) for path in files()))
    assert len(images) > 8 and set(images) == {project["version"]}


def test_images_hold_code_and_nothing_else() -> None:
    lines = [line for line in text_of("Dockerfile.dockerignore").splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "data, weights and results stay outside, wherever they lie"
    kept = {line[1:] for line in lines[: lines.index("**/*.pth")] if line.startswith("!")}
    assert lines[-1] == "!platform/wsss/shapes_weights/*.pth", "the demos start from these"
    assert kept == {"pyproject.toml", "README.md", "reproduce.py", "tune.py", "search_spaces", "platform", "methods"}
    assert all((CLUSTER.parent / name).exists() for name in kept)


def test_dashboards_listen_where_only_their_machine_reaches_them_or_ask_for_a_token() -> None:
    assert any("--dashboard-host=127.0.0.1" in command for command in load("aws.yaml")[0]["head_start_ray_commands"])
    spec = kuberay("RayCluster")["spec"]
    assert "dashboard-host" in spec["headGroupSpec"]["rayStartParams"] and spec["authOptions"]["mode"] == "token"


def test_tracking_server_names_its_database_driver_and_its_hosts() -> None:
    (compose,) = load("tracking_server.yaml")
    command = compose["services"]["mlflow"]["command"]
    assert command[command.index("--backend-store-uri") + 1].startswith("postgresql+psycopg2://")
    assert "--allowed-hosts" in command and "--artifacts-destination" in command
    assert compose["services"]["mlflow"]["ports"] == ["${WSSS_TRACKING_BIND:-127.0.0.1}:5000:5000"]
