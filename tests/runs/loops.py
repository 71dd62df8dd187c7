"""Each loop that keeps checkpoints, small: what it comes to, by one process or by several."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages import sft
from stages.rlhf import files
from stages.rlhf.chat import Codec
from stages.rlhf.config.models import Pretraining
from stages.rlhf.decoding.generation import draw_uniforms, generate_all
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.ppo.trainer import PpoTrainer
from stages.rlhf.precision import device
from stages.rlhf.records import PromptRow, write_jsonl
from stages.rlhf.reward.groups import prompts_with_responses
from stages.rlhf.reward.training import train
from stages.rlhf.runs import checkpoints, sharding
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.train.pretraining import Example, new_llama, pretrain
from tests.model_fixtures import (
    ARCHITECTURE,
    IDS,
    at_once,
    keep,
    no_validation,
    ppo_knobs,
    ppo_settings,
    random_reward_model,
    save_base,
    save_models,
    sft_roles,
    tiny_llama,
)
from tests.reward_fixtures import GROUPS, knobs, reward_model, settings
from tests.sft_fixtures import GROUPS as RANKED
from tests.sft_fixtures import ROWS, STRANGERS, micro, rank1
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

CODEC = Codec(tiny_tokenizer())
Result = dict[str, Any]
Run = Callable[..., Result]  # of a folder, and of a process group


def pretrained(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """Three steps on documents of 8 to 12 tokens, three with lessons; of 8 rows or 4."""
    torch.manual_seed(0)
    model = new_llama(ARCHITECTURE, IDS, max_length=40).to(device())
    rows = [[1, *(3 + (start + i) % 20 for i in range(6 + start % 5)), 2] for start in range(20)]
    documents, lessons = [Example(row) for row in rows], [Example(row, 4) for row in rows]
    steps = Pretraining(steps=3, batch_size=8, learning_rate=3e-2)
    held = Checkpointer(folder / "x", group)
    losses = pretrain(
        model, documents, 0, steps, random.Random(0), checkpointer=held, lessons=[lessons]
    )
    return {
        "losses": losses.documents,
        "lessons": losses.lessons[steps.steps :],
        **model.state_dict(),
    }


def members(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """Two reward models with length heads, and their scores; a step has 2 groups."""
    return _reward_models(folder, group, members=2, batch_size=2)


def short_batch(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """One with a length head; an epoch has a step of 4 groups and one of 1."""
    return _reward_models(folder, group, members=1, batch_size=4)


def _reward_models(folder: Path, group: ProcessGroup, members: int, batch_size: int) -> Result:
    if group.is_main:  # transformers writes in the main process alone
        save_models(folder / "models", "full")
    group.any(False)  # until they are written
    model = reward_model(folder / "models", members=members)
    model.group = group
    now = settings(batch_size=batch_size)
    rm = knobs(members=members, odin_coef=0.1)
    work = folder / "work"
    figures = train(model, GROUPS, GROUPS[:3], rm, now, CODEC, "tests", work=work)
    found: Result = {"figures": figures}
    for member in model.members:
        found |= checkpoints.add_prefix(f"{member.name}.", model.roles.state(member.name))
        found |= checkpoints.add_prefix(f"{member.name}.head.", member.head.state_dict())
    return found | {"scores": model.raw_scores(prompts_with_responses(GROUPS), CODEC)}


def answers(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """Sampled two at a time."""
    model = tiny_llama(len(CODEC.tokenizer)).to(device())
    if sharding.wanted():
        sharding.shard(model.requires_grad_(False), decoder_of(model), device())
    prompts = [CODEC.prompt_ids(question) for question in QUESTIONS]
    draws = draw_uniforms(len(prompts), 8, "tests")
    held = Checkpointer(folder / "x", group)
    return {"ids": generate_all(model, prompts, CODEC, 8, at_once(2), 1.0, draws, held)}


def optimised(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
    """PPO with a value model: steps of 8 rows in micro-batches of one or two, decoded 3 at once."""
    if group.is_main:
        save_models(folder / "models", "lora")
    group.any(False)  # until they are written
    model = random_reward_model(sft_roles(folder / "models", "lora"), members=1)
    rows = [PromptRow(id=str(i), question=question) for i, question in enumerate(QUESTIONS)]
    knobs, scale = ppo_knobs(value_warmup=1, evaluate_every=1), ppo_settings(updates=3)
    given = (knobs, scale, 8, at_once(3), 0, folder / "work", group)
    trainer = PpoTrainer(model.roles, model, CODEC, rows, *given)
    trainer.train(no_validation, keep(0), folder / "updates")
    found: Result = {"updates": trainer.progress.updates}
    for role in trainer.model.optimizers:
        found |= checkpoints.add_prefix(f"{role}.", trainer.roles.state(role))
    return found


def tuned(method: str, both: bool) -> Run:
    """SFT in three epochs of two steps, and in two more on ranked answers where `both`."""

    def run(folder: Path, group: ProcessGroup = SINGLE_PROCESS) -> Result:
        if group.is_main and not (folder / "base").exists():
            save_base(folder / "base")
            write_jsonl(folder / "rows" / "train.jsonl", ROWS)
            write_jsonl(folder / "rows" / "validation.jsonl", STRANGERS)
            write_jsonl(folder / "groups.jsonl", RANKED)
        group.any(False)  # until they are written
        params = micro(method=method, epochs=3, learning_rate=0.02)
        torch.manual_seed(0)
        places = [folder / name for name in ("base", "rows", "groups.jsonl", "sft", "work")]
        given = rank1(params, epochs=2) if both else params
        figures = sft.train(given, *places, process_group=group)
        group.any(False)
        made = folder / "sft"
        return {
            "figures": figures,
            **{name: files.file_hash(made / name) for name in files.files_of(made)},
        }

    return run


RUNS: dict[str, Run] = {
    "pretraining": pretrained,
    "members": members,
    "short batch": short_batch,
    "answers": answers,
    "ppo": optimised,
    "sft full": tuned("full", both=False),
    "sft lora": tuned("lora", both=False),
    "sft on both": tuned("lora", both=True),
}
