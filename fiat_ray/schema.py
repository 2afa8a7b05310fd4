"""The columns of every Parquet file of a run. Types are Arrow's; a reader may rely on names, types and order."""

from __future__ import annotations

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
        ("metric", pa.string()),  # what selects: f1, auc_pr or accuracy
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
        ("score", pa.float64()),  # P(positive label); null for free text
        ("status", pa.string()),  # of the rationale that was read or parsed; null where none was
    ]
)

SCORES = pa.schema(
    [
        ("task", pa.string()),
        ("method", pa.string()),
        ("tunable", pa.string()),  # null for methods that tune nothing
        ("seed", pa.int64()),  # null likewise
        ("train_size", pa.int64()),
        ("language", pa.string()),  # a language, or mean, mean_21, mean_22, mean_27
        ("split", pa.string()),
        ("metric", pa.string()),  # f1, exact_match, accuracy, auc_pr, unparsed, length (percent)
        ("value", pa.float64()),  # 0–100; null where not defined
        ("n", pa.int64()),
    ]
)
