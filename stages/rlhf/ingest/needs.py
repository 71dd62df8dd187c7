"""What later stages need of each file, and why a source yields less.

A stage that finds too few rows would end hours after preprocess did. Every group that preprocess
writes has two different answers of different rank, so for rm and the judge rows are what counts.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from stages.rlhf.config.preprocess import PreprocessParams
from stages.rlhf.ingest.sources.items import Part

Examples = Mapping[tuple[str, Any], tuple[str, str | None]]  # part, reason -> id, what was found


class Need(NamedTuple):
    """The fewest rows of a file with which every stage ends well."""

    rows: int
    stage: str
    purpose: str


NEEDS: Final[dict[Part, dict[str, Need]]] = {
    "sft": {
        "train": Need(1, "sft", "to train on"),
        "validation": Need(2, "rm", "for a standard deviation of the reward"),
        "test": Need(1, "evaluate", "to compare the models on"),
    },
    "rm": {
        "train": Need(1, "rm", "to train on"),
        "validation": Need(1, "rm", "to choose an epoch by"),
        "test": Need(1, "rm", "to measure its accuracy on"),
        "judge_train": Need(2, "judge", "to train on and to choose an epoch by"),
        "judge_test": Need(1, "judge", "to measure its accuracy on"),
    },
    "ppo": {
        "train": Need(1, "ppo", "to train on"),
        "validation": Need(2, "gate", "for an interval"),
    },
}
# The parameter that raises a split's share of the questions.
SHARES: Final = {
    "validation": "validation_share",
    "test": "test_share",
    "judge_train": "judge_share",
    "judge_test": "judge_share",
}
_EXPLANATIONS: Final = {
    "malformed": "not the keys and types of a row",
    "leak": "its question is in another split",
    "judge_question": "its question is the judge's",
    "duplicate_question": "its question is in an earlier row",
    "too_long": "more tokens than max_prompt_tokens or max_answer_tokens",
    "too_few_answers": "fewer than two different answers",
    "all_tied": "all answers have one rank",
    "contradicted": "its answers are ordered in a circle, or both ways as often",
    "bad_rank": "a rank that is not a number from 1 to the number of answers",
}
_SHOWN: Final = 3  # reasons


def least(part: Part, split: str) -> int:
    """The fewest rows of a part that some stage needs in a split."""
    need = NEEDS[part].get(split)
    return need.rows if need else 0


def check(
    report: Mapping[str, Any],
    assigned: Mapping[str, int],
    params: PreprocessParams,
    examples: Examples | None = None,
) -> None:
    """Raise ValueError, in one sentence, for the first file with too few rows for a later stage.

    `report`: for all parts, or one that has none left, `read`, `rejected` {reason: rows} and `rows`
    {split: rows}, as `Ledger.report`; `corpus` has `read` and `kept`, and needs no rows if the
    source has none or the base model is from the hub. `assigned`: questions per split that
    preprocess assigned itself.
    `examples`: the first rejected row of each part and reason.
    """
    for part, needs in NEEDS.items():
        if part not in report:
            continue
        rows = report[part]["rows"]
        for split, need in needs.items():
            if rows.get(split, 0) < need.rows:
                raise ValueError(
                    f"{params.data.path}: {part} {split} has {_counted(rows.get(split, 0))}, but"
                    f" stage {need.stage} needs {need.rows} {need.purpose}:"
                    f" {_counted(report[part]['read'])} read, {_where(report[part])}"
                    f"{_why(part, report[part]['rejected'], examples or {})};"
                    f" {_remedy(part, split, report[part], assigned.get(split, 0), params)}"
                )
    corpus = report.get("corpus", {"read": 0, "kept": 0})
    if corpus["read"] and not corpus["kept"] and params.base_model.architecture:
        raise ValueError(
            f"{params.data.path}: the corpus has 0 texts, but stage base needs 1 to train on:"
            f" {_counted(corpus['read'])} read, 0 kept"
            f"{_why('corpus', corpus['rejected'], examples or {})}; add texts that hold no question"
            " of validation or test, or leave the corpus out, and the training rows are used"
        )


def _counted(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"


def _where(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    splits = ", ".join(f"{count} in {split}" for split, count in rows.items() if count)
    groups = f" as {sum(rows.values())} groups" if found.get("merged") else ""
    return f"{found['kept']} kept{groups}" + (f" ({splits})" if splits else "")


def _why(part: str, rejected: Mapping[str, int], examples: Examples) -> str:
    """The commonest reasons, each with what was found in one row, or what the reason means."""
    if not rejected:
        return ""
    order = sorted(rejected, key=lambda reason: (-rejected[reason], reason))
    words = []
    for reason in order[:_SHOWN]:
        name, detail = examples.get((part, reason), ("", None))
        detail = detail or _EXPLANATIONS.get(reason)
        text = " ".join(filter(None, (name, f"({detail})" if detail else "")))
        words.append(f"{rejected[reason]} {reason}" + (f", such as {text}" if name else f" {text}"))
    more = ", and others" if len(order) > _SHOWN else ""
    return f", rejected {', '.join(word.strip() for word in words)}{more}"


def _remedy(
    part: Part, split: str, found: Mapping[str, Any], assigned: int, params: PreprocessParams
) -> str:
    """What has an effect, the parameter by name."""
    settings, rows, rejected = params.preprocess, found["rows"], found["rejected"]
    if settings.max_items is not None and found["read"] >= settings.max_items:
        return f"raise preprocess.max_items ({settings.max_items})"
    reason = max(rejected, key=lambda reason: rejected[reason], default=None)
    lost = sum(rejected.values()) > found["kept"]
    if lost and reason == "too_long":
        return _longer(params)
    if lost and reason == "judge_question":
        return (
            f"lower preprocess.judge_groups_min ({settings.judge_groups_min}) and"
            f" preprocess.judge_share ({settings.judge_share})"
        )
    if sum(rows.values()) < sum(need.rows for need in NEEDS[part].values()):
        named = " (data.columns names keys of your own)" * (
            reason == "malformed" and params.data.source == "jsonl"
        )
        return f"add {part} rows to the source, or mend those in rejects.jsonl{named}"
    if split == "train":
        return "name fewer rows of other splits in the source"
    if assigned:
        share = SHARES[split]
        return f"raise preprocess.{share} ({getattr(settings, share)})"
    if not rows.get(split) and not split.startswith("judge") and settings.near_duplicate < 1:
        return (
            "its questions are too alike to be split: raise preprocess.near_duplicate"
            f" ({settings.near_duplicate})"
        )
    return f"name more {split} rows in the source, which names some itself"


def _longer(params: PreprocessParams) -> str:
    name, model = f"models.{params.model}", params.base_model
    clip = " or set preprocess.long_answers to clip" * (params.preprocess.long_answers == "drop")
    return (
        f"raise {name}.max_prompt_tokens ({model.max_prompt_tokens}) or"
        f" {name}.max_answer_tokens ({model.max_answer_tokens}){clip}"
    )
