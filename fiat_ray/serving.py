"""An exported trial behind servers of its two models: the requests to send them, with ``{field}`` where a row's fields belong."""

from __future__ import annotations

from typing import Any

from fiat_ray.campaign import Trial
from fiat_ray.config import Config
from fiat_ray.render import CHAT_OPTIONS, Prompt, Renderer, chat_messages, reasoner_turns
from fiat_ray.run_folder import RunFolder
from fiat_ray.task import Task, template_fields

Request = dict[str, Any]
"""The body of a POST to ``/v1/chat/completions``, or ``/v1/completions`` where it holds a ``prompt``."""

GREEDY = {"temperature": 0}


def reasoner_requests(run: RunFolder, config: Config, task: Task) -> dict[str, Request]:
    """Language → what its rows are asked with: instructions, worked examples and the row, as they were reasoned about. None of a script."""
    if config.reasoner.kind == "scripted":
        return {}
    asked = GREEDY | {"max_tokens": config.reasoner.max_tokens} | ({"stop": config.reasoner.stop} if config.reasoner.stop else {})
    options = {} if config.reasoner.is_remote else {"chat_template_kwargs": CHAT_OPTIONS}
    return {
        language: {"messages": chat_messages(reasoner_turns(task, shown, _slots(task), language, config.exemplars)), **options, **asked}
        for language, shown in run.exemplars_shown(task.name).items()
    }


def tunable_request(task: Task, trial: Trial, renderer: Renderer) -> Request:
    """What the tunable reads, as it was tuned and scored; ``{rationale}`` is for the reasoner's reply."""
    content = text_of(renderer.tunable_prompt(task, _slots(task), "{rationale}", trial.recipe))
    asked = GREEDY | {"max_tokens": trial.answer_tokens}
    if not renderer.chat:
        return {"prompt": content + renderer.reply, **asked}
    template = str(renderer.tokenizer.chat_template)
    options = {name: value for name, value in CHAT_OPTIONS.items() if name in template}
    return {"messages": [{"role": "user", "content": content}]} | ({"chat_template_kwargs": options} if options else {}) | asked


def text_of(prompt: Prompt) -> str:
    """A prompt's content, which a server puts its own chat template around."""
    return "".join(piece.text for piece in prompt.pieces if piece.kind != "structure")


def _slots(task: Task) -> str:
    """The row's text with its fields' names in braces."""
    return task.text({name: f"{{{name}}}" for name in template_fields(task.input)})
