"""Base, SFT and PPO as the bot holds them: the tokens and scores of the stages' own code."""

import json
from pathlib import Path

import pytest

from stages.cli import ask, export
from stages.rlhf.bot.models import FOLDERS, NAMES, Bot
from stages.rlhf.bot.stream import Text
from stages.rlhf.chat import Codec
from stages.rlhf.decoding.generation import draw_uniforms, generate, generate_all
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import load_base, load_sft
from stages.rlhf.reward.model import load_reward_model
from tests.bot_fixtures import opened, write_run
from tests.conftest import naming
from tests.model_fixtures import LORA, at_once
from tests.tokenizer_fixtures import QUESTIONS


def streamed(
    bot: Bot, name: str, prompts: list[list[int]], seeds: list[int] | None = None
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for step in bot.stream(name, prompts, seeds):
        for row, one in step.items():
            found[row].append(one)
    return found


def pieces(codec: Codec, ids: list[int]) -> list[str]:
    text = Text(codec)
    found = [text.add(one) for one in ids]
    return [piece for piece in (*found, text.rest()) if piece]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_model_gives_its_own_answers_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = write_run(tmp_path, monkeypatch, method)
    bot = opened(data)
    prompts = [bot.prompt(question) for question in QUESTIONS]
    bare = load_base(data / "base", "float32", LORA)
    roles = load_sft(data / "base", data / "sft", "float32", LORA)
    roles.load(POLICY, data / "ppo" / "best")
    answers = {}
    for name, holder, role in (
        ("base", bare, None),
        ("sft", roles, roles.reference),
        ("ppo", roles, POLICY),
    ):
        with holder.use(role) as model:
            answers[name] = generate_all(model, prompts, bot.codec, 32, at_once(64))
        assert bot.greedy(name, prompts) == answers[name], name
        assert streamed(bot, name, prompts) == answers[name], name
        assert [streamed(bot, name, [prompt])[0] for prompt in prompts] == answers[name], name
    assert answers["base"] != answers["sft"] != answers["ppo"]
    rm = load_reward_model(roles, data / "rm")
    judge = load_reward_model(bare, data / "judge")
    for prompt, ids in zip(prompts, answers["ppo"], strict=True):
        (found,) = bot.scores([(prompt, ids)]) or (None,)
        assert found is not None
        pair = [(prompt, [ids])]
        assert found.reward == pytest.approx(rm.corrected_scores(pair, bot.codec).item(), abs=1e-4)
        assert found.judge == pytest.approx(judge.score(pair, bot.codec).mean.item(), abs=1e-4)


def test_a_sampled_answer_depends_on_its_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("ppo",), scored=False)
    prompt = bot.prompt(QUESTIONS[5])
    answers = [streamed(bot, "ppo", [prompt], [seed])[0] for seed in range(8)]
    assert len({tuple(answer) for answer in answers}) > 1
    together = streamed(bot, "ppo", [bot.prompt(QUESTIONS[0])] + [prompt] * 8, [9, *range(8)])
    assert together[1:] == answers
    assert len({len(answer) for answer in answers}) > 2  # rows leave the batch at different steps
    holder, role = bot._holder("ppo")
    with holder.use(role) as model:
        temperature = bot.params.ppo.temperature
        uniforms = draw_uniforms(1, 32, 1, "ask")
        expected = generate(model, [prompt], bot.codec, 32, temperature, uniforms)
    assert [answers[1]] == expected
    assert bot.scores([(prompt, answers[0])]) is None


def test_answers_are_sampled_with_each_passage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("ppo",), scored=False)
    question, passages = QUESTIONS[5], ("서울이다.", "부산이다.")
    tries = bot.tries("ppo", question, passages, 3)
    found = list(tries)
    assert len(found) == 6
    assert found == list(bot.tries("ppo", question, passages, 3))
    holder, role = bot._holder("ppo")
    prompts = [bot.prompt(question, (passages[1],))] * 3
    with holder.use(role) as model:
        uniforms = draw_uniforms(3, 32, bot.params.seed, "ask", "again")
        expected = generate(model, prompts, bot.codec, 32, bot.params.ppo.temperature, uniforms)
    assert found[3:] == [bot.codec.text(ids) for ids in expected]
    assert len(set(found[3:])) > 1


def test_pieces_of_text_are_whole_characters_and_together_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = opened(write_run(tmp_path, monkeypatch), names=("base",), scored=False).codec
    text = "값은 1,947m입니다. 🙂\n\n  끝"
    parts = pieces(codec, codec.response_ids(text))
    assert len(parts) > 10
    assert not any("\ufffd" in part for part in parts)
    assert "".join(parts) == text
    broken = codec.response_ids("값")[:-2]  # cut off within a character
    assert "".join(pieces(codec, broken)) == codec.text(broken)
    assert "\ufffd" in codec.text(broken)
    assert "".join(pieces(codec, [codec.eos_id])) == ""


def test_questions_are_cleaned_as_training_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("base",), scored=False)
    right = bot.prompt("서울은?")
    for same in (" 서울은?\n", "서울은?\u200b", "\u1109\u1165울은?"):
        assert bot.prompt(same) == right
    special = bot.prompt("<eos> <bos>?")
    assert special.count(bot.codec.eos_id) == 0
    assert special.count(bot.codec.tokenizer.bos_token_id) == 1
    for empty in ("", " \n", "\u200b", "\x00\x07"):
        with pytest.raises(ValueError, match="empty"):
            bot.prompt(empty)
    with pytest.raises(ValueError, match=naming("micro", "max_prompt_tokens", 64)):
        bot.prompt("가" * 100_000)


def test_what_is_missing_or_of_another_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_run(tmp_path, monkeypatch)
    card = data / "ppo" / "best" / "model.json"
    told = json.loads(card.read_text())
    card.write_text(json.dumps({**told, "sft_sha256": "0"}))
    with pytest.raises(ValueError, match=naming("ppo/best/model.json", "sft_sha256")):
        opened(data)
    card.unlink()
    with pytest.raises(ValueError, match=naming("ppo/best/model.json", "no such file")):
        opened(data)
    opened(data, names=("sft",))  # needs none of it
    (data / "judge" / "model.json").unlink()
    with pytest.raises(ValueError, match=naming("judge/model.json")):
        opened(data, names=("sft",))
    opened(data, names=("sft",), scored=False)


def test_the_commit_is_that_of_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("base",), scored=False)
    assert bot.made_at("ppo") is None
    runs = tmp_path / "metrics" / "runtime" / "runs"
    runs.mkdir(parents=True)
    (runs / "ppo.json").write_text('{"commit": "0123456789"}')
    assert bot.made_at("ppo") == "0123456"
    (runs / "ppo.json").write_text('{"commit": null}')
    assert bot.made_at("ppo") is None


def test_the_commands_offer_what_there_is() -> None:
    assert ask.MODELS == NAMES
    choices = next(p for p in export.main.params if p.name == "name").type
    assert [*choices.choices] == [name for name in FOLDERS if name != "judge"]
