"""What else PPO's samples, reward and prompts can be used for, or the ranks alone, beside PPO.

    python -m tests.benchmarks.rl_rivals          # writes metrics/tables/rl_rivals.csv

All start from the default run's SFT and answer its test questions greedily, but for the second:
    best of 8   of SFT's samples the one with PPO's reward highest
    RAFT        two rounds: samples to PPO's prompts, SFT on each prompt's best by PPO's reward; as
                many samples as PPO takes (Dong et al. 2023, arXiv 2304.06767)
    DPO         on pairs of ranked answers, a group's best and another one, as many as PPO takes
                samples (Rafailov et al. 2023, arXiv 2305.18290; TRL's DPOTrainer)
Both train all weights, as SFT does, and take the learning rate that is best on validation. Needs
the default run in data/.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from trl import DPOConfig, DPOTrainer

from stages import ppo as stage
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.config.whole import Params, load_params
from stages.rlhf.decoding.generation import generate_all, to_response
from stages.rlhf.evidence.evidence import Evidence
from stages.rlhf.measure.text import text_values
from stages.rlhf.measure.win_rate import mean_and_interval
from stages.rlhf.model.roles import POLICY
from stages.rlhf.model.store import load_causal_lm, load_sft, load_tokenizer
from stages.rlhf.ppo.reward import Penalties
from stages.rlhf.ppo.rollout import Prompt, prompt_batch, prompt_of, score_responses
from stages.rlhf.ppo.validation import reference_metrics
from stages.rlhf.records import PromptRow, Response, RmRow, SftRow, read_rows, subset
from stages.rlhf.reward.best_of_n import sample
from stages.rlhf.reward.model import PromptWithResponses, load_reward_model
from stages.rlhf.runs.process_group import SINGLE_PROCESS, BatchShard
from stages.rlhf.runtime import derive_seed
from stages.rlhf.train.sft_trainer import Phase, encoded, fit
from tests.conftest import ROOT

DATA = ROOT / "data"
BEST_OF, ROUNDS = 8, 2
RAFT_RATES = (2e-3, 5e-4, 1e-4, 2e-5)
DPO_RATES = (5e-4, 1e-4, 2e-5)
SHOWN = ("exact", "contains", "wrong_fact_rate", "chrf")


Sampled = list[PromptWithResponses]


class World:
    """The default run's models, rows and reward."""

    def __init__(self, params: Params) -> None:
        base_model = params.base_model
        if base_model.sft.method != "full":
            raise ValueError(f"sft.method is {base_model.sft.method}; expected full")
        self.params, self.model = params, base_model
        roles = load_sft(DATA / "base", DATA / "sft", base_model.dtype, base_model.lora)
        self.roles, self.reward_model = roles, load_reward_model(roles, DATA / "rm")
        self.codec = Codec(load_tokenizer(DATA / "base"))
        rows = DATA / "rows"
        seed = derive_seed(params.seed, "validation")
        held = read_rows(rows / "sft" / "validation.jsonl", SftRow)
        self.validation = subset(held, params.validation_rows, seed)
        self.test = read_rows(rows / "sft" / "test.jsonl", SftRow)
        self.groups = read_rows(rows / "rm" / "train.jsonl", RmRow)
        prompts = read_rows(rows / "ppo" / "train.jsonl", PromptRow)
        self.prompts = [prompt_of(row, self.codec) for row in prompts]
        check = stage.corpus_check(
            base_model.ppo.corpus_check, DATA / "preprocess" / "corpus.jsonl"
        )
        self.evidence = Evidence(check)

    @property
    def limits(self) -> tuple[Codec, int, GenerationScale]:
        """What decoding is given."""
        model = self.model
        return self.codec, model.max_answer_tokens, model.generate

    @property
    def samples(self) -> int:
        """That PPO takes."""
        return self.model.ppo.updates * self.model.ppo.batch_size

    def rewards(self, prompts: list[Prompt], responses: list[list[int]]) -> torch.Tensor:
        """(B,) of PPO, without its KL."""
        ppo, rows = self.params.ppo, [list(range(len(prompts)))]
        found = score_responses(
            self.reward_model,
            prompts,
            responses,
            self.codec,
            ppo,
            Penalties(ppo.missing_eos_penalty, ppo.repetition_penalty, ppo.copy_penalty),
            BatchShard.of(SINGLE_PROCESS, rows),
            self.evidence,
            self.model.ppo.corpus_check,
        )
        return found.total

    def sampled(self, model: Any, prompts: Sequence[Prompt], n: int, *seed: object) -> Sampled:
        """n samples to each prompt."""
        ids = [prompt.ids for prompt in prompts]
        temperature = self.params.ppo.temperature
        return sample(model, ids, n, *self.limits, temperature, self.params.seed, *seed)

    def best(self, prompts: Sequence[Prompt], sampled: Sampled) -> list[list[int]]:
        """Of the samples to each prompt the one with the highest reward; outside any role."""
        n = len(sampled[0][1])
        asked = [prompt for prompt in prompts for _ in range(n)]
        responses = [answer for _, own in sampled for answer in own]
        chosen = self.rewards(asked, responses).view(-1, n).argmax(-1).tolist()
        return [own[i] for (_, own), i in zip(sampled, chosen, strict=True)]

    def greedy(self, model: Any, rows: Sequence[SftRow]) -> list[Response]:
        """Answers to the rows' questions."""
        prompts = [self.codec.prompt_ids(row.question) for row in rows]
        return [to_response(ids, self.codec) for ids in generate_all(model, prompts, *self.limits)]


def raft(world: World, rate: float) -> Any:
    """SFT's model after both rounds."""
    params = with_rate(world.params, rate)
    model = load_causal_lm(DATA / "sft", world.model.dtype)
    answers = world.params.ppo.answers_per_prompt
    count = world.samples // answers // ROUNDS
    held = encoded(world.validation, world.codec)
    for number in range(ROUNDS):
        prompts = prompt_batch(world.prompts, number, count, params.seed)
        model.eval()
        best = world.best(prompts, world.sampled(model, prompts, answers, "raft", number))
        rows = [
            SftRow(id=str(i), question=prompt.question, answer=world.codec.text(ids))
            for i, (prompt, ids) in enumerate(zip(prompts, best, strict=True))
            if ids[-1] == world.codec.eos_id
        ]
        phase = Phase(rows, 1, derive_seed(params.seed, "raft", number))
        model.requires_grad_(True)
        with tempfile.TemporaryDirectory() as folder:
            fit(model, world.codec, params, phase, held, Path(folder))
    return model.eval()


class IdsTrainer(DPOTrainer):
    """Reads ids, so that only `chat` turns text into them."""

    def _prepare_dataset(self, dataset: Dataset, *given: Any, **named: Any) -> Dataset:
        return dataset


def dpo(world: World, rate: float) -> Any:
    """SFT's model after one pass over the pairs."""
    codec, sft = world.codec, world.model.sft
    rng = random.Random(derive_seed(world.params.seed, "dpo"))
    pairs = []
    for group in rng.sample(world.groups, min(world.samples, len(world.groups))):
        best = group.ranks[group.best]
        worse = [a for a, rank in zip(group.answers, group.ranks, strict=True) if rank > best]
        if worse:
            pairs.append(
                {
                    "prompt_ids": codec.prompt_ids(group.question),
                    "chosen_ids": codec.response_ids(group.best_answer),
                    "rejected_ids": codec.response_ids(rng.choice(worse)),
                }
            )
    model = load_causal_lm(DATA / "sft", world.model.dtype)
    model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=0.1,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=len(pairs) // sft.batch_size // 10,
            num_train_epochs=1,
            per_device_train_batch_size=sft.batch_size,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            max_length=None,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
            seed=derive_seed(world.params.seed, "dpo") % 2**32,
        )
        trainer = IdsTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=codec.tokenizer,
        )
        trainer.train()
    return model.eval()


def with_rate(params: Params, rate: float) -> Any:
    """The params with another learning rate of SFT."""
    sft = params.base_model.sft.model_copy(update={"learning_rate": rate})
    entry = params.base_model.model_copy(update={"sft": sft})
    return params.model_copy(update={"models": {**params.models, params.model: entry}})


def tuned(
    world: World, train: Callable[[World, float], Any], rates: Sequence[float]
) -> tuple[float, Any]:
    """The model of the rate that is best on validation, by what chooses PPO's update."""
    made = []
    for rate in rates:
        model = train(world, rate)
        found = reference_metrics(world.greedy(model, world.validation), world.validation)
        print(f"  {train.__name__} {rate:g}: {found}", flush=True)
        made.append((found["chrf_valid"], rate, model))
    _, rate, model = max(made, key=lambda each: each[0])
    return rate, model


def answers(world: World) -> dict[str, list[Response]]:
    """Of every side, to the test questions."""
    found = {}
    with world.roles.use(world.roles.reference) as sft:
        found["SFT"] = world.greedy(sft, world.test)
        asked = [prompt_of(row, world.codec) for row in world.test]
        sampled = world.sampled(sft, asked, BEST_OF, "rivals", "best")
    best = world.best(asked, sampled)
    found[f"best of {BEST_OF}"] = [to_response(ids, world.codec) for ids in best]
    for name, train, rates in (("RAFT", raft, RAFT_RATES), ("DPO", dpo, DPO_RATES)):
        rate, model = tuned(world, train, rates)
        found[f"{name}, rate {rate:g}"] = world.greedy(model, world.test)
    world.roles.load(POLICY, DATA / "ppo" / "best")
    with world.roles.use(POLICY) as policy:
        found["PPO"] = world.greedy(policy, world.test)
    return found


def table(
    values: dict[str, pd.DataFrame], kinds: NDArray[np.str_], resamples: int, seed: int
) -> pd.DataFrame:
    """(N, metrics) by side, the kinds of the N questions -> a row by side and kind."""
    rows = []
    for side, own in values.items():
        for kind in dict.fromkeys(kinds):
            at = kinds == kind
            row = {"side": side, "kind": kind, "questions": int(at.sum())}
            row |= {key: float(np.nanmean(own[key][at])) for key in SHOWN}
            gap = (values["PPO"]["exact"][at] - own["exact"][at]).to_numpy(dtype=np.float64)
            row |= mean_and_interval("exact_ppo_gain", gap, resamples, seed, "no questions")
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Train, answer, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "metrics" / "tables" / "rl_rivals.csv")
    given = parser.parse_args()
    params = load_params()
    runtime.start(params.threads, params.seed, "rl_rivals")
    world = World(params)
    said = answers(world)
    values = {side: pd.DataFrame(text_values(own, world.test)) for side, own in said.items()}
    kinds = np.array([row.kind for row in world.test])
    found = table(values, kinds, params.evaluate.resamples, derive_seed(params.seed, "rl_rivals"))
    found.to_csv(given.out, index=False, float_format="%.6g", lineterminator="\n")
    print(found.to_string())


if __name__ == "__main__":
    main()
