"""The rows of every part, in the AI-Hub format."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from tqdm import tqdm

from stages.rlhf.config.sample import SampleConfig
from stages.world.answers import CLEAN, DEMO_DEFECTS, Spec, canonical, write
from stages.world.corpus import make_corpus
from stages.world.groups import Group, make_group, noisy_ranks
from stages.world.questions import ENDINGS, Question
from stages.world.splits import (
    NEVER_ASKED,
    NOBODY_ANSWERED,
    UNSEEN_WORDING,
    Sizes,
    Splits,
    deal_questions,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Rows of one part: of its Training file (with rows pinned to other splits) and Validation."""

    training: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """The whole sample, before dirt is added."""

    splits: Splits
    sft: Part
    rm: Part
    ppo: Part
    corpus: list[str]


def _head(part: str, number: int, question: Question, split: str, kind: str | None) -> Row:
    """The keys common to all parts; `split` pins a row, `kind` names its hold-out set."""
    ending = ENDINGS[question.ending]
    row: Row = {
        "data_id": str(uuid5(NAMESPACE_URL, f"koqa/{part}/{split}/{number}/{question.text}")),
        "data_category": {
            "main": "구어체" if ending.spoken else "문어체",
            "middle": question.fact.category,
        },
        "question": question.text,
        "question_type": ending.question_type,
        "question_count": len(question.text),
        "split": split,
    }
    if kind:
        row["kind"] = kind
    return row


def _contents(text: str) -> Row:
    return {"contents": text, "answer_count": len(text)}


def _sft_row(head: Row, question: Question, answer: str) -> Row:
    return head | {"answer": _contents(answer), "must_contain": question.fact.value}


def _rm_row(head: Row, group: Group, ranks: Sequence[int], rng: Random) -> Row:
    order = rng.sample(range(len(ranks)), len(ranks))
    answers = {
        f"answer{number:02}": {"ranking": ranks[i]} | _contents(group.answers[i])
        for number, i in enumerate(order, 1)
    }
    return head | answers | {"defects": [group.specs[i].defects for i in order]}


def demo_specs(count: int, full_right: float, rng: Random) -> list[Spec]:
    """`count` specs in random order: a share `full_right` clean, the rest by DEMO_DEFECTS."""
    clean = round(count * full_right)
    flawed = count - clean
    specs = [CLEAN] * clean
    due = 0.0
    for share, spec in DEMO_DEFECTS.values():
        due += share * flawed
        specs += [spec] * (clean + round(due) - len(specs))
    rng.shuffle(specs)
    return specs


def _sft(sample: SampleConfig, splits: Splits, sizes: Sizes) -> Part:
    rng = Random(f"{sample.seed}/sft")
    questions = _sample(splits.training, sample.demonstrations, "demonstrations", rng)
    specs = demo_specs(len(questions), sample.demo_full_right, rng)
    part = Part()
    for number, (question, spec) in enumerate(zip(questions, specs, strict=True)):
        head = _head("sft", number, question, "train", None)
        part.training.append(_sft_row(head, question, write(question, spec, rng)))
    for kind, questions in splits.validation.items():
        for number, question in enumerate(questions[: sizes.validation_sft[kind]]):
            head = _head("sft", number, question, "validation", kind)
            part.training.append(_sft_row(head, question, canonical(question.fact)))
    for kind, questions in splits.test.items():
        for number, question in enumerate(questions):
            head = _head("sft", number, question, "test", kind)
            part.validation.append(_sft_row(head, question, canonical(question.fact)))
    return _shuffled(part, rng)


def _rm(sample: SampleConfig, splits: Splits, sizes: Sizes) -> Part:
    rng = Random(f"{sample.seed}/rm")
    part = Part()

    def add(rows: list[Row], questions: Sequence[Question], split: str, kind: str | None) -> None:
        trains = split in ("train", "judge_train")
        confounded = sample.confounded and split == "train"
        bar = tqdm(questions, desc=f"{split} groups", delay=5, mininterval=5, leave=False)
        groups = [make_group(question, rng, confounded) for question in bar]
        noise = sample.rank_noise if trains else 0.0
        ranks = noisy_ranks(groups, noise, Random(f"{sample.seed}/noise/{split}"))
        for number, (group, given) in enumerate(zip(groups, ranks, strict=True)):
            head = _head("rm", number, group.question, split, kind)
            rows.append(_rm_row(head, group, given, rng))

    questions = _sample(splits.training, sample.groups, "groups", rng)
    judge_count = sample.judge_groups
    add(part.training, questions, "train", None)
    add(part.training, splits.judge[:judge_count], "judge_train", None)
    add(part.training, splits.judge[judge_count:], "judge_test", None)
    for kind, questions in splits.validation.items():
        add(part.training, questions[: sizes.validation_rm[kind]], "validation", kind)
    for kind, questions in splits.test.items():
        add(part.validation, questions[: sizes.test_rm[kind]], "test", kind)
    return _shuffled(part, rng)


def _ppo(sample: SampleConfig, splits: Splits, sizes: Sizes) -> Part:
    rng = Random(f"{sample.seed}/ppo")
    part = Part()
    unlabelled = round(sample.prompts * NOBODY_ANSWERED) if splits.unlabelled else 0
    prompts = _sample(splits.unlabelled, unlabelled, "prompts", rng)
    prompts += _sample(splits.training, sample.prompts - unlabelled, "prompts", rng)
    for number, question in enumerate(prompts):
        part.training.append(_head("ppo", number, question, "train", None))
    sides = (
        ("validation", part.training, splits.validation, sizes.validation_prompts),
        ("test", part.validation, splits.test, sizes.test_prompts),
    )
    for split, rows, held, count in sides:
        first = round(count * NOBODY_ANSWERED)
        for kind, most in ((NEVER_ASKED, first), (UNSEEN_WORDING, count - first)):
            for number, question in enumerate(held[kind][:most]):
                rows.append(_head("ppo", number, question, split, kind))
    return _shuffled(part, rng)


def _sample(questions: Sequence[Question], count: int, name: str, rng: Random) -> list[Question]:
    if count > len(questions):
        raise ValueError(
            f"sample.{name} ({count}) exceeds the {len(questions)} questions there are for them"
        )
    return rng.sample(questions, count)


def _shuffled(part: Part, rng: Random) -> Part:
    rng.shuffle(part.training)
    rng.shuffle(part.validation)
    return part


def build_world(sample: SampleConfig) -> World:
    """Questions, answers, ranks and texts; deterministic given the params.

    Raises ValueError, with both numbers, if more is requested than the tables provide.
    """
    splits = deal_questions(sample)
    sizes = Sizes.of(sample)
    corpus_rng = Random(f"{sample.seed}/corpus")
    return World(
        splits,
        _sft(sample, splits, sizes),
        _rm(sample, splits, sizes),
        _ppo(sample, splits, sizes),
        make_corpus(sample.documents, splits.training, corpus_rng),
    )
