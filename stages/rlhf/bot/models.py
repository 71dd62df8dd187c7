"""The models of data/ by name, ready to answer, and the two reward models that score answers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.rlhf.bot.stream import token_ids
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import StageParams
from stages.rlhf.config.models import ModelEntry, SamplingTemperature
from stages.rlhf.korean import clean_line
from stages.rlhf.model.generation import draw_uniforms, generate_all
from stages.rlhf.model.roles import POLICY, Roles
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer
from stages.rlhf.reward.model import RewardModel, load_reward_model

NAMES = ("base", "sft", "ppo")
FOLDERS = {"base": "base", "sft": "sft", "ppo": "ppo/best", "rm": "rm", "judge": "judge"}


def folder_of(name: str, data: Path) -> Path:
    """Where a model is: a key of FOLDERS, below data/."""
    return data / FOLDERS[name]


class BotParams(StageParams):
    """What the bot reads of params.yaml: the entry that data/ was made with."""

    base_model: ModelEntry
    ppo: SamplingTemperature


class Scores(NamedTuple):
    """Of one answer, in standard deviations of SFT's own answers."""

    reward: float  # what PPO maximises, without its penalties
    judge: float


class Bot:
    """Some of base, SFT and PPO on one or two backbones.

    `scored`: with the reward model and the judge. Raises ValueError where a model is missing, or
    was trained on another one than is in data/.
    """

    def __init__(
        self,
        params: BotParams,
        data: Path = Path("data"),
        names: Sequence[str] = NAMES,
        scored: bool = True,
    ) -> None:
        self.params, self.entry, self.data = params, params.base_model, data
        at = {name: folder_of(name, data) for name in FOLDERS}
        self.codec = Codec(load_tokenizer(at["base"]))
        form = self.entry.dtype, self.entry.lora
        bare = load_base(at["base"], *form) if scored or "base" in names else None
        self._holders: dict[str, tuple[Roles, str | None]] = {}
        if bare:
            self._holders["base"] = bare, None
        self.reward_model: RewardModel | None = None
        self.judge: RewardModel | None = None
        parents = {"base": at["base"], "sft": at["sft"]}
        if scored or {"sft", "ppo"} & set(names):
            roles = load_sft(at["base"], at["sft"], *form, bare)
            self._holders["sft"] = roles, roles.reference
            if "ppo" in names:
                check_card(at["ppo"], {**parents, "rm": at["rm"]})
                roles.load(POLICY, at["ppo"])
                self._holders["ppo"] = roles, POLICY
            if scored and bare:
                check_card(at["rm"], parents)
                check_card(at["judge"], {"base": at["base"]})
                self.reward_model = load_reward_model(roles, at["rm"])
                self.judge = load_reward_model(bare, at["judge"])

    def made_at(self, name: str) -> str | None:
        """The commit at which a model was trained, as its stage noted it; None where it has not."""
        file = self.data.parent / "metrics" / "runtime" / "runs" / f"{name}.json"
        if not file.is_file():
            return None
        commit = json.loads(file.read_text(encoding="utf-8")).get("commit")
        return commit and str(commit)[:7]

    def prompt(self, question: str) -> list[int]:
        """Ids of a question as training saw it: one line, NFC, no invisible characters.

        Raises ValueError for an empty question, and for one longer than any it was trained on.
        """
        text = clean_line(question)
        if not text:
            raise ValueError(f"the question {question[:40]!r} is empty; expected some text")
        ids = self.codec.prompt_ids(text)
        most = self.entry.max_prompt_tokens
        if len(ids) > most:
            raise ValueError(
                f"the question {text[:40]!r}... has {len(ids)} tokens in the chat template;"
                f" {self.params.model} reads at most {most} (max_prompt_tokens)"
            )
        return ids

    def stream(self, name: str, prompt: list[int], seed: int | None = None) -> Iterator[int]:
        """Ids of an answer one by one, EOS included; greedy, or sampled from a seed.

        No other model may be used before it has ended.
        """
        holder, role = self._holders[name]
        most = self.entry.max_answer_tokens
        temperature = 0.0 if seed is None else self.params.ppo.temperature
        uniforms = None if seed is None else draw_uniforms(1, most, seed, "ask")
        with holder.use(role) as model:
            yield from token_ids(model, prompt, self.codec, most, temperature, uniforms)

    def greedy(self, name: str, prompts: list[list[int]]) -> list[list[int]]:
        """Ids of a greedy answer to each prompt."""
        holder, role = self._holders[name]
        limits = self.codec, self.entry.max_answer_tokens, self.entry.generate.batch_size
        with holder.use(role) as model:
            return generate_all(model, prompts, *limits)

    def scores(self, prompt: list[int], answer: list[int]) -> Scores | None:
        """None without the two reward models."""
        if self.reward_model is None or self.judge is None:
            return None
        pair = [(prompt, [answer])]
        reward = self.reward_model.corrected_scores(pair, self.codec).item()
        return Scores(reward, self.judge.score(pair, self.codec).mean.item())
