"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fiat_ray.planning import SAMPLED
from fiat_ray.task import SPLITS
from fiat_ray.text import by_language, count, line, size_of

UNKNOWN = "the mean of those stored, or as reasoner.max_tokens"


def describe(planned: Mapping[str, Any]) -> str:
    """A plan as text, at most ``text.WIDTH`` columns wide but for long paths."""
    lines = [said for name, task in planned["tasks"].items() for said in (*_describe_task(name, task, planned["models"]), "")]
    lines += _describe_trials(planned)
    lines += ["", describe_time(planned["time"])]
    lines += [*map(_describe_disk, planned["disk"]), *_describe_memory(planned["memory"])]
    return "\n".join([*lines, *(line("note", note) for note in planned["notes"])])


def describe_time(time: Mapping[str, Any]) -> str:
    """Time and cost, as ``costs.estimate`` gives them, with the speeds they were worked out from."""
    if time["seconds"] is None:
        return line("time", time["note"])
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in time["parts"].items() if seconds)
    lines = [line("time", f"roughly {_duration(time['seconds'])}: {parts}" if parts else "nothing is left to do"), line("", time["note"])]
    if time["gpu_hours"] is not None:
        price = "no price of a GPU hour is stated (where.gpu_hour_price)" if time["cost"] is None else f"{time['cost']:,.2f} by where.gpu_hour_price"
        lines.append(line("cost", f"{time['gpu_hours']:,.1f} GPU hours, shared out where there are several GPUs; {price}"))
    return "\n".join(lines)


def _describe_task(name: str, task: Mapping[str, Any], of_models: Mapping[str, Any]) -> Iterable[str]:
    yield f"{name} ({task['metric']}), {count(len(task['languages']), 'language')}"
    for split in SPLITS:
        yield line(split, f"{count(sum(task['rows'][split].values()), 'row')}: {by_language(task['rows'][split])}")
    if task["removed"]:
        yield line("removed", f"{count(len(task['removed']), 'row')} of train or validation, also in a later split")
    cut = f"{count(sum(task['cut'].values()), 'passage')} cut to fit: {by_language(task['cut'])}" if task["cut"] else "no passage is cut"
    gold = {language: rows for language, rows in task["gold_cut"].items() if rows}
    yield line("length", cut + (f"; {sum(gold.values()):,} of them lost their gold answer: {by_language(gold)}" if gold else ""))
    yield from _describe_length(task)
    if not task["reasoner"]:
        return
    fewer = {x: shown for x, shown in task["exemplars"].items() if shown < task["exemplars_most"][x]}
    most = max(task["exemplars_most"].values())
    yield line("exemplars", f"fewer than {most} fit in {by_language(fewer)}" if fewer else f"{most} in every prompt")
    yield from _describe_reasoner(task["reasoner"], of_models.get("reasoner"))


def _describe_length(task: Mapping[str, Any]) -> Iterable[str]:
    """What prompts are made of: a line for each checkpoint, and a table of languages, in tokens of the first of them."""
    roles = dict.fromkeys(part["role"] for part in task["length"])
    for role in roles:
        parts = [part for part in task["length"] if part["role"] == role]
        longest, low, high = max(parts, key=lambda part: part["most"]), *(of(part["exemplars"] for part in parts) for of in (min, max))
        exemplars = f" + {low:,}{f' to {high:,}' if high > low else ''} exemplars" if high else ""
        mean = sum(part["input_mean"] * part["rows"] for part in parts) / sum(part["rows"] for part in parts)
        row = f"a row's {mean:,.0f} (most {max(part['input_max'] for part in parts):,})"
        fixed = f"{longest['instructions']:,} instructions and template{exemplars} + {row} + {longest['reserved']:,} kept for output"
        yield line("tokens", f"{role}: {fixed}: at most {longest['most']:,} ({longest['language']}) of {longest['max_length']:,}")
    if not roles:
        return
    heads = [f"{role.removeprefix('tunables.'):.14}" for role in roles]
    yield f"  language    rows  exemplars    a row   most   cut  gold cut   longest, with output: {'  '.join(f'{head:>8}' for head in heads)}"
    for language in task["languages"]:
        first, *others = (part for part in task["length"] if part["language"] == language)
        most = "  ".join(f"{part['most']:>{max(8, len(head))},}" for part, head in zip((first, *others), heads, strict=True))
        yield (
            f"  {language:<8.8}  {first['rows']:>6,}  {first['exemplars']:>9,}  {first['input_mean']:>7,.0f}  {first['input_max']:>5,}"
            f"  {task['cut'].get(language, 0):>4,}  {task['gold_cut'].get(language, 0):>8,}  {'':>22}{most}"
        )


def _describe_disk(found: Mapping[str, Any]) -> str:
    needed = sum(found["needed"].values())
    parts = ", ".join(f"{what} {size_of(size)}" for what, size in found["needed"].items())
    short = "" if needed <= found["free"] else "TOO LITTLE: "
    return line(
        "disk", f"{short}{size_of(found['free'])} free for {found['folder']}; needed at most {size_of(needed)}" + (f": {parts}" if parts else "")
    )


def _describe_memory(needed: Mapping[str, int]) -> Iterable[str]:
    if needed:
        parts = ", ".join(f"{what} {size_of(size)}" for what, size in needed.items())
        yield line("memory", f"at least, of a GPU's or else a machine's: {parts}")


def _describe_reasoner(asked: Mapping[str, Any], model: Mapping[str, Any] | None) -> Iterable[str]:
    remote = asked["estimated_by"] is not None
    who = f"{model['name']}{'' if remote else ', ' + _parameters(model)}" if model else "a script"
    missing = asked["missing"]
    yield line("reasoner", f"{who}: {count(asked['prompts'], 'distinct prompt')}, {asked['stored']:,} stored, {missing['prompts']:,} to generate")
    if not model:
        return
    for what, part in (("in all", asked["all"]), *([("to generate", missing)] if asked["stored"] and missing["prompts"] else [])):
        tokens_in = f"{part['tokens_in']:,} tokens in ({part['tokens_in_prefix_once']:,} with each shared beginning counted once)"
        estimate = part["tokens_out_estimate"]
        by_store = "" if estimate is None else f" (about {estimate:,} by the mean of those stored, {asked['output_tokens_mean']:.0f})"
        yield line("", f"{what}: {tokens_in}, at most {part['tokens_out_most']:,} out{by_store}")
    if remote:
        price = "" if asked["charged"] is None else f"; to generate costs {asked['charged']:,.2f} by price_in and price_out, without discounts"
        yield line("", f"an estimate, by the tokenizer of {asked['estimated_by']} (reasoner.tokenizer): the endpoint counts by its own{price}")
        yield line("", "how fast it answers is not known: the time below is without it")


def _describe_trials(planned: Mapping[str, Any]) -> Iterable[str]:
    trials = planned["trials"]
    tokens = f", {sum(t['tokens'] for t in trials):,} tokens trained on" if trials else ""
    untuned = f"; without tuning: {', '.join(planned['untuned'])}" if planned["untuned"] else ""
    yield f"{count(sum(len(t['seeds']) for t in trials), 'trial')}{tokens}{untuned}"
    if trials:
        wide = min(32, max(len(t["method"]) for t in trials))
        yield f"  {'method':<{wide}}  {'tunable':<8}    rows  seeds  done  rates  steps  tokens    max     trained on"
        for t in trials:
            yield (
                f"  {t['method']:<{wide}.{wide}}  {t['tunable']:<8.8}  {t['train_size']:>6,}  {len(t['seeds']):>5}  {t['evaluated']:>4}"
                f"  {t['learning_rates']:>5}  {t['steps']:>5}  {t['tokens_mean']:>6,.0f}  {t['tokens_max']:>5,}  {t['tokens']:>13,}"
            )
        yield line("", f"tokens: prompt and target of a row, mean of at most {SAMPLED}; a rationale not stored yet counts as {UNKNOWN}")
        yield line("", "trained on: tokens × rows × epochs × learning rates × seeds; done: trials that are tuned and evaluated")
        cut = {f"{t['task']}, {t['method']}, {t['tunable']}": (t["rationales_cut"], t["rationales_sampled"]) for t in trials if t["rationales_cut"]}
        for who, (some, sampled) in cut.items():
            said = f"{some:,} of {count(sampled, 'stored rationale')} sampled would be cut: too long in the tunable's own tokens"
            yield line("rationales", f"{who}: {said}")
    for missing in planned["not_run"]:
        where = f"{missing['method']} on {missing['task']} ({missing['tunable']})"
        yield line("not run", f"{where}: {missing['reason']}; config key {missing['config_key']}")


def _parameters(model: Mapping[str, Any]) -> str:
    active = "" if model["active_parameters"] == model["parameters"] else f", {_size(model['active_parameters'])} of them active"
    return f"{_size(model['parameters'])} parameters{active}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _duration(seconds: float) -> str:
    """Two figures at most: it is an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
