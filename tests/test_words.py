"""Words that the code does not use, each with the field's term; in identifiers and in prose."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RETIRED = {  # pattern of whole words -> what to write
    r"told": "given, signalled, or what the value is",
    r"[Rr]uler": "embedder, similarity model",
    r"[Ss]eed figures?": "figures of the original study",
    r"drawn": "sampled, assigned, bootstrap_counts",
    r"said": "responses",
    r"(?<!never_)asked": "questions, requested",
    r"knobs?|KNOBS": "parameter, key",
    r"(?<!in )(?<!only )(?<!_)places?": "index, rank",
    r"slopes?|Slopes|steep|fade": "gradient, cap_grad, rescale",
    r"taken off|takes off": "subtracted",
    r"less the": "minus the",
    r"[Ww]hatever the": "for every",
    r"beside": "next to",
    r"lies|lie there": "is",
    r"stands on|stand on": "parents",
    r"(as it|as they|they) stands?": "raw, unchanged",
    r"(go|goes|going|gone) on from": "resume from",
    r"from nothing": "from scratch",
    r"very same": "same",
    r"lest|seldom": "so that ... not, rarely",
    r"white space": "whitespace",
    r"hub's cache": "hub cache",
    r"was expected|were expected": "expected ...",
    r"taught|judging": "trained, train_groups, val_groups",
    r"liked": "best_of_n_indices",
    r"unended": "missing_eos",
    r"seals?|sealed|Sealing|SealedTrainer": "write_manifest",
    r"heard|rung": "catch_signals, stop_requested",
    r"carry_out": "run_cached",
    r"Shelf|NOWHERE": "Checkpointer, NO_CHECKPOINTS",
    r"Team": "ProcessGroup",
    r"Faults": "Violations",
    r"Chooser": "CheckpointSelector",
    r"questions_of": "prompts_with_responses",
    r"answer_ids|answer_of": "response_ids, to_response",
}


def sources() -> list[Path]:
    found = [
        path
        for suffix in ("py", "md", "jinja")
        for path in sorted((ROOT / "stages").rglob(f"*.{suffix}"))
    ]
    assert len(found) > 80, "the sources have moved"
    return [*found, ROOT / "params.yaml", ROOT / "stages" / "models.yaml"]


def retired(text: str) -> list[str]:
    """`line: word -> term` for every retired word."""
    return [
        f"{text[: match.start()].count(chr(10)) + 1}: {match[0]!r} -> {term}"
        for pattern, term in RETIRED.items()
        for match in re.finditer(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", text)
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_retired_word(path: Path) -> None:
    assert retired(path.read_text(encoding="utf-8")) == []


def test_words_are_found_in_prose_and_identifiers() -> None:
    assert retired("x = 1\ntold = [y.drawn]  # the ruler") == [
        "2: 'told' -> given, signalled, or what the value is",
        "2: 'ruler' -> embedder, similarity model",
        "2: 'drawn' -> sampled, assigned, bootstrap_counts",
    ]
    assert retired("length_drawn")
    assert retired("Seed figures 9 to 12")
    assert not retired("placeholder, masked, replace, soldier; train in place; never_asked")
