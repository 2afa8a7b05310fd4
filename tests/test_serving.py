"""Both models of an exported trial behind stock vLLM servers, asked by the code that docs/guide.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import vllm_server
from test_overfit import memory_task, settings

from fiat_ray import runs
from fiat_ray.progress import Console

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_servers_of_both_models_answer_as_infer_does(tiny: Path, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = {"model": str(tiny), "max_tokens": 24, "max_length": 512, "dtype": "float32"}
    config = settings(tmp_path, tiny, task="memory", methods=["fiat"], steps=20, reasoner=reasoner)
    run, outcome = runs.run_config(config, tmp_path / "run", tasks={"memory": memory_task()}, stages=("reason", "tune"), console=Console(quiet=True))
    assert not outcome.failed and not outcome.broken_off
    rows = [{**row.fields, "language": row.language} for row in memory_task().split("test")[:6]]
    expected = run.infer(rows)
    exported = run.export(tmp_path / "exported")

    [code] = re.findall(r"```python\n(import json.+?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    with vllm_server.serving(tiny, tmp_path / "reasoner.log") as asked, vllm_server.serving(exported / "model", tmp_path / "tunable.log") as tuned:
        for port, url in (("8001", asked), ("8002", tuned)):
            code = code.replace(f"http://localhost:{port}", url.removesuffix("/v1"))
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(compile(code, str(GUIDE), "exec"), names)
        answers = [names["answer"](row, row["language"]) for row in rows]
        rationales = [names["ask"](names["REASONER"], names["requests"]["reasoner"][row["language"]], row) for row in rows]
    assert rationales == [answer["rationale"] for answer in expected] and len(set(rationales)) > 1
    assert answers == [answer["prediction"] for answer in expected] and len(set(answers)) > 1
