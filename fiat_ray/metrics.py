"""F1 and exact match of XTREME-UP, chrF, accuracy, macro-F1, AUC-PR, and averages over languages. Pure: texts and numbers in, scores from 0 to 100
out."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import starmap
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fiat_ray.errors import UserError

INDIC = ("as", "bho", "brx", "gbm", "gom", "gu", "hi", "hne", "kn", "mai", "ml", "mni", "mr", "mwr", "or", "pa", "ps", "sa", "ta", "ur")
"""The 20 languages of XORQA-IN: cross-lingual QA, Indic."""
FULL = tuple(sorted((*INDIC, "ar", "bn", "fi", "ja", "ko", "ru", "te")))
NAMED_AVERAGES = {
    "mean_27": FULL,
    "mean_22": tuple(language for language in FULL if language not in ("ar", "fi", "ja", "ko", "ru")),
    "mean_21": tuple(language for language in FULL if language not in ("ar", "fi", "hi", "ja", "ko", "ru")),
}
"""Averages of cross-lingual QA, Full: all languages; those that reproduce the paper's headline best; XTREME-UP's under-represented ones."""

TEXT_METRICS = {"f1": "exact_match", "exact_match": "f1", "chrf": "f1"}
"""Metrics of free text, each with the one that stands beside it. Besides them ``module:function``: see ``load``."""
LABEL_METRICS = {"accuracy": "auc_pr", "auc_pr": "accuracy", "macro_f1": "accuracy"}
"""Metrics of labels, likewise."""

RowScore = Callable[[Sequence[str], str], float]
"""(targets, prediction) → 0 to 100."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower-cased, without ASCII punctuation and English articles, tokens one space apart (XTREME-UP's scorer, after SQuAD's)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1(targets: str | Sequence[str], prediction: str) -> float:
    """F1 of token multisets after ``normalize_answer``, 0 to 1; the best of several targets. No common token is 0, two empty texts too."""
    return max(_f1(target, prediction) for target in _as_list(targets))


def exact_match(targets: str | Sequence[str], prediction: str) -> bool:
    """Whether the prediction equals a target after ``normalize_answer``."""
    return any(normalize_answer(target) == normalize_answer(prediction) for target in _as_list(targets))


def chrf(targets: str | Sequence[str], prediction: str) -> float:
    """chrF2 of one text, 0 to 1: sacrebleu's ``sentence_score`` with its defaults (Popović 2015); the best of several targets."""
    return max(_chrf().sentence_score(prediction, [target]).score for target in _as_list(targets)) / 100


def row_score(metric: str) -> RowScore:
    """What a row's score is under a metric: one of ``TEXT_METRICS``, accuracy, or ``module:function``."""
    own = {"f1": f1, "exact_match": exact_match, "chrf": chrf, "accuracy": _is_first}.get(metric)
    return load(metric) if own is None else lambda targets, prediction: 100.0 * own(targets, prediction)


@lru_cache
def load(name: str) -> RowScore:
    """``module:function``: somebody's own ``function(targets: list[str], prediction: str) -> float``, 0 to 100.

    Python must find the module wherever the run computes: in an installed package, or by ``PYTHONPATH``. Raises ``UserError`` where it can't be
    had; what is returned raises one for a value that is no score.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"metric {name}: {said}; it must be installed, or its folder be in PYTHONPATH, on every machine of the cluster") from None
    if not callable(function):
        raise UserError(f"metric {name}: is no function")

    def score(targets: Sequence[str], prediction: str) -> float:
        try:
            value = float(function(list(targets), prediction))
        except Exception as error:
            raise UserError(f"metric {name}: {type(error).__name__} for {list(targets)!r} and {prediction!r}: {error}"[:500]) from None
        if not 0 <= value <= 100:
            raise UserError(f"metric {name}: {value} for {list(targets)!r} and {prediction!r} is no score from 0 to 100"[:500])
        return value

    return score


def identity(name: str) -> str:
    """What tells a metric from others: its name, and of somebody's own function its module's text."""
    if ":" not in name:
        return name
    load(name)
    module = importlib.import_module(name.partition(":")[0])
    return f"{name} {hashlib.sha256(inspect.getsource(module).encode()).hexdigest()}"


def shown_metrics(metric: str, labels: Sequence[str]) -> tuple[str, str]:
    """A task's metric and the one beside it. AUC-PR stands beside accuracy where there are two labels."""
    beside = {**TEXT_METRICS, **LABEL_METRICS}.get(metric, "f1")
    return metric, "macro_f1" if beside == "auc_pr" and len(labels) > 2 else beside


def selecting_metric(metric: str, labels: Sequence[str]) -> str:
    """The metric that chooses on validation: the task's, but for accuracy of two labels AUC-PR, which moves with every row's probability."""
    return "auc_pr" if metric == "accuracy" and len(labels) == 2 else metric


def scores_positive(metric: str, labels: Sequence[str]) -> bool:
    """Whether a row's score is the probability of the positive label, the last one. Of more than two without `positive:` it is the answer's."""
    return len(labels) == 2 or metric == "auc_pr"


def check_metric(metric: str, labels: Sequence[str], positive: str | None, origin: object) -> None:
    """Raise ``UserError`` where a task can't be scored by it. ``positive``: the label that is named as the positive one, if any."""
    of_labels = metric in LABEL_METRICS
    if not of_labels and metric not in TEXT_METRICS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", metric):
        known = ", ".join((*TEXT_METRICS, *LABEL_METRICS))
        raise UserError(f"{origin}: metric '{metric}' is none of {known}, nor a function of yours (module:function)")
    if of_labels != bool(labels):
        text, label = ", ".join(TEXT_METRICS), ", ".join(LABEL_METRICS)
        raise UserError(f"{origin}: metric {metric} goes {'with' if of_labels else 'without'} labels; free text takes {text}, labels take {label}")
    if positive is not None and positive not in labels:
        raise UserError(f"{origin}: positive: {positive!r} is none of the labels {', '.join(labels) or '(there are none)'}")
    if metric == "auc_pr" and len(labels) > 2 and positive is None:
        raise UserError(f"{origin}: metric auc_pr of {len(labels)} labels is that of one against the others; name it with `positive:`")


def text_scores(targets: Sequence[str | Sequence[str]], predictions: Sequence[str], metric: str = "f1") -> dict[str, float]:
    """``f1``, ``exact_match`` and ``metric`` of one language's rows, 0 to 100: each the mean of its rows'."""
    pairs = [(_as_list(target), prediction) for target, prediction in zip(targets, predictions, strict=True)]
    return {name: fmean(starmap(row_score(name), pairs)) for name in dict.fromkeys(("f1", "exact_match", metric))}


def label_scores(gold: Sequence[str], predicted: Sequence[str], scores: Sequence[float] | None, positive: str) -> dict[str, float | None]:
    """``accuracy`` and ``auc_pr`` of one language's rows, 0 to 100.

    ``scores`` are P(positive) of each row; without them there is no ``auc_pr``. It is None where no gold label is positive.
    """
    result: dict[str, float | None] = {"accuracy": 100 * fmean(g == p for g, p in zip(gold, predicted, strict=True))}
    if scores is not None:
        is_positive = np.array([label == positive for label in gold])
        precision = average_precision(is_positive, np.asarray(scores, float), np.ones((1, len(gold))))
        result["auc_pr"] = 100 * float(precision[0]) if is_positive.any() else None
    return result


def average_precision(positive: NDArray[np.bool_], scores: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Average precision, 0 to 1, of ``n`` ranked rows under each of ``r`` weightings of them; NaN where no weight is on a positive row.

    ``positive`` and ``scores``: (n,); ``weights``: (r, n). Equal scores are one step of the precision-recall curve, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    steps = np.flatnonzero(np.diff(scores[order], append=np.nan))  # the last row of each run of equal scores
    ranked = weights[:, order].astype(float)
    true = np.cumsum(ranked * positive[order], axis=1)[:, steps]
    taken = np.cumsum(ranked, axis=1)[:, steps]
    gained = np.diff(true, axis=1, prepend=0)
    precision = np.divide(true, taken, out=np.zeros_like(true), where=taken > 0)
    total = true[:, -1]
    mean: NDArray[np.float64] = np.divide((gained * precision).sum(axis=1), total, out=np.full_like(total, np.nan), where=total > 0)
    return mean


def macro_f1(gold: Sequence[str], predicted: Sequence[str], weights: NDArray[Any]) -> NDArray[np.float64]:
    """F1 of each label, averaged over the labels that occur in gold or prediction, 0 to 1, under each of ``r`` weightings (r, n) of ``n`` rows.

    As scikit-learn's ``f1_score(average="macro")``; an empty prediction is no label, and counts as wrong. NaN where no row has weight.
    """
    weights = weights.astype(float)
    says, is_gold = np.array(predicted, dtype=str), np.array(gold, dtype=str)
    each = []
    for label in sorted({*gold, *predicted} - {""}):
        said, true = says == label, is_gold == label
        hits, of = weights @ (said & true), weights @ said + weights @ true
        each.append(np.divide(2 * hits, of, out=np.full_like(hits, np.nan), where=of > 0))
    return known_mean(np.stack(each, axis=-1))


def known_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(scores)
    count = known.sum(axis=-1)
    mean: NDArray[np.float64] = np.divide(np.where(known, scores, 0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


def average(per_language: Mapping[str, float | None]) -> float | None:
    """The mean over languages; a language without a score is left out, and no score at all gives None."""
    known = [value for value in per_language.values() if value is not None]
    return fmean(known) if known else None


def averaged_languages(task: str, languages: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The languages of each average of a run in ``languages``: ``mean`` and, for cross-lingual QA beyond Indic, those of ``NAMED_AVERAGES``."""
    languages = tuple(languages)
    is_full = task == "xtreme_up_qa" and not set(FULL).isdisjoint(set(languages) - set(INDIC))
    return {"mean": languages, **(NAMED_AVERAGES if is_full else {})}


def named_averages(task: str, per_language: Mapping[str, float | None]) -> dict[str, tuple[float | None, list[str]]]:
    """Each average of ``averaged_languages``: (its value, those of its languages that the run has no score for)."""
    result = {}
    for name, languages in averaged_languages(task, per_language).items():
        scores = {language: per_language.get(language) for language in languages}
        result[name] = average(scores), [language for language, value in scores.items() if value is None]
    return result


def _as_list(targets: str | Sequence[str]) -> Sequence[str]:
    return [targets] if isinstance(targets, str) else targets


def _is_first(targets: Sequence[str], prediction: str) -> bool:
    return prediction == targets[0]


@lru_cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@lru_cache(maxsize=2**17)  # a report scores the same predictions in many comparisons
def _f1(target: str, prediction: str) -> float:
    gold, said = Counter(normalize_answer(target).split()), Counter(normalize_answer(prediction).split())
    common = (gold & said).total()
    if common == 0:
        return 0.0
    precision, recall = common / said.total(), common / gold.total()
    return 2 * precision * recall / (precision + recall)
