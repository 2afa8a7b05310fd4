"""The columns of every Parquet file of a run, and the fields of its JSON records. A reader may rely on names, types and the order of columns."""

from __future__ import annotations

from types import NoneType

import pyarrow as pa

VERSION = 1
"""Raised when the meaning of a column changes; part of every fingerprint, so that older artifacts are not mistaken for current ones."""

ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("language", pa.string()),
        ("input", pa.string()),  # the text as rendered, its passage cut where it had to be
        ("targets", pa.list_(pa.string())),
        ("group", pa.string()),
        ("cut_characters", pa.int64()),  # how much of the passage was cut away
    ]
)

RATIONALES = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),  # ok | length | prompt_too_long | empty | engine_error
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),  # of the prompt's, those that the prefix cache held; null in parts of older versions
        ("output_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("tries", pa.int64()),
        ("error", pa.string()),
    ]
)

AUGMENTED = pa.schema([*ROWS, ("key", pa.string()), ("rationale", pa.string()), ("status", pa.string()), ("finish_reason", pa.string())])

HISTORY = pa.schema(
    [
        ("learning_rate", pa.float64()),
        ("step", pa.int64()),
        ("epoch", pa.float64()),
        ("train_loss", pa.float64()),  # mean over the steps since the last validation; null at step 0
        ("metric", pa.string()),  # what selects: see metrics.selecting_metric
        ("value", pa.float64()),  # 0–100, mean over languages
        ("validation_loss", pa.float64()),  # mean of a supervised token, or of a label
        ("seconds", pa.float64()),
        ("selected", pa.bool_()),
    ]
)

PREDICTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("group", pa.string()),
        ("targets", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("score", pa.float64()),  # P(positive label), of several labels P(prediction); null for free text
        ("status", pa.string()),  # of the rationale that was read or parsed; null where none was
    ]
)

VALIDATED = pa.schema([*PREDICTIONS, ("step", pa.int64())])
"""Predictions on validation rows during training, at every validated step of the chosen learning rate."""

SCORES = pa.schema(
    [
        ("task", pa.string()),
        ("method", pa.string()),
        ("tunable", pa.string()),  # null for methods that tune nothing
        ("seed", pa.int64()),  # null likewise
        ("train_size", pa.int64()),
        ("language", pa.string()),  # a language, or mean, mean_21, mean_22, mean_27
        ("split", pa.string()),
        ("metric", pa.string()),  # those of metrics.TEXT_METRICS and LABEL_METRICS, or module:function; unparsed, length (percent)
        ("value", pa.float64()),  # 0–100; null where not defined
        ("n", pa.int64()),
    ]
)

MEASURED = pa.schema([("id", pa.string()), ("language", pa.string()), ("input", pa.string()), ("key", pa.string())])
"""Rows that `infer` is asked about, until they are answered: as rendered, with the key of their rationale, null where the recipe shows none."""

INFERRED = pa.schema([("prediction", pa.string()), ("score", pa.float64()), ("rationale", pa.string()), ("status", pa.string())])
"""Their answers."""

Kinds = dict[str, type | tuple[type, ...]]
_NUMBER_OR_NONE = (int, float, NoneType)

TRIAL: Kinds = {
    "name": str,
    "task": str,
    "method": str,
    "tunable": str,
    "seed": int,
    "train_size": int,
    "fingerprint": str,
    "answer_tokens": int,
    "recipe": dict,
    "augmented": (str, NoneType),  # fingerprint of the sealed set that was trained on; None without rationales
    "learning_rate": float,
    "learning_rates_tried": list,
    "step": int,  # the chosen one
    "steps": int,
    "kept_step_0": bool,
    "selection_metric": str,
    "selection_value": _NUMBER_OR_NONE,
    "validation": dict,  # metric, or metric/average → 0–100 at the chosen step
    "validation_rows": int,
    "train_groups": int,
    "tokens": int,
    "supervised_tokens": int,
    "seconds": (int, float),
    "gpus": int,
}
"""``trial.json``, the completion record of a tuning."""

_NUMBER = (int, float)

SAMPLE: Kinds = {"model": str, "gpus": int, "rows": int, "seconds": _NUMBER, "read": _NUMBER, "write": _NUMBER}
"""``sample.json``: what a sample of the reasoner (content hash ``model``) measured, in seconds and tokens a second of one engine."""

SEAL: Kinds = {"fingerprint": str, "asked": str, "rows": int, "status": dict}
"""``_manifest.json``, the completion record of an augmented set."""
