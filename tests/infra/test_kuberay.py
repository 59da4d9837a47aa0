"""The manifests of Kubernetes: their schemas, and what Ray's own autoscaler makes of them."""

import json
import shlex
from collections.abc import Iterator
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay import autoscaling_config
from referencing import Registry, Resource

from flows.cli import parser
from tests.infra.files import image_environment, pins, read_yaml

KUBERNETES = "kubernetes-json-schema/v1.34.0-local-strict/_definitions.json"
KUBERAY = Path(__file__).parent / "schemas" / "kuberay.json"


@pytest.fixture(scope="module")
def cluster() -> Any:
    return read_yaml("kuberay/raycluster.yaml")


@pytest.fixture(scope="module")
def job() -> Any:
    return read_yaml("kuberay/rayjob-train.yaml")


@pytest.fixture(scope="module")
def registry() -> Any:
    ours = Resource.from_contents(json.loads(KUBERAY.read_text("utf-8")))
    theirs = Resource.from_contents(json.loads(files("kubernetes_validate").joinpath(KUBERNETES).read_text("utf-8")))
    return Registry().with_resources([(str(each.id()), each) for each in (ours, theirs)])


def wrong(manifest: Any, registry: Any) -> list[str]:
    """Where a manifest is not as its schema wants it."""
    reference = {"$ref": f"https://msrrn.invalid/kuberay.json#/$defs/{manifest['kind']}"}
    return [error.json_path for error in Draft202012Validator(reference, registry=registry).iter_errors(manifest)]


def pods(cluster: Any, job: Any) -> Iterator[tuple[str, Any]]:
    yield "head", cluster["spec"]["headGroupSpec"]["template"]["spec"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]


def test_manifests_are_as_kuberay_and_kubernetes_want_them(cluster: Any, job: Any, registry: Any) -> None:
    assert wrong(cluster, registry) == []
    assert wrong(job, registry) == []


def test_what_is_misspelt_is_found_at_any_depth(cluster: Any, job: Any, registry: Any) -> None:
    broken = deepcopy(cluster)
    broken["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resource"] = {}
    broken["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    broken["spec"]["autoscalingOptions"] = {}
    assert len(wrong(broken, registry)) == 3
    assert wrong({**job, "spec": {**job["spec"], "shutdownAfterJobFinishes": True}}, registry)


def test_ray_is_the_version_of_the_constraints(cluster: Any) -> None:
    assert cluster["spec"]["rayVersion"] == pins()["ray"]


def test_gpus_are_there_only_while_something_asks_for_them(cluster: Any, job: Any) -> None:
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(
        {**cluster, "metadata": {"name": "msrrn", "namespace": "faces"}}
    )
    types = config["available_node_types"]
    gpu = types["gpu"]
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    assert gpu["max_workers"] > 1
    assert types["headgroup"]["resources"]["CPU"] == 0
    # What the job's driver asks for brings up a GPU worker, and leaves its GPU to the training.
    asked = json.loads(job["spec"]["entrypointResources"])
    able = [
        name for name, kind in types.items() if all(kind["resources"].get(key, 0) >= n for key, n in asked.items())
    ]
    assert able == ["gpu"]
    assert "GPU" not in asked
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_the_jobs_command_is_one_that_msrrn_takes(job: Any) -> None:
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "msrrn"
    call = parser().parse_args(arguments)
    assert call.dataset.startswith("s3://")


def test_pods_run_as_a_normal_user_with_a_root_that_nothing_writes_to(cluster: Any, job: Any) -> None:
    for name, pod in pods(cluster, job):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 1000, name
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"]), name
        for container in pod["containers"]:
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True, name
            assert confined["allowPrivilegeEscalation"] is False, name
            assert confined["capabilities"] == {"drop": ["ALL"]}, name
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounted >= ({"/tmp"} if name == "submitter" else {"/tmp", image_environment()["HOME"]}), name
            assert {mount["name"] for mount in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
            assert "env" not in container, "secrets come from the Secret alone"
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] != cluster["metadata"]["name"], "that one is KubeRay's own"
