"""Base, SFT and PPO as the bot holds them: the tokens and scores of the stages' own code."""

import json
from pathlib import Path

import pytest

from stages.cli import ask, export
from stages.rlhf.bot.models import FOLDERS, NAMES
from stages.rlhf.bot.stream import text_pieces
from stages.rlhf.model.generation import draw_uniforms, generate, generate_all
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import load_base, load_sft
from stages.rlhf.reward.model import load_reward_model
from tests.bot_fixtures import opened, write_run
from tests.conftest import naming
from tests.model_fixtures import LORA
from tests.tokenizer_fixtures import QUESTIONS


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
            answers[name] = generate_all(model, prompts, bot.codec, 32, 64)
        assert bot.greedy(name, prompts) == answers[name], name
        assert [list(bot.stream(name, prompt)) for prompt in prompts] == answers[name], name
    assert answers["base"] != answers["sft"] != answers["ppo"]
    rm = load_reward_model(roles, data / "rm")
    judge = load_reward_model(bare, data / "judge")
    for prompt, ids in zip(prompts, answers["ppo"], strict=True):
        found = bot.scores(prompt, ids)
        assert found is not None
        pair = [(prompt, [ids])]
        assert found.reward == pytest.approx(rm.corrected_scores(pair, bot.codec).item(), abs=1e-4)
        assert found.judge == pytest.approx(judge.score(pair, bot.codec).mean.item(), abs=1e-4)


def test_a_sampled_answer_depends_on_its_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot = opened(write_run(tmp_path, monkeypatch), names=("ppo",), scored=False)
    prompt = bot.prompt(QUESTIONS[5])
    answers = [list(bot.stream("ppo", prompt, seed)) for seed in (0, 1, 2, 0)]
    assert answers[0] == answers[3]
    assert len({tuple(answer) for answer in answers}) > 1
    holder, role = bot._holders["ppo"]
    with holder.use(role) as model:
        temperature = bot.params.ppo.temperature
        uniforms = draw_uniforms(1, 32, 1, "ask")
        expected = generate(model, [prompt], bot.codec, 32, temperature, uniforms)
    assert [answers[1]] == expected
    assert bot.scores(prompt, answers[0]) is None


def test_pieces_of_text_are_whole_characters_and_together_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = opened(write_run(tmp_path, monkeypatch), names=("base",), scored=False).codec
    text = "값은 1,947m입니다. 🙂\n\n  끝"
    ids = codec.response_ids(text)
    pieces = list(text_pieces(ids, codec))
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    broken = codec.response_ids("값")[:-2]  # cut off within a character
    assert "".join(text_pieces(broken, codec)) == codec.text(broken)
    assert "\ufffd" in codec.text(broken)
    assert list(text_pieces([codec.eos_id], codec)) == []


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
