"""The paper's own numbers, carried over digit by digit: what a run is compared with, and never asserted against.

Source: "FIAT: Fusing Learning Paradigms with Instruction-Accelerated Tuning", Tables 2 to 8 and Figure 4. Models: PaLM-2 L as reasoner,
PaLM-2 XS and S as tunables; neither can be had, so no number here is a target.

The tables disagree with each other in places; ``disagreements()`` finds them by recomputing. Two rows are shifted: they lack one language, all
later values stand one column too far left, and the last column holds the row's mean (Table 7, XS without PEFT, from about gu on; Table 8, S
without CoT, from about sa on). They stand here as printed. The paper's headers call Meitei ``mn`` in Tables 7 and 8 and Telugu ``tc`` in
Table 8; Table 5 and the data say ``mni`` and ``te``, and so do the keys here. Averages over the Full languages fit Table 3 best over 22 of the 27.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, pvariance

from fiat_ray.metrics import INDIC, NAMED_AVERAGES
from fiat_ray.recipe import TITLES

SETTINGS: dict[str, str] = {
    "xor_attriqa": "XOR-AttriQA",
    "xtreme_up_qa_indic": "XTREME-UP cross-lingual QA (Indic)",
    "xtreme_up_qa_full": "XTREME-UP cross-lingual QA (Full)",
}
"""The paper's three data settings: the columns of its Tables 2 and 3."""

SIZES = ("xs", "s")
"""The paper's two tunables."""

Key = tuple[str, str]
"""(size, method): ``xs`` or ``s``, and a name of ``fiat_ray.recipe``; few-shot ICL has the size ``""``."""
Scores = dict[str, dict[Key, float]]
"""Metric → (size, method) → score, 0 to 100."""
PerLanguage = dict[Key, dict[str, float]]


def _table(text: str) -> dict[Key, dict[str, float]]:
    """A block of text as printed below: a header of columns, then rows ``size method value…``; ``-`` is no size or no value."""
    header, *lines = text.strip("\n").splitlines()
    columns = header.split()
    table = {}
    for line in lines:
        size, method, *values = line.split()
        pairs = zip(columns, values, strict=True)
        table["" if size == "-" else size, method] = {column: float(value) for column, value in pairs if value != "-"}
    return table


_TABLE_2 = _table("""
                            accuracy auc_pr indic full
    -  icl                  78.6     -      68.9  69.2
    xs no_instruction_tuned 90.5     52.1   63.5  75.5
    xs fiat                 94.0     78.1   73.6  77.8
    s  no_instruction_tuned 90.6     54.5   67.1  77.8
    s  fiat                 93.9     77.5   77.3  79.3
""")

_TABLE_3 = _table("""
                            accuracy auc_pr indic full
    -  icl                  78.6     -      68.9  69.2
    xs fiat                 94.0     78.1   73.6  77.8
    xs no_cot               94.0     80.3   70.7  76.0
    xs no_instructions      93.5     72.4   69.8  76.4
    xs no_peft              93.7     69.8   67.8  75.8
    xs no_instruction_tuned 90.5     52.1   63.5  75.5
    s  fiat                 93.9     77.5   77.3  79.3
    s  no_cot               94.7     80.7   76.7  79.8
    s  no_instructions      94.1     71.6   75.3  79.1
    s  no_peft              94.7     76.2   72.3  78.5
    s  no_instruction_tuned 90.6     54.5   67.1  77.8
""")

_TABLE_6_ACCURACY = _table("""
                            bn   fi   ja   ru   te
    -  icl                  85.9 78.5 85.4 84.5 58.9
    xs fiat                 92.6 91.0 96.3 94.8 95.3
    xs no_cot               92.5 91.8 96.2 94.6 95.0
    xs no_instructions      91.7 91.2 95.9 93.8 94.8
    xs no_peft              92.6 92.0 95.0 94.2 94.7
    xs no_instruction_tuned 89.4 88.9 94.3 90.1 89.7
    s  fiat                 92.3 92.1 96.2 94.6 94.0
    s  no_cot               93.0 94.4 95.5 98.8 95.3
    s  no_instructions      93.1 92.7 95.0 94.6 95.2
    s  no_peft              92.7 93.2 96.3 95.1 96.5
    s  no_instruction_tuned 90.9 88.6 93.2 89.7 90.3
""")

_TABLE_6_AUC_PR = _table("""
                            bn   fi   ja   ru   te
    xs fiat                 81.1 85.3 66.5 84.9 72.5
    xs no_cot               84.7 85.8 70.3 84.1 76.6
    xs no_instructions      74.1 81.4 53.5 77.4 75.4
    xs no_peft              73.9 76.7 55.8 74.1 68.6
    xs no_instruction_tuned 65.6 65.9 42.1 58.6 28.2
    s  fiat                 81.3 84.0 62.4 84.9 93.9
    s  no_cot               84.3 81.2 58.8 87.4 78.4
    s  no_instructions      75.6 82.9 51.3 78.1 70.1
    s  no_peft              76.2 83.6 59.0 83.3 78.8
    s  no_instruction_tuned 66.3 67.7 41.0 57.5 40.2
""")

_TABLE_7 = _table("""
                            as   bho  brx  gbm  gom  gu   hi   hne  kn   mai  ml   mni  mr   mwr  or   pa   ps   sa   ta   ur
    -  icl                  72.5 61.8 43.0 60.3 72.3 70.6 61.5 70.8 72.9 73.3 72.2 57.1 71.5 69.5 71.4 73.7 70.6 72.6 71.5 69.4
    xs fiat                 75.9 73.9 47.2 72.7 76.1 76.1 79.3 76.2 76.6 75.5 76.3 61.1 75.4 73.3 76.0 75.6 76.6 77.4 75.4 73.3
    xs no_cot               73.2 73.0 40.7 68.8 71.3 76.1 79.0 72.3 74.0 71.4 76.7 48.8 73.3 72.3 71.6 74.6 72.2 74.9 75.0 74.7
    xs no_instructions      73.2 71.5 39.1 67.8 71.7 73.7 78.5 70.3 74.0 71.2 74.7 50.1 73.9 71.4 70.9 72.2 72.8 71.8 74.5 72.48
    xs no_peft              70.7 69.5 49.2 65.7 70.7 80.5 67.4 69.9 69.7 70.9 51.6 70.0 67.8 66.8 69.5 69.7 68.7 70.9 69.8 67.8
    xs no_instruction_tuned 65.6 64.7 49.3 60.3 62.6 65.7 76.9 63.2 65.2 63.7 65.4 52.8 64.2 63.5 63.8 65.8 64.3 63.7 65.4 64.4
    s  fiat                 80.2 77.8 52.2 77.2 78.3 80.6 82.2 79.5 79.7 78.8 79.8 64.5 79.4 77.4 79.4 80.7 80.0 80.4 79.8 78.0
    s  no_cot               79.1 78.4 50.3 75.6 78.7 79.9 84.6 77.8 79.2 78.3 79.2 62.4 77.8 77.7 79.6 79.2 78.8 79.9 80.1 78.0
    s  no_instructions      78.8 77.6 47.7 75.1 76.1 79.1 82.8 76.3 78.4 78.0 78.4 58.0 78.1 76.0 79.3 78.1 77.0 78.2 78.0 77.2
    s  no_peft              74.3 71.2 50.6 71.7 72.7 74.6 81.8 72.7 75.1 74.1 74.9 61.9 73.9 72.1 75.8 75.5 73.5 72.6 73.6 73.5
    s  no_instruction_tuned 68.8 68.2 46.1 66.5 67.5 69.0 79.4 68.8 69.4 68.3 69.4 53.5 68.4 67.1 69.2 68.4 69.4 67.3 70.0 68.0
""")

_TABLE_8_INDIC = _table("""
                            as   bho  brx  gbm  gom  gu   hi   hne  kn   mai  ml   mni  mr   mwr  or   pa   ps   sa   ta   ur
    -  icl                  72.5 61.8 43.0 60.3 72.3 70.6 61.5 70.8 72.9 73.3 72.2 57.1 71.5 69.5 71.4 73.7 70.6 72.6 71.5 69.4
    xs fiat                 80.1 80.4 52.6 77.0 78.9 80.7 85.2 80.5 80.8 79.0 79.6 65.6 79.6 78.7 79.8 79.1 80.1 78.3 80.5 78.1
    xs no_cot               79.8 76.8 49.1 71.9 76.5 78.1 84.2 77.5 79.0 75.4 79.0 55.2 77.8 75.9 75.8 78.7 78.1 78.3 80.5 78.1
    xs no_instructions      78.8 77.8 49.2 72.8 77.0 78.7 83.9 76.8 80.1 76.1 80.4 58.3 78.7 76.2 77.1 78.6 76.8 79.1 79.4 79.4
    xs no_peft              78.3 75.6 55.4 74.7 75.0 78.0 84.9 76.5 78.9 77.3 78.8 61.9 77.8 77.3 75.9 78.4 76.9 76.6 79.8 77.8
    xs no_instruction_tuned 76.9 76.4 56.6 73.1 74.2 76.8 84.7 75.4 77.9 75.5 78.1 62.8 77.5 74.3 74.7 77.5 76.5 75.3 77.5 75.8
    s  fiat                 81.6 80.5 51.9 78.3 80.2 82.3 85.8 81.2 82.4 82.1 81.5 67.0 82.1 80.2 81.6 80.9 81.5 82.2 82.3 79.5
    s  no_cot               82.8 80.5 49.9 78.0 80.0 83.4 85.9 80.4 82.7 80.5 83.7 64.9 81.5 80.2 82.0 82.0 83.0 82.4 80.0 84.2
    s  no_instructions      81.3 80.0 51.2 78.3 78.4 82.0 85.7 80.5 81.2 80.3 81.8 64.8 81.0 79.7 81.2 80.5 80.7 80.5 81.6 79.4
    s  no_peft              79.5 77.5 61.5 77.3 78.3 80.1 85.3 79.0 79.9 79.0 80.5 68.9 79.0 78.4 79.8 78.8 78.7 78.9 80.5 78.3
    s  no_instruction_tuned 79.5 77.4 55.4 75.6 79.1 79.9 85.5 77.5 80.7 78.5 80.3 63.4 79.5 77.8 78.8 78.6 78.7 78.8 80.7 77.7
""")

_TABLE_8_OTHERS = _table("""
                            ar   bn   fi   ja   ko   ru   te
    -  icl                  66.0 75.2 65.5 60.3 61.2 66.9 68.7
    xs fiat                 83.5 85.0 82.1 82.3 85.9 80.8 81.1
    xs no_cot               83.5 85.0 82.1 82.3 85.9 80.8 81.1
    xs no_instructions      84.5 84.6 81.5 82.6 87.0 81.7 80.8
    xs no_peft              84.3 83.5 81.9 83.2 88.1 82.0 81.3
    xs no_instruction_tuned 82.4 84.2 81.2 82.8 88.1 80.4 80.3
    s  fiat                 82.5 86.2 82.0 83.7 87.1 83.3 86.2
    s  no_cot               86.6 81.9 82.4 87.0 83.9 84.3 80.6
    s  no_instructions      82.8 85.7 83.3 83.8 86.4 84.1 84.0
    s  no_peft              83.3 85.1 84.1 84.9 89.2 85.7 82.4
    s  no_instruction_tuned 81.9 85.8 84.0 85.0 88.8 91.9 82.1
""")

GAINS: dict[str, dict[str, float]] = {
    "xor_attriqa": {"accuracy": 3.5, "auc_pr": 26.0},
    "xtreme_up_qa_indic": {"f1": 8.4},
    "xtreme_up_qa_full": {"f1": 1.5},
}
"""Last row of Table 2, "Gain over best baseline"."""

GAINS_OVER: dict[str, Key] = {
    "xor_attriqa": ("s", "no_instruction_tuned"),
    "xtreme_up_qa_indic": ("", "icl"),
    "xtreme_up_qa_full": ("s", "no_instruction_tuned"),
}
"""The baseline that Table 2 names beside each gain."""

FIGURE_4: dict[str, float] = {"no_cot": 70.7, "distilled_cot": 72.5, "fiat": 73.6}
"""F1 on Indic, size XS: the baseline, distilled CoT, CoT-augmented tuning."""


def _counts(text: str) -> dict[str, dict[str, int]]:
    header, *lines = text.strip().splitlines()
    return {line.split()[0]: dict(zip(header.split(), map(int, line.split()[1:]), strict=True)) for line in lines}


ROWS: dict[str, dict[str, dict[str, int]]] = {
    "xor_attriqa": _counts("""
                   bn   fi   ja   ru   te
        train      40   66   20   84   52
        validation 218  150  578  136  174
        test       2822 1318 1908 1268 2146
    """),
    "xtreme_up_qa": _counts("""
                   as  bho brx gbm gom gu  hi   hne kn  mai ml  mni mr  mwr or  pa  ps  sa  ta  ur  ar   bn  fi   ja   ko   ru   te
        train      323 326 326 326 326 326 326  326 326 326 326 326 326 326 326 326 326 326 326 326 3159 377 2467 2926 3327 2560 373
        validation 356 358 357 365 365 371 519  372 373 369 373 380 385 386 386 385 384 385 384 387 941  618 978  727  861  731  468
        test       633 631 633 634 629 630 1049 629 631 635 629 628 633 632 632 624 633 630 630 634 582  397 606  471  548  448  333
    """),
}
"""Tables 4 and 5: task → split → language → rows."""

TABLE_OF_LANGUAGES = {"xor_attriqa": 6, "xtreme_up_qa_indic": 7, "xtreme_up_qa_full": 8}


def setting_of(task: str, languages: Iterable[str]) -> str | None:
    """Which of the paper's settings a task in these languages is; None for a task that is not the paper's."""
    if task == "xtreme_up_qa":
        return "xtreme_up_qa_indic" if set(languages) <= set(INDIC) else "xtreme_up_qa_full"
    return task if task in SETTINGS else None


def _columns(table: dict[Key, dict[str, float]], setting: str) -> Scores:
    names = {"xor_attriqa": ("accuracy", "auc_pr"), "xtreme_up_qa_indic": ("indic",), "xtreme_up_qa_full": ("full",)}[setting]
    return {name if len(names) == 2 else "f1": {key: row[name] for key, row in table.items() if name in row} for name in names}


def overall(setting: str) -> Scores:
    """Table 3's column for a setting; Table 2's rows are among its rows. Figure 4 adds distilled CoT to Indic."""
    scores = _columns(_TABLE_3, setting)
    if setting == "xtreme_up_qa_indic":
        scores["f1"]["xs", "distilled_cot"] = FIGURE_4["distilled_cot"]
    return scores


def per_language(setting: str) -> dict[str, PerLanguage]:
    """Metric → (size, method) → language → score: Table 6, 7 or 8 as printed, shifted rows included."""
    if setting == "xor_attriqa":
        return {"accuracy": _TABLE_6_ACCURACY, "auc_pr": _TABLE_6_AUC_PR}
    if setting == "xtreme_up_qa_indic":
        return {"f1": _TABLE_7}
    return {"f1": {key: row | _TABLE_8_OTHERS[key] for key, row in _TABLE_8_INDIC.items()}}


def size_disagreements(task: str) -> list[str]:
    """Where the paper's text (§3) and its Table 4 or 5 contradict each other."""
    train = ROWS[task]["train"]
    said = {"xor_attriqa": 262, "xtreme_up_qa": 22_500}[task]
    found = [] if sum(train.values()) == said else [f"the text says {said:,} train rows, the languages add up to {sum(train.values()):,}"]
    few = [language for language in train if task == "xtreme_up_qa" and language not in NAMED_AVERAGES["mean_22"] and train[language] <= 2500]
    return found + [f"the text says more than 2,500 train rows in each high-resource language, {x} has {train[x]:,}" for x in few]


def average(setting: str, row: dict[str, float]) -> float:
    """Mean over a row's languages: all of them, for Full the 22 that fit the paper's headline."""
    languages = NAMED_AVERAGES["mean_22"] if setting == "xtreme_up_qa_full" else tuple(row)
    return fmean(row[language] for language in languages)


def shifted(setting: str) -> list[tuple[str, Key, str]]:
    """(metric, row, language near the gap) of rows that lost a value.

    Their last value is the mean of those before it, and moving all values behind some gap one column to the right makes the row follow the
    other rows of its size far better than it does as printed: the variance of the differences falls by 40 % or more.
    """
    found = []
    for metric, table in per_language(setting).items():
        for key, row in table.items():
            others = [other for name, other in table.items() if name[0] == key[0] and name != key]
            values, languages = list(row.values()), list(row)
            if not others or abs(values[-1] - fmean(values[:-1])) > ROUNDING:
                continue
            profile = [fmean(other[language] for other in others) for language in languages]
            moved = [_spread(values[:-1], profile[:gap] + profile[gap + 1 :]) for gap in range(len(values) - 1)]
            if min(moved) < 0.6 * _spread(values, profile):
                found.append((metric, key, languages[moved.index(min(moved))]))
    return found


def _spread(values: list[float], profile: list[float]) -> float:
    return pvariance([value - usual for value, usual in zip(values, profile, strict=True)])


def copied(setting: str) -> list[tuple[str, Key, Key, list[str]]]:
    """(metric, row, row above or below, languages) of neighbouring rows that end in the same three or more values."""
    found = []
    for metric, table in per_language(setting).items():
        for (one, first), (other, second) in zip(table.items(), list(table.items())[1:], strict=False):
            same = 0
            for language in reversed(first):
                if first[language] != second[language]:
                    break
                same += 1
            if same >= 3:
                found.append((metric, one, other, list(first)[-same:]))
    return found


ROUNDING = 0.1 + 1e-9
"""Values printed to 0.1 give a mean within 0.05 of the true one, which is itself printed to 0.1."""


def row_title(key: Key) -> str:
    size, method = key
    return f"{size.upper()} {TITLES[method]}".strip()


def disagreements() -> list[str]:
    """Where the paper's tables contradict each other, one sentence each: means, shifted and copied rows, gains, Table 2 against Table 3."""
    found = []
    for setting, title in SETTINGS.items():
        number = TABLE_OF_LANGUAGES[setting]
        broken = {(metric, key): gap for metric, key, gap in shifted(setting)}
        for metric, table in per_language(setting).items():
            for key, row in table.items():
                mean, printed = average(setting, row), overall(setting)[metric][key]
                where = f"Table {number} ({title}), {row_title(key)}, {metric}"
                if (metric, key) in broken:
                    found.append(
                        f"{where}: near {broken[metric, key]} a value is missing; later ones stand one column too far left, the last is the mean"
                    )
                elif abs(mean - printed) > ROUNDING:
                    found.append(f"{where}: the mean of its languages is {mean:.2f}, Table 3 says {printed}")
        for metric, one, other, languages in copied(setting):
            same = f"the same values for {' '.join(languages)}"
            found.append(f"Table {number} ({title}), {row_title(one)} and {row_title(other)}, {metric}: {same}; one row may be a copy")
        for metric, column in _columns(_TABLE_2, setting).items():
            for key, value in column.items():
                if value != overall(setting)[metric][key]:
                    found.append(f"Table 2 ({title}), {row_title(key)}, {metric}: {value}, Table 3 says {overall(setting)[metric][key]}")
            baseline, fiat = column[GAINS_OVER[setting]], column["s", "fiat"]
            if abs(fiat - baseline - GAINS[setting][metric]) > 0.01:
                over = f"{row_title(GAINS_OVER[setting])} ({baseline})"
                found.append(
                    f"Table 2 ({title}), {metric}: gain +{GAINS[setting][metric]}, but S FIAT ({fiat}) less {over} is {fiat - baseline:+.1f}"
                )
    return found
