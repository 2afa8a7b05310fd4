"""The model card of an exported trial: how to ask the model, what it scores, what it was made of. It shows no row of anybody's data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from fiat_ray import models
from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.errors import UserError
from fiat_ray.predict import shown_rationales
from fiat_ray.recipe import plain_title
from fiat_ray.render import CHAT_OPTIONS, DATE, Renderer
from fiat_ray.report.cells import language_tag
from fiat_ray.runs import Run
from fiat_ray.serving import text_of, tunable_request
from fiat_ray.task import Task

MOST_COMPARED = 500
"""Validation rows whose prompts are compared with a server's."""

PART = {"whole": "what", "without_answer": "all but the last line, the answer, of what", "answer_only": "the answer in what"}
"""Of a rationale, by ``Recipe.rationale``."""


def write(run: Run, config: Config, record: Mapping[str, Any], trial: Trial, base_name: models.PublicName, renderer: Renderer) -> str:
    """Markdown with the header that model hubs read. ``record``: the trial's ``trial.json``; ``renderer``: of its prompts."""
    task, manifest = run.folder.load_task(trial.task), run.folder.read_manifest()
    base = models.EMBEDDED_FROM if trial.model == models.EMBEDDED else base_name.name
    described = manifest["tasks"][task.name]
    parts = [
        header(base, described["languages"]),
        f"{title(trial.method, base, task.name)}\n",
        _what_is_here(trial, base_name),
        _how_to_ask(run, config, task, trial, renderer),
        f"## Scores\n\nOn test, 0–100; learning rate and step were chosen on validation.\n\n{_scores(run, trial)}",
        f"## Data\n\n{_data(described)}",
        f"## Recipe\n\n{_recipe(config, manifest, record, trial, base_name.commit)}",
        "## Licence\n\nThe base model's licence applies to these weights, and so may that of the rows they were tuned on.",
    ]
    return "\n\n".join(part.strip("\n") if part is not parts[0] else part.rstrip("\n") for part in parts) + "\n"


def header(base: str, languages: Iterable[str]) -> str:
    """What hubs read: of the languages those that have tags, and no key where none has."""
    tags = list(dict.fromkeys(filter(None, map(language_tag, languages))))
    head = {"base_model": base, "library_name": "transformers", **({"language": tags} if tags else {}), "tags": ["fiat"]}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"


def title(method: str, base: str, task: str) -> str:
    said = plain_title(method)
    return f"# {said[0].upper()}{said[1:]}: {base} tuned on {task}"


def _what_is_here(trial: Trial, base_name: models.PublicName) -> str:
    parts = ["`model/` is the whole model, for transformers and `vllm serve model`."]
    if trial.recipe.peft:
        parts.append("`adapter/` is the same as a LoRA adapter, for PEFT on the base model in float32 (in bfloat16 its sum loses part of it).")
    if trial.model == models.EMBEDDED:
        parts.append("The base is the embedded model, a copy of its original in 4 bits, whose folder `fiat_ray.models.find('embedded')` gives.")
    elif trial.recipe.peft and not base_name.commit:
        parts.append(f"The base is a local model called `{base_name.name}`, known by its sha256 under Recipe; load it before PEFT adds the adapter.")
    return " ".join(parts)


def _reasoner(config: Config) -> str:
    """Its name. A script's path and an endpoint's address are nobody else's business, and an endpoint may call its model by a path."""
    if config.reasoner.kind == "scripted":
        return "a script of the run"
    return "@".join(filter(None, models.public_name(config.reasoner.model)))


def _how_to_ask(run: Run, config: Config, task: Task, trial: Trial, renderer: Renderer) -> str:
    request = tunable_request(task, trial, renderer)
    lines = [
        "## How to ask it",
        f"A request to `/v1/{'chat/' if renderer.chat else ''}completions`, in the words that the model was tuned and scored with:",
        f"```json\n{json.dumps(request, ensure_ascii=False, indent=1)}\n```",
    ]
    if trial.recipe.cot == "augmented":
        asked = "" if config.reasoner.kind == "scripted" else "`requests.json` holds the request that gets it, by the row's language. "
        lines.append(
            f"`{{rationale}}` is {PART[trial.recipe.rationale]} the reasoner, {_reasoner(config)}, says of the row, at most {trial.rationale_tokens} "
            "of this model's tokens; the model was tuned and scored with it, and with an empty one where the reasoner gave none. "
            f"{asked}`fiat-ray infer` asks both models."
        )
    if renderer.dated:
        lines.append(f"The chat template asks for today's date; the model was tuned and scored with {DATE:%d %b %Y}, and a server writes another.")
    if task.labels:
        labels = ", ".join(f"`{label}`" for label in task.labels)
        lines.append(
            f"The answer is one of {labels}. Scores are of the label that is most probable after the prompt, which greedy decoding mostly gives."
        )
    same, compared = _agreement(run, task, trial, renderer)
    lines.append(
        "Servers tokenize a text as a whole, the model was tuned on its parts, so line breaks between them may be other tokens, and some answers "
        f"others than were scored: the tokens of {same} of {compared} validation rows are the same both ways. "
        "`fiat-ray infer` sends them as tuned, and so does whoever gives `/v1/completions` a `prompt` of token ids."
    )
    return "\n\n".join(lines)


def _agreement(run: Run, task: Task, trial: Trial, renderer: Renderer) -> tuple[int, int]:
    """(validation rows whose prompt a server would tokenize as training did, validation rows)."""
    try:
        examples = run.folder.examples(trial.task, with_rationales=trial.recipe.cot == "augmented")
    except FileNotFoundError as error:
        raise UserError(f"{run.path}: lacks the rows that its model card describes ({error}); run its config again") from None
    examples = [e for e in examples if e.split == "validation"][:MOST_COMPARED]
    rationales = shown_rationales(task, renderer, trial.recipe, examples, trial.rationale_tokens)
    prompts = [renderer.tunable_prompt(task, e.input, rationales.get(e.id), trial.recipe) for e in examples]
    return sum(_as_a_server_does(renderer, text_of(prompt)) == prompt.ids for prompt in prompts), len(prompts)


def _as_a_server_does(renderer: Renderer, content: str) -> list[int]:
    if not renderer.chat:
        return list(renderer.tokenizer.encode(content + renderer.reply))
    messages = [{"role": "user", "content": content}]
    text = renderer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS)
    return list(renderer.tokenizer.encode(str(text), add_special_tokens=False))


def _scores(run: Run, trial: Trial) -> str:
    found = run.scores
    of = (found.task == trial.task) & (found.method == trial.method) & (found.tunable == trial.tunable) & (found.seed == trial.seed)
    found = found[of & (found.train_size == trial.train_size) & (found.split == "test")]
    if found.empty:
        return "Not scored yet."
    metrics = list(dict.fromkeys(found.metric))
    values = {(language, metric): value for language, metric, value in zip(found.language, found.metric, found.value, strict=True)}
    rows = dict(zip(found.language, found.n, strict=True))
    return _table(
        ["language", *metrics, "rows"], [[name, *(_number(values.get((name, metric))) for metric in metrics), str(rows[name])] for name in rows]
    )


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.1f}"


def _data(described: Mapping[str, Any]) -> str:
    counts = {split: sum(counted.values()) for split, counted in described["rows"].items()}
    rows = [[split, str(count), str(described.get("groups", {}).get(split, "–"))] for split, count in counts.items() if count]
    return f"{_table(['split', 'rows', 'independent groups'], rows)}\n\nFingerprint of the rows as used: `{described['data']}`."


def _recipe(config: Config, manifest: Mapping[str, Any], record: Mapping[str, Any], trial: Trial, revision: str) -> str:
    lora = {f"LoRA {name}": value for name, value in vars(config.lora).items()} if trial.recipe.peft else {}
    said = {
        "method": trial.method,
        **record["recipe"],
        "base model's commit": revision or "–",
        "base model's content (sha256)": manifest["models"][trial.role]["hash"],
        "seed": trial.seed,
        "training rows": trial.train_size,
        "batch size": config.batch_size,
        "learning rate": f"{record['learning_rate']} (tried: {', '.join(map(str, record['learning_rates_tried']))})",
        "step": f"{record['step']} of {record['steps']}",
        f"{record['selection_metric']} on validation": _number(record["selection_value"]),
        **lora,
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()) or "–",
    }
    return _table(["what", "value"], [[name, str(value)] for name, value in said.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
