"""The models of data/ by name, ready to answer, and the two reward models that score answers."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from stages.rlhf.bot.stream import token_ids
from stages.rlhf.chat import Codec, fitting, message
from stages.rlhf.config.base import StageParams
from stages.rlhf.config.models import ModelEntry, SamplingTemperature
from stages.rlhf.config.preprocess import RagConfig
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.korean import clean_line
from stages.rlhf.model.roles import POLICY, Roles
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer
from stages.rlhf.retrieval.passages import has_library
from stages.rlhf.reward.model import RewardModel, load_reward_model

if TYPE_CHECKING:
    from stages.rlhf.retrieval.library import Library

Tries = Callable[[Sequence[str], int], Iterable[str]]  # n answers with each of the passages alone

NAMES = ("base", "sft", "ppo")
FOLDERS = {"base": "base", "sft": "sft", "ppo": "ppo/best", "rm": "rm", "judge": "judge"}


def folder_of(name: str, data: Path) -> Path:
    """Where a model is: a key of FOLDERS, below data/."""
    return data / FOLDERS[name]


class BotParams(StageParams):
    """What the bot reads of params.yaml: the entry that data/ was made with."""

    base_model: ModelEntry
    ppo: SamplingTemperature
    rag: RagConfig


class Passages:
    """Finds the passages that a question is shown with, as stage `index` gave them to rows."""

    def __init__(self, library: "Library", rag: RagConfig, codec: Codec) -> None:
        from stages.rlhf.evidence import grounding  # else nobody waits for it

        self.library, self.rag, self.codec, self._grounding = library, rag, codec, grounding

    def __call__(self, question: str) -> tuple[str, ...]:
        """Their texts, best first."""
        found = self.library.find(clean_line(question), self.rag.passages)
        texts = [self.library.texts[i] for i in found]
        return tuple(texts[: fitting(texts, self._tokens, self.rag.passage_tokens)])

    def source(self, question: str, passages: Sequence[str], answer: str) -> int | None:
        """The number of the passage that states the answer; None if no one does."""
        return self._grounding.source(self.library.support, clean_line(question), passages, answer)

    def checked(self, question: str, passages: Sequence[str], answer: str, tries: Tries) -> str:
        """The answer if a passage states it, else the most frequent other that is, else a refusal.

        Others are made where they are wanted.
        """
        support, line, check = self.library.support, clean_line(question), self._grounding
        others = tries(check.about(support, line, passages), check.TRIES)
        return check.stated(support, line, passages, answer, others)

    def _tokens(self, text: str) -> int:
        return len(self.codec.response_ids(text)) - 1  # but EOS


class Scores(NamedTuple):
    """Of one answer, in standard deviations of SFT's own answers."""

    reward: float  # what PPO maximises, without its penalties
    judge: float


class Bot:
    """Some of base, SFT and PPO on one or two backbones, each loaded when it is first needed.

    `scored`: with the reward model and the judge. Raises ValueError at once where a model is
    missing, or was trained on another one than is in data/.
    """

    def __init__(
        self,
        params: BotParams,
        data: Path = Path("data"),
        names: Sequence[str] = NAMES,
        scored: bool = True,
    ) -> None:
        self.params, self.entry, self.data, self.scored = params, params.base_model, data, scored
        self._at = {name: folder_of(name, data) for name in FOLDERS}
        self._form = self.entry.dtype, self.entry.lora
        base, sft, rm = (self._at[name] for name in ("base", "sft", "rm"))
        self.codec = Codec(load_tokenizer(base))
        self._full = False  # whether SFT is a model of its own, not an adapter
        if scored or {"sft", "ppo"} & set(names):
            self._full = check_card(sft, {"base": base})["method"] == "full"
        if "ppo" in names:
            check_card(self._at["ppo"], {"base": base, "sft": sft, "rm": rm})
        if scored:
            check_card(rm, {"base": base, "sft": sft})
            check_card(self._at["judge"], {"base": base})

    @cached_property
    def _bare(self) -> Roles:
        """The base model, and SFT's backbone where SFT is an adapter."""
        return load_base(self._at["base"], *self._form)

    @cached_property
    def _trained(self) -> Roles:
        """SFT, ready for further adapters."""
        bare = None if self._full else self._bare
        return load_sft(self._at["base"], self._at["sft"], *self._form, bare)

    @cached_property
    def _ppo(self) -> Roles:
        """The same, with PPO's adapter."""
        self._trained.load(POLICY, self._at["ppo"])
        return self._trained

    @cached_property
    def reward_model(self) -> RewardModel | None:
        """What PPO maximised, without its penalties; None unless `scored`."""
        return load_reward_model(self._trained, self._at["rm"]) if self.scored else None

    @cached_property
    def judge(self) -> RewardModel | None:
        """The second reward model; None unless `scored`."""
        return load_reward_model(self._bare, self._at["judge"]) if self.scored else None

    def passages(self, wanted: bool | None) -> Passages | None:
        """What finds passages for questions; None where `wanted` is False.

        `wanted` None: where stage `index` has indexed any. Raises ValueError where True finds none.
        """
        folder = self.data / "index"
        if wanted is False or (wanted is None and not has_library(folder)):
            return None
        from stages.rlhf.retrieval.library import Library  # else nobody waits for it

        return Passages(Library.load(folder, self.data / "embedder"), self.params.rag, self.codec)

    def load(self, names: Sequence[str]) -> None:
        """Load these and the reward models now, so that nobody waits for it later."""
        for name in names:
            self._holder(name)
        _ = self.reward_model, self.judge

    def _holder(self, name: str) -> tuple[Roles, str | None]:
        """The backbone and the role of a model."""
        if name == "base":
            return self._bare, None
        if name == "sft":
            return self._trained, self._trained.reference
        return self._ppo, POLICY

    def made_at(self, name: str) -> str | None:
        """The commit at which a model was trained, as its stage noted it; None where it has not."""
        file = self.data.parent / "metrics" / "runtime" / "runs" / f"{name}.json"
        if not file.is_file():
            return None
        commit = json.loads(file.read_text(encoding="utf-8")).get("commit")
        return commit and str(commit)[:7]

    def prompt(self, question: str, passages: Sequence[str] = ()) -> list[int]:
        """Ids of a question as training saw it: one line, NFC, no invisible characters.

        With passages, they are shown after it, numbered from 1.
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
        return self.codec.prompt_ids(message(text, passages)) if passages else ids

    def stream(
        self, name: str, prompts: list[list[int]], seeds: Sequence[int] | None = None
    ) -> Generator[dict[int, int]]:
        """Ids of an answer to each prompt, step by step: {index of the prompt: id}, EOS included.

        Greedy, or sampled from a seed per prompt, whatever else is in the batch. No other model
        may be used before it has ended.
        """
        holder, role = self._holder(name)
        most = self.entry.max_answer_tokens
        temperature = 0.0 if seeds is None else self.params.ppo.temperature
        uniforms = None
        if seeds is not None:
            uniforms = torch.cat([draw_uniforms(1, most, seed, "ask") for seed in seeds])
        with holder.use(role) as model:
            yield from token_ids(model, prompts, self.codec, most, temperature, uniforms)

    def greedy(self, name: str, prompts: list[list[int]]) -> list[list[int]]:
        """Ids of a greedy answer to each prompt."""
        holder, role = self._holder(name)
        alone = self.entry.generate.model_copy(update={"engine": "koqa"})  # of others in the batch
        limits = self.codec, self.entry.max_answer_tokens, alone
        with holder.use(role) as model:
            return generate_all(model, prompts, *limits)

    def tries(self, name: str, question: str, passages: Sequence[str], n: int) -> Iterator[str]:
        """n answers to the question with each passage alone, sampled; made as they are taken."""
        from stages.rlhf.reward.best_of_n import sample

        holder, role = self._holder(name)
        alone = self.entry.generate.model_copy(update={"engine": "koqa"})
        limits = self.codec, self.entry.max_answer_tokens, alone
        temperature, seed = self.params.ppo.temperature, (self.params.seed, "ask", "again")
        for passage in passages:
            prompt = self.prompt(question, (passage,))
            with holder.use(role) as model:
                ((_, found),) = sample(model, [prompt], n, *limits, temperature, *seed)
            yield from map(self.codec.text, found)

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scores] | None:
        """Of (prompt, answer) pairs; None without the two reward models."""
        if self.reward_model is None or self.judge is None:
            return None
        prompts = [(prompt, [answer]) for prompt, answer in pairs]
        rewards = self.reward_model.corrected_scores(prompts, self.codec).tolist()
        judged = self.judge.score(prompts, self.codec).mean.tolist()
        return [Scores(*both) for both in zip(rewards, judged, strict=True)]
