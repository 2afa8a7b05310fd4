"""FIAT on Ray: in-context learning with a big model fused with tuning a small one (Wang, Wieting, Clark 2023).

``import fiat_ray as fiat``; names below load on first use, because Ray, vLLM and torch take seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiat_ray.config import Config
    from fiat_ray.config import load as load_config
    from fiat_ray.errors import Unfinished, UserError
    from fiat_ray.planning import plan
    from fiat_ray.recipe import Recipe
    from fiat_ray.runs import Run, open_run, run
    from fiat_ray.scoring import score_file as score
    from fiat_ray.task import Task

_HOMES = {
    "Config": ("config", "Config"),
    "load_config": ("config", "load"),
    "Recipe": ("recipe", "Recipe"),
    "Run": ("runs", "Run"),
    "Task": ("task", "Task"),
    "Unfinished": ("errors", "Unfinished"),
    "UserError": ("errors", "UserError"),
    "open_run": ("runs", "open_run"),
    "plan": ("planning", "plan"),
    "run": ("runs", "run"),
    "score": ("scoring", "score_file"),
}

__all__ = ["Config", "Recipe", "Run", "Task", "Unfinished", "UserError", "load_config", "open_run", "plan", "run", "score"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fiat_ray' has no attribute '{name}'")
    from importlib import import_module

    module, attribute = _HOMES[name]
    value = getattr(import_module(f"fiat_ray.{module}"), attribute)
    globals()[name] = value
    return value
