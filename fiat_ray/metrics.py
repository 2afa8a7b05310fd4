"""F1 and exact match of XTREME-UP, accuracy, AUC-PR, and averages over languages. Pure: texts and numbers in, scores from 0 to 100 out."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

INDIC = ("as", "bho", "brx", "gbm", "gom", "gu", "hi", "hne", "kn", "mai", "ml", "mni", "mr", "mwr", "or", "pa", "ps", "sa", "ta", "ur")
"""The 20 languages of XORQA-IN: cross-lingual QA, Indic."""
FULL = tuple(sorted((*INDIC, "ar", "bn", "fi", "ja", "ko", "ru", "te")))
NAMED_AVERAGES = {
    "mean_27": FULL,
    "mean_22": tuple(language for language in FULL if language not in ("ar", "fi", "ja", "ko", "ru")),
    "mean_21": tuple(language for language in FULL if language not in ("ar", "fi", "hi", "ja", "ko", "ru")),
}
"""Averages of cross-lingual QA, Full: all languages; those that reproduce the paper's headline best; XTREME-UP's under-represented ones."""

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


def text_scores(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """``f1`` and ``exact_match`` of one language's rows, 0 to 100."""
    pairs = list(zip(targets, predictions, strict=True))
    return {"f1": 100 * fmean(f1(t, p) for t, p in pairs), "exact_match": 100 * fmean(exact_match(t, p) for t, p in pairs)}


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


@lru_cache(maxsize=2**17)  # a report scores the same predictions in many comparisons
def _f1(target: str, prediction: str) -> float:
    gold, said = Counter(normalize_answer(target).split()), Counter(normalize_answer(prediction).split())
    common = (gold & said).total()
    if common == 0:
        return 0.0
    precision, recall = common / said.total(), common / gold.total()
    return 2 * precision * recall / (precision + recall)
