"""The files of cluster/, which nothing here can run: they fit their schema, each other, and what is pinned."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from fiat_ray.arguments import parse

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
PINNED = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text("utf-8"))
    return found


def containers() -> list[dict[str, Any]]:
    """Of all groups of the RayJob, the head's first."""
    cluster = read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def test_ray_up_takes_its_file() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(read("ray-up.yaml"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read("ray-up.yaml") | {"workers": 4}, schema)


def test_versions_are_those_that_are_pinned() -> None:
    assert read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    [installed] = re.findall("pip install .*", read("mlflow-compose.yaml")["services"]["mlflow"]["build"]["dockerfile_inline"])
    assert dict(re.findall(r"([\w-]+)==(\S+)", installed)) == {name: PINNED[name] for name in ("mlflow", "psycopg2-binary")}


def test_every_node_sees_the_data_and_keeps_models_beside_it() -> None:
    for container in containers():
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert container["env"] == [{"name": "HF_HOME", "value": "/shared/hf"}]
    options = " ".join(read("ray-up.yaml")["docker"]["run_options"])
    assert "-v /mnt/shared:/shared" in options and "-e HF_HOME=/shared/hf" in options


def test_gpus_are_asked_for_and_shown_to_the_container() -> None:
    assert sum("nvidia.com/gpu" in container["resources"]["limits"] for container in containers()) == 1
    file = read("ray-up.yaml")
    assert file["available_node_types"]["gpu"]["resources"]["GPU"] == 1 and file["docker"]["worker_run_options"] == ["--gpus=all"]


def test_the_job_is_a_run_of_a_config_that_is_there() -> None:
    [python, script, config, *rest] = shlex.split(read("kuberay-rayjob.yaml")["spec"]["entrypoint"])
    assert python == "python" and all((ROOT / Path(path).relative_to("/fiat-ray")).is_file() for path in (script, config))
    parsed = parse(["run", config, *rest])
    assert parsed.out == "/shared/runs/indic" and "tracking_uri=http://MLFLOW_SERVER:5000" in parsed.override
