"""The sample world: its truth, its hold-outs, its noise, and the shape it is written in."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from stages import sample as stage
from stages.rlhf.config.sample import SampleConfig
from stages.world import aihub, answers, dirt, groups
from stages.world.answers import canonical
from stages.world.build import World, build_world
from stages.world.facts import (
    Fact,
    all_facts,
    core,
    detail,
    listed_detail,
    noun_phrase,
    other_values,
    reversed_core,
)
from stages.world.particles import PLAIN, POLITE
from stages.world.questions import (
    HELD_OUT_COMBOS,
    TRAINING_ENDINGS,
    Question,
    similarity,
    training_combos,
    unseen_ending_combos,
    wordings,
)
from stages.world.splits import NEVER_ASKED, UNSEEN_ENDING, UNSEEN_WORDING
from tests.conftest import ROOT, write_fingerprint, write_params

SAMPLE = SampleConfig(
    seed=0,
    demonstrations=3200,
    groups=2400,
    judge_groups=600,
    prompts=3000,
    held_back=0.15,
    documents=14000,
    demo_full_right=0.30,
    rank_noise=0.05,
    confounded=False,
)
SMALL = SAMPLE.model_copy(
    update={"demonstrations": 64, "groups": 48, "judge_groups": 24, "prompts": 40, "documents": 80}
)
MIDDLE = {"공학", "기타", "명칭", "보건", "사회", "산업", "예체능", "인문", "자연", "종교"}
TOKENS = re.compile(r"<\|endoftext\|>|</s>|[\ufeff\u200b\u2060]")
UNSEEN_TAILS = ("일까요?", "알 수 있을까요?", "가르쳐 주시겠어요?")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SAMPLE)


@pytest.fixture(scope="module")
def files(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Rows as written, by "<Training or Validation>/<entry>"."""
    folder = tmp_path_factory.mktemp("sample")
    aihub.write_package(folder, dirt.plant(world, SAMPLE.seed))
    return read_package(folder)


def read_package(folder: Path) -> dict[str, list[Any]]:
    rows = {}
    for path in folder.rglob("*.zip"):
        with zipfile.ZipFile(path) as package:
            for info in package.infolist():
                data = json.loads(package.read(info).decode("utf-8"))
                rows[path.parts[-3] + info.filename] = data["data_info"]
    return rows


def cleaned(text: str) -> str:
    return " ".join(TOKENS.sub("", unicodedata.normalize("NFC", text)).split())


def asked(rows: list[Any], *splits: str) -> list[str]:
    """Questions of the rows that carry one of the splits."""
    return [cleaned(row["question"]) for row in rows if usable(row) and row["split"] in splits]


def usable(row: Any) -> bool:
    return isinstance(row, dict) and "split" in row and isinstance(row["question"], str)


def texts(fact: Fact) -> set[str]:
    """All wordings of a question about the fact."""
    combos = training_combos() + list(HELD_OUT_COMBOS) + unseen_ending_combos()
    return {question.text for question in wordings(fact, combos)}


def asked_in(everything: str, questions: set[str]) -> set[str]:
    """Those that stand there as whole words: 얼룩말의 … does not ask about 말."""
    size, heads = min(map(len, questions)), defaultdict(list)
    for text in questions:
        heads[text[:size]].append(text)
    found: set[str] = set()
    for start in re.finditer(r"(?<![가-힣])\S", everything):
        at = start.start()
        near = heads.get(everything[at : at + size], ())
        found |= {text for text in near if everything.startswith(text, at)}
    return found


def rm_rows(world: World, *splits: str) -> Rows:
    return [r for r in world.rm.training + world.rm.validation if r["split"] in splits]


def ranking(row: dict[str, Any]) -> list[int]:
    return [row[f"answer{place:02}"]["ranking"] for place in range(1, 6)]


# The facts


def test_the_tables_are_of_the_promised_size() -> None:
    facts = all_facts()
    assert 750 <= len(facts) <= 850
    assert 250 <= len({(fact.table, fact.entity) for fact in facts}) <= 280
    assert len({fact.table for fact in facts}) >= 8
    columns = Counter((fact.table, fact.attribute) for fact in facts)
    assert min(columns.values()) >= 12  # fewer entities do not teach what an attribute is
    assert len(facts) == len({fact.pair for fact in facts})
    categories = {fact.category for fact in facts}
    assert categories <= MIDDLE
    assert len(categories) >= 6


def test_a_value_tells_right_from_wrong() -> None:
    """`must_contain` must not stand in a wrong answer, nor in the question or the detail."""
    for fact in all_facts():
        assert other_values(fact), fact
        for value in other_values(fact):
            assert fact.value not in value, (fact, value)
        for ask in range(3):
            assert fact.value not in noun_phrase(fact, ask), fact
        assert fact.value not in detail(listed_detail(fact)), fact
        assert fact.value in canonical(fact)


def test_canonical_answers_are_short() -> None:
    lengths = [len(canonical(fact)) for fact in all_facts()]
    assert max(lengths) <= 60
    assert 30 <= statistics.mean(lengths) <= 45


# The hold-outs


def test_test_and_validation_have_their_sizes(world: World) -> None:
    kinds = Counter(row["kind"] for row in world.sft.validation)
    assert kinds == {UNSEEN_WORDING: 400, NEVER_ASKED: 1000, UNSEEN_ENDING: 500}
    kinds = Counter(row["kind"] for row in world.rm.validation)
    assert kinds == {UNSEEN_WORDING: 250, NEVER_ASKED: 120, UNSEEN_ENDING: 80}
    splits = Counter(row["split"] for row in world.rm.training)
    assert splits == {"train": 2400, "judge_train": 600, "judge_test": 120, "validation": 420}
    splits = Counter(row["split"] for row in world.sft.training)
    assert splits == {"train": 3200, "validation": 400}
    kinds = Counter(row["kind"] for row in world.sft.training if row["split"] == "validation")
    assert kinds == {UNSEEN_WORDING: 200, NEVER_ASKED: 200}
    for rows in (world.ppo.validation, world.ppo.training):
        kinds = Counter(row["kind"] for row in rows if row["split"] != "train")
        assert kinds == {NEVER_ASKED: 67, UNSEEN_WORDING: 33}


@pytest.mark.parametrize(("side", "pairs"), [("test", 70), ("validation", 70)])
def test_a_never_asked_pair_is_asked_on_its_own_side_alone(
    world: World, side: str, pairs: int
) -> None:
    own = getattr(world.splits, side)
    hidden = {question.fact for question in own[NEVER_ASKED]}
    assert len(hidden) >= pairs
    parts = (world.sft, world.rm, world.ppo)
    rows = [row for part in parts for row in part.training + part.validation]
    here, elsewhere = (
        json.dumps([row for row in rows if (row["split"] == side) == inside], ensure_ascii=False)
        for inside in (True, False)
    )
    corpus = "\n".join(world.corpus)
    questions = set().union(*(texts(fact) for fact in hidden))
    assert asked_in(here, questions)
    assert not asked_in(elsewhere, questions)
    assert not asked_in(corpus, questions)
    others = [q for kind, questions in own.items() if kind != NEVER_ASKED for q in questions]
    assert not hidden & {question.fact for question in others}


def test_what_is_held_back_from_labels_ppo_alone_asks_and_the_corpus_states(world: World) -> None:
    hidden = {question.fact for question in world.splits.unlabelled}
    assert len(hidden) / len(all_facts()) == pytest.approx(SAMPLE.held_back, abs=0.02)
    questions = set().union(*(texts(fact) for fact in hidden))
    prompts = [row for row in world.ppo.training if row["split"] == "train"]
    assert len(prompts) == SAMPLE.prompts
    asked = [row["question"] in questions for row in prompts]
    assert sum(asked) == 2000
    labelled = [*world.sft.training, *world.sft.validation, *world.rm.training]
    labelled += [*world.rm.validation, *world.ppo.validation]
    labelled += [row for row in world.ppo.training if row["split"] != "train"]
    assert not questions & {row["question"] for row in labelled}
    corpus = "\n".join(world.corpus)
    assert not asked_in(corpus, questions)
    stated = [f for f in hidden if core(f) in corpus or core(f, PLAIN) in corpus]
    assert len(stated) / len(hidden) > 0.95
    sides = [world.splits.test, world.splits.validation]
    others = {q.fact for side in sides for each in side.values() for q in each}
    others |= {q.fact for q in world.splits.training + world.splits.judge}
    assert not hidden & others


def test_nothing_held_back_leaves_all_prompts_to_labelled_facts() -> None:
    world = build_world(SMALL.model_copy(update={"held_back": 0.0}))
    assert world.splits.unlabelled == []
    trained = {question.text for question in world.splits.training}
    prompts = [row["question"] for row in world.ppo.training if row["split"] == "train"]
    assert len(prompts) == SMALL.prompts
    assert set(prompts) <= trained


def test_an_unseen_ending_occurs_in_test_alone(world: World, files: dict[str, list[Any]]) -> None:
    training = {name: rows for name, rows in files.items() if name.startswith("Train")}
    everything = cleaned(json.dumps(training, ensure_ascii=False)) + "\n".join(world.corpus)
    for tail in UNSEEN_TAILS:
        assert tail not in everything
    of_kind = [q.text for q in world.splits.test[UNSEEN_ENDING]]
    assert all(text.endswith(UNSEEN_TAILS) for text in of_kind)
    assert {tail for tail in UNSEEN_TAILS for text in of_kind if text.endswith(tail)} == set(
        UNSEEN_TAILS
    )


def test_an_unseen_wording_is_of_a_trained_pair(world: World) -> None:
    trained = {question.fact for question in world.splits.training}
    combos = {(question.ask, question.ending) for question in world.splits.training}
    for question in world.splits.test[UNSEEN_WORDING] + world.splits.validation[UNSEEN_WORDING]:
        assert question.fact in trained
        assert (question.ask, question.ending) not in combos
        assert question.ending < len(TRAINING_ENDINGS)


def test_no_question_is_on_two_sides(world: World, files: dict[str, list[Any]]) -> None:
    rows = [row for each in files.values() for row in each]
    sides = {
        "train": set(asked(rows, "train")),
        "judge": set(asked(rows, "judge_train", "judge_test")),
        "validation": set(asked(rows, "validation")),
        "test": set(asked(rows, "test")),
    }
    names = list(sides)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not sides[one] & sides[other], (one, other)
    corpus = "\n".join(world.corpus)
    for side in ("judge", "validation", "test"):
        assert not asked_in(corpus, sides[side]), side


def test_no_near_duplicates_across_sides(world: World) -> None:
    splits = world.splits
    held = [("test", q) for each in splits.test.values() for q in each]
    held += [("validation", q) for each in splits.validation.values() for q in each]
    held += [("judge", q) for q in splits.judge]
    blocks: dict[Any, list[tuple[str, Question]]] = defaultdict(list)
    trained = splits.training + splits.unlabelled
    for side, question in held + [("train", q) for q in trained]:
        blocks[question.fact.attribute, question.ask, question.ending].append((side, question))
    for block in blocks.values():
        for i, (side, question) in enumerate(block):
            for other, known in block[i + 1 :]:
                assert other == side or similarity(question, known) < 0.9, (question, known)


def test_each_question_stands_once_in_a_part(world: World) -> None:
    for part in (world.sft, world.rm, world.ppo):
        rows = part.training + part.validation
        assert len(rows) == len({row["question"] for row in rows})
        assert len(rows) == len({row["data_id"] for row in rows})
        assert all(len(row["data_id"]) == 36 for row in rows)


# The answers


def test_validation_and_test_answers_are_canonical(world: World) -> None:
    right = {text: canonical(fact) for fact in all_facts() for text in texts(fact)}
    values = {text: fact.value for fact in all_facts() for text in texts(fact)}
    held = [row for row in world.sft.training if row["split"] == "validation"]
    for row in held + world.sft.validation:
        assert row["answer"]["contents"] == right[row["question"]]
        assert row["must_contain"] == values[row["question"]]


@pytest.mark.parametrize("share", [0.30, 1.0])
def test_the_promised_share_of_demonstrations_is_right(share: float) -> None:
    rows = build_world(SMALL.model_copy(update={"demo_full_right": share, "demonstrations": 800}))
    right = {text: canonical(fact) for fact in all_facts() for text in texts(fact)}
    train = [row for row in rows.sft.training if row["split"] == "train"]
    good = sum(row["answer"]["contents"] == right[row["question"]] for row in train)
    assert good / len(train) == pytest.approx(share, abs=0.002)


def test_the_defect_table() -> None:
    table = answers.DEMO_DEFECTS
    assert sum(share for share, _ in table.values()) == pytest.approx(1)
    assert {spec.defects for _, spec in table.values()} == set(table)
    assert 0.06 <= 0.7 * table["wrong_fact"][0] <= 0.08


def test_ranked_answers_cover_every_form_of_the_demonstrations(world: World) -> None:
    seen = Counter(defect for row in rm_rows(world, "train") for defect in row["defects"])
    for name in [*answers.DEMO_DEFECTS, "none", "off_topic", "other_entity"]:
        assert seen[name] >= 50, name
    assert 0.7 <= seen["none"] / 2400 <= 0.8


def test_defects_do_not_depend_on_truth(world: World) -> None:
    """The same forms, right and wrong: neither form nor length tells whether a fact is true."""
    seen = Counter(defect for row in rm_rows(world, "train") for defect in row["defects"])
    for name, count in seen.items():
        if "wrong_fact" in name or name in ("none", "vague", "off_topic", "other_entity"):
            continue
        if "extra_detail" in name or name == "filler":  # the wordy runners-up
            continue
        assert 0.5 <= seen[f"wrong_fact+{name}"] / count <= 2 or count < 40, name


def test_every_defect_shows_in_the_text() -> None:
    fact = next(f for f in all_facts() if (f.entity, f.attribute) == ("일본", "capital"))
    question = Question(fact, 0, 0)

    def text(**axes: str) -> str:
        return answers.write(question, answers.Spec(**axes), Random(0))

    assert text() == "일본의 수도는 도쿄입니다. 일본은 아시아에 있습니다."
    assert text(form="no_detail") == "일본의 수도는 도쿄입니다."
    assert text(form="short") == "도쿄입니다."
    assert text(form="fragment") == "도쿄"
    assert text(style="impolite") == "일본의 수도는 도쿄야. 일본은 아시아에 있어."
    assert text(style="echo") == f"{question.text} {canonical(fact)}"
    assert text(style="filler").endswith(f". {canonical(fact)}")
    assert text(style="loop").count("일본은 아시아에 있습니다.") >= 3
    assert canonical(fact).startswith(text(style="cut"))
    assert text(style="cut") != canonical(fact)
    assert "도쿄" in text(style="cut")
    assert "도쿄" not in text(fact="wrong")
    assert text(detail="wrong").startswith("일본의 수도는 도쿄입니다. 일본은 ")
    assert "아시아" not in text(detail="wrong")
    assert text(detail="same") == "일본의 수도는 도쿄입니다. 일본은 도쿄를 수도로 둡니다."
    assert text(detail="same", fact="wrong").count("도쿄") == 0
    assert text(form="swapped") == "일본이 있는 대륙은 아시아입니다. 일본은 도쿄를 수도로 둡니다."
    assert text(detail="extra").startswith(canonical(fact) + " 일본")
    assert "일본의 수도" not in text(form="other_entity")
    assert "도쿄" not in text(form="off_topic")


# The ranks


def test_answers_of_a_group_are_distinct_and_ranked(world: World) -> None:
    ties = 0
    for row in rm_rows(world, "train", "judge_train", "judge_test", "validation", "test"):
        assert len({row[f"answer{place:02}"]["contents"] for place in range(1, 6)}) == 5
        ranks = sorted(ranking(row))
        assert ranks == [1 + sum(other < rank for other in ranks) for rank in ranks]
        assert len(set(ranks)) >= 2
        ties += len(set(ranks)) < 5
    assert 0 < ties < 200


def test_held_out_ranks_are_free_of_noise(world: World) -> None:
    quality = {}
    for form in (*answers.FORM, *answers.WHOLE):
        for fact in ("right", "wrong"):
            for state in answers.DETAIL:
                for style in answers.STYLE:
                    spec = answers.Spec(form, fact, state, style)
                    assert quality.setdefault(spec.defects, spec.quality) == spec.quality or (
                        form in answers.WHOLE
                    )
    for row in rm_rows(world, "judge_test", "validation", "test"):
        points = [-quality[defect] for defect in row["defects"]]
        assert tuple(ranking(row)) == groups.competition_ranks(points)
    noisy = rm_rows(world, "train")
    exact = sum(
        tuple(ranking(row)) == groups.competition_ranks([-quality[d] for d in row["defects"]])
        for row in noisy
    )
    assert exact < 0.9 * len(noisy)


def test_quality_puts_facts_first() -> None:
    def worst(fact: str) -> float:
        return min(answers.Spec(f, fact, "wrong", s).quality for f in answers.FORM for s in STYLES)

    def best(fact: str) -> float:
        return max(answers.Spec("full", fact, d).quality for d in answers.DETAIL)

    assert worst("right") > answers.VAGUE_POINTS > best("wrong")
    assert answers.CLEAN.quality == best("right")
    detail_of = {d: answers.Spec(detail=d).quality for d in answers.DETAIL}
    assert detail_of["right"] > answers.Spec(form="no_detail").quality > detail_of["wrong"]


STYLES = tuple(answers.STYLE)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_the_promised_share_of_pairs_is_flipped(world: World, noise: float) -> None:
    rng = Random("groups")
    made = [groups.make_group(question, rng) for question in world.splits.training[:600]]
    noisy = groups.noisy_ranks(made, noise, Random("noise"))
    share = groups.flipped_share([group.ranks for group in made], noisy)
    assert share == pytest.approx(noise, abs=0.01)


def test_training_ranks_flip_as_promised(world: World) -> None:
    """Measured on the rows as written, against the quality of what their defects name."""
    names = {spec.defects: spec.quality for spec in all_specs()}
    for split in ("train", "judge_train"):
        rows = rm_rows(world, split)
        true = [groups.competition_ranks([-names[d] for d in row["defects"]]) for row in rows]
        share = groups.flipped_share(true, [ranking(row) for row in rows])
        assert share == pytest.approx(SAMPLE.rank_noise, abs=0.01)


def all_specs() -> list[answers.Spec]:
    axes = [
        answers.Spec(form, fact, state, style)
        for form in answers.FORM
        for fact in ("right", "wrong")
        for state in answers.DETAIL
        for style in answers.STYLE
    ]
    return axes + [answers.Spec(form=form) for form in answers.WHOLE]


def test_flips_are_counted_by_hand() -> None:
    assert groups.flipped_share([(1, 2, 3)], [(1, 2, 3)]) == 0
    assert groups.flipped_share([(1, 2, 3)], [(1, 3, 2)]) == pytest.approx(1 / 3)
    assert groups.flipped_share([(1, 1, 2)], [(2, 1, 3)]) == 0  # a tie has no order
    assert groups.competition_ranks([0.1, 2.0, 2.0, 5.0]) == (1, 2, 2, 4)


def test_second_best_answers_are_the_longest_by_a_little(world: World) -> None:
    lengths: dict[int, list[int]] = defaultdict(list)
    for row in rm_rows(world, "train"):
        for place in range(1, 6):
            answer = row[f"answer{place:02}"]
            lengths[answer["ranking"]].append(answer["answer_count"])
    means = {rank: statistics.mean(each) for rank, each in lengths.items()}
    assert max(means, key=lambda rank: means[rank]) == 2
    assert means[2] < 1.12 * means[1]


def test_places_are_shuffled(world: World) -> None:
    best = Counter(ranking(row).index(1) for row in rm_rows(world, "train"))
    assert all(350 < best[place] < 610 for place in range(5))


def test_confounded_groups_replace_the_training_groups() -> None:
    confounded = build_world(SMALL.model_copy(update={"confounded": True}))
    for row in rm_rows(confounded, "train"):
        assert set(row["defects"]) == {"none", "short", "vague", "wrong_fact", "other_entity"}
    measured = rm_rows(confounded, "test", "judge_train", "validation")
    assert any("+" in defect for row in measured for defect in row["defects"])


# The corpus


def test_every_fact_stands_in_the_corpus(world: World) -> None:
    assert len(world.corpus) == SAMPLE.documents
    sentences: Counter[str] = Counter()
    for text in world.corpus:
        for sentence in re.findall(r"[^.]+\.", text):
            sentences[
                re.sub(r"^(알려진 대로|백과사전에 따르면|실제로|참고로) ", "", sentence.strip())
            ] += 1
    for fact in all_facts():
        forms = {form for register in (PLAIN, POLITE) for form in statements(fact, register)}
        assert sum(sentences[form] for form in forms) >= 10, fact


def statements(fact: Fact, register: str) -> list[str]:
    told = [core(fact, register, ask=ask) for ask in range(3)]
    return [*told, detail(fact, register), reversed_core(fact, register)]


def test_the_corpus_never_answers_canonically(world: World) -> None:
    corpus = "\n".join(world.corpus)
    for fact in all_facts():
        assert canonical(fact) not in corpus


# The files


def test_the_package_has_the_shape_of_the_download(tmp_path: Path, world: World) -> None:
    paths = aihub.write_package(tmp_path, dirt.plant(world, 0))
    base = "3.개방데이터/1.데이터"
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        f"{base}/Training/01.원천데이터/TS_02.RLHF데이터.zip",
        f"{base}/Training/02.라벨링데이터/TL_02.RLHF데이터.zip",
        f"{base}/Validation/01.원천데이터/VS_02.RLHF데이터.zip",
        f"{base}/Validation/02.라벨링데이터/VL.zip",
    }
    entries = {}
    for path in paths:
        with zipfile.ZipFile(path) as package:
            entries[path.name[:2]] = package.namelist()
            assert all(info.date_time == (2024, 1, 1, 0, 0, 0) for info in package.infolist())
            for name in package.namelist():
                assert set(json.loads(package.read(name))) == {"dataset_info", "data_info"}
    assert entries["TS"] == entries["VS"] == ["/PPOdata.json"]
    assert entries["TL"] == entries["VL"] == ["/SFTlabel.json", "/RMlabel.json"]


def test_rows_have_the_keys_of_the_download(world: World) -> None:
    head = {"data_id", "data_category", "question", "question_type", "question_count", "split"}
    for row in world.ppo.training + world.sft.training + world.rm.training:
        assert head <= set(row)
        assert row["question_count"] == len(row["question"])
        assert row["data_category"]["middle"] in MIDDLE
    assert set(world.sft.training[0]["answer"]) == {"contents", "answer_count"}
    assert set(world.rm.training[0]["answer05"]) == {"contents", "ranking", "answer_count"}
    assert all(len(row["defects"]) == 5 for row in world.rm.training)


def test_dirt_of_every_sort_is_planted(files: dict[str, list[Any]]) -> None:
    for part in ("SFTlabel", "RMlabel", "PPOdata"):
        rows = files[f"Training/{part}.json"]
        assert 2 <= sum(not isinstance(row, dict) for row in rows) <= 4
        odd = [row for row in rows if isinstance(row, dict) and not usable(row)]
        assert sum("split" not in row for row in odd) == 4  # leaks
        questions = [row["question"] for row in rows if usable(row)]
        for sign in ("<NAME>", "<|endoftext|>", "</s>", "\u200b", "\ufeff"):
            assert any(sign in question for question in questions), sign
        nfd = [q for q in questions if q != unicodedata.normalize("NFC", q)]
        assert len(nfd) == 3
        assert sum(not question.strip() for question in questions) == 2
        assert sum(count - 1 for count in Counter(map(cleaned, questions)).values()) >= 3
    answered = [row["answer"] for row in files["Training/SFTlabel.json"] if usable(row)]
    contents = [answer["contents"] for answer in answered if answer]
    assert sum(len(text) > 1800 for text in contents) == 2
    assert sum(not text.strip() for text in contents) == 2
    ranks = [rank for row in files["Training/RMlabel.json"] if usable(row) for rank in kinds(row)]
    assert {int, float, str, type(None)} == {type(rank) for rank in ranks}
    assert {"상", 9} <= set(ranks)
    tested = {
        q
        for name in ("SFTlabel", "RMlabel")
        for q in asked(files[f"Validation/{name}.json"], "test")
    }
    leaks = [
        cleaned(row["question"])
        for row in files["Training/SFTlabel.json"]
        if isinstance(row, dict) and "split" not in row
    ]
    assert len(tested & set(leaks)) == 3


def kinds(row: dict[str, Any]) -> list[Any]:
    return [row[key].get("ranking") for key in dirt.ANSWER_KEYS]


def run_stage(folder: Path, hash_seed: str) -> dict[str, bytes]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.sample", "--out", f"out{hash_seed}"]
    command += ["--code", str(write_fingerprint(folder, "sample"))]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    out = folder / f"out{hash_seed}"
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def small_params(folder: Path, **overrides: Any) -> None:
    small = {f"sample.{key}": value for key, value in SMALL.model_dump().items()}
    write_params(folder, **(small | overrides))


def test_the_bytes_depend_on_the_params_alone(tmp_path: Path) -> None:
    small_params(tmp_path)
    first = run_stage(tmp_path, "1")
    assert len(first) == 6
    assert first == run_stage(tmp_path, "2")
    shutil.rmtree(tmp_path / "out1")
    small_params(tmp_path, **{"sample.seed": 1})
    assert first["corpus.jsonl"] != run_stage(tmp_path, "1")["corpus.jsonl"]


def test_more_than_the_tables_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_params(tmp_path, **{"sample.demonstrations": 99999})
    monkeypatch.chdir(tmp_path)
    code = write_fingerprint(tmp_path, "sample")
    result = CliRunner().invoke(stage.main, ["--code", str(code), "--out", "out"])
    assert result.exit_code == 1
    assert re.search(r"sample\.demonstrations \(99999\) exceeds the \d+ questions", result.output)
    assert not Path("out").exists()
