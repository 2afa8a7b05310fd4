"""What a method is made of: the ingredients of the paper's §2.3, and its ablations (§4, Table 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Cot = Literal["none", "augmented", "distilled"]
RationalePart = Literal["whole", "without_answer", "answer_only"]


@dataclass(frozen=True)
class Recipe:
    """How a tunable is tuned: which of FIAT's ingredients it gets. The defaults are FIAT itself."""

    cot: Cot = "augmented"
    """``augmented``: the rationale is part of the input; ``distilled``: it is a second target (Hsieh et al. 2023)."""
    instructions: bool = True
    """Whether i_tau stands before the row (Instruction-augmented Tuning)."""
    peft: bool = True
    """LoRA; False: all parameters are tuned."""
    instruction_tuned: bool = True
    """Start from the instruction-tuned checkpoint; False: from its pretrained twin."""
    rationale: RationalePart = "whole"
    """How much of the reasoner's output the tunable reads; the paper's is the whole of it."""


FIAT = Recipe()
_NO_COT = replace(FIAT, cot="none")
_NO_INSTRUCTIONS = replace(_NO_COT, instructions=False)
_NO_PEFT = replace(_NO_INSTRUCTIONS, peft=False)
_FULL_INSTRUCTED = replace(_NO_COT, peft=False)

RECIPES: dict[str, Recipe] = {
    "fiat": FIAT,
    "no_cot": _NO_COT,
    "no_instructions": _NO_INSTRUCTIONS,
    "no_peft": _NO_PEFT,
    "no_instruction_tuned": replace(_NO_PEFT, instruction_tuned=False),
    "distilled_cot": replace(FIAT, cot="distilled"),
    "full_instructed": _FULL_INSTRUCTED,
    "full_instructed_pretrained": replace(_FULL_INSTRUCTED, instruction_tuned=False),
    "fiat_without_answer": replace(FIAT, rationale="without_answer"),
    "fiat_answer_only": replace(FIAT, rationale="answer_only"),
    "fiat_without_instructions": replace(FIAT, instructions=False),
    "fiat_without_peft": replace(FIAT, peft=False),
    "fiat_without_instruction_tuned": replace(FIAT, instruction_tuned=False),
}

ABLATIONS = ("fiat", "no_cot", "no_instructions", "no_peft", "no_instruction_tuned")
"""Table 3: each removal is cumulative with the one before; the last is traditional fine-tuning."""

LEAVE_ONE_OUT = ("fiat", "no_cot", "fiat_without_instructions", "fiat_without_peft", "fiat_without_instruction_tuned")
"""FIAT less exactly one ingredient each; without rationales this is ``no_cot``."""

FIGURE_6 = ("full_instructed", "no_peft", "full_instructed_pretrained", "no_instruction_tuned")
"""Figure 6: with and without i_tau, first from the instruction-tuned checkpoint, then from its pretrained twin; no CoT, full tuning."""

UNTUNED = ("icl", "majority")
"""Methods that tune nothing."""

PAPER = tuple(dict.fromkeys((*UNTUNED, *ABLATIONS, "distilled_cot", *FIGURE_6, *LEAVE_ONE_OUT)))
"""All that the paper's tables and figures hold, and leave-one-out."""

METHOD_LISTS: dict[str, tuple[str, ...]] = {"ablations": ABLATIONS, "leave_one_out": LEAVE_ONE_OUT, "paper": PAPER}
"""What a config may write among ``methods`` for several."""

TITLES: dict[str, str] = {
    "majority": "Majority answer",
    "icl": "Few-shot ICL",
    "fiat": "FIAT",
    "no_cot": "w/o CoT-augmented tuning",
    "no_instructions": "w/o instruction-augmented tuning",
    "no_peft": "w/o parameter-efficient tuning",
    "no_instruction_tuned": "w/o instruction-tuned base model",
    "distilled_cot": "Distilled CoT",
    "full_instructed": "Instructions, full tuning, instruction-tuned base",
    "full_instructed_pretrained": "Instructions, full tuning, pretrained base",
    "fiat_without_answer": "FIAT, rationale without its answer",
    "fiat_answer_only": "FIAT, only the rationale's answer",
    "fiat_without_instructions": "FIAT less instructions only",
    "fiat_without_peft": "FIAT less PEFT only",
    "fiat_without_instruction_tuned": "FIAT less instruction tuning only",
}
"""Row titles in the paper's words."""

PLAIN: dict[str, str] = {
    "no_cot": "LoRA tuning with instructions",
    "no_instructions": "LoRA tuning",
    "no_peft": "full fine-tuning",
    "no_instruction_tuned": "full fine-tuning of the pretrained twin",
    "full_instructed": "full fine-tuning with instructions",
    "full_instructed_pretrained": "full fine-tuning of the pretrained twin with instructions",
}
"""Methods without rationales by what they do, not by what they lack."""


def plain_title(method: str) -> str:
    """A method's name outside the paper's cumulative table, where alone a row lacks all that those above it lack."""
    return f"{PLAIN[method]} ({method})" if method in PLAIN else TITLES.get(method, method)
