"""What tests share: the environment, set before anything that reads it is imported; tiny checkpoints; real rows; a local Ray."""

from __future__ import annotations

import os

os.environ |= {
    "OMP_NUM_THREADS": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "RAY_worker_niceness": "0",
    # For the S3 server of the tests, which takes any; here, because Ray's workers get them from the process that starts Ray.
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import tiny_model  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("busy machines", deadline=None)
settings.load_profile("busy machines")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny instruction-tuned checkpoint."""
    return tiny_model.write(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture(scope="session")
def tiny_pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its twin without a chat template, and with other weights."""
    return tiny_model.write(tmp_path_factory.mktemp("tiny") / "pretrained", seed=1, chat=False)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real rows, which are no part of the repository."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("FIAT_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real rows in {folder}; set FIAT_DATA")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs in this process, for all tests that need one."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
