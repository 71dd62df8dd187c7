"""What is compared on test: every model's responses, scored by the reward model and the judge."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.rlhf.chat import Codec
from stages.rlhf.config.measure import EvaluateParams
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding.generation import generate_all, to_response
from stages.rlhf.model.roles import POLICY, Roles
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer
from stages.rlhf.records import Response
from stages.rlhf.reward.best_of_n import best_of_n_indices, sample
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup

Limits = tuple[Codec, int, GenerationScale]  # with the most new tokens


class Generations(NamedTuple):
    """By model (base, sft, ppo, best_of_n): a response per question, and its scores."""

    responses: dict[str, list[Response]]
    scores: dict[str, list[float]]
    judge_scores: dict[str, list[float]]
    temperature: float  # of the judge's calibration
    roles: Roles  # SFT and PPO on their backbone
    bare: Roles  # the base model


def generate(
    params: EvaluateParams,
    paths: Mapping[str, Path],
    messages: Sequence[str],
    lap: Callable[[str], None],
    work: Path,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Generations:
    """Greedy responses of base, SFT and PPO, best-of-n of SFT's samples; all of them scored.

    `lap(phase)` is called when a phase ends. Raises ValueError where a model was trained on others.
    """
    base_model = params.base_model
    parents = {"base": paths["base"], "sft": paths["sft"]}
    check_card(paths["rm"], parents)
    check_card(paths["ppo"], {**parents, "rm": paths["rm"]})
    check_card(paths["judge"], {"base": paths["base"]})
    codec = Codec(load_tokenizer(paths["base"]))
    prompts = [codec.prompt_ids(message) for message in messages]
    limits = codec, base_model.max_answer_tokens, base_model.generate
    bare = load_base(paths["base"], base_model.dtype, base_model.lora)
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, bare)
    roles.load(POLICY, paths["ppo"])
    responses = _greedy(bare, roles, prompts, limits, work, group)
    with roles.use(roles.reference) as model:
        sampled = sample(
            model,
            prompts,
            params.evaluate.best_of,
            *limits,
            params.ppo.temperature,
            params.seed,
            "evaluate",
            "best_of_n",
            checkpointer=Checkpointer(work / "best_of_n", group),
        )
    lap("generate")
    reward_model = load_reward_model(roles, paths["rm"], group)
    best = best_of_n_indices(reward_model, sampled, codec).tolist()
    responses["best_of_n"] = [own[i] for (_, own), i in zip(sampled, best, strict=True)]
    judge = load_reward_model(bare, paths["judge"], group)
    assert judge.calibration is not None, "stage judge calibrates what it saves"
    scores, judge_scores = {}, {}
    for name, ids in responses.items():
        pairs = [(prompt, [response]) for prompt, response in zip(prompts, ids, strict=True)]
        scores[name] = reward_model.corrected_scores(pairs, codec).tolist()
        judge_scores[name] = judge.score(pairs, codec).mean.tolist()
    lap("score")
    return Generations(
        {name: [to_response(one, codec) for one in ids] for name, ids in responses.items()},
        scores,
        judge_scores,
        judge.calibration.temperature,
        roles,
        bare,
    )


def greedy(
    params: EvaluateParams,
    base: Path,
    loaded: Generations,
    messages: Sequence[str],
    work: Path,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, list[Response]]:
    """Greedy responses to other messages, of base, SFT and PPO as `generate` has loaded them."""
    prompts, limits = _prompts(params, base, messages)
    found = _greedy(loaded.bare, loaded.roles, prompts, limits, work, group)
    return {name: [to_response(one, limits[0]) for one in ids] for name, ids in found.items()}


def again(
    params: EvaluateParams,
    base: Path,
    loaded: Generations,
    messages: Sequence[str],
    tries: int,
    work: Path,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[list[Response]]:
    """So many responses of PPO to each of other messages, sampled."""
    prompts, limits = _prompts(params, base, messages)
    temperature, seed = params.ppo.temperature, (params.seed, "evaluate", "again")
    steps = Checkpointer(work, group)
    with loaded.roles.use(POLICY) as model:
        found = sample(model, prompts, tries, *limits, temperature, *seed, checkpointer=steps)
    return [[to_response(ids, limits[0]) for ids in own] for _, own in found]


def _prompts(
    params: EvaluateParams, base: Path, messages: Sequence[str]
) -> tuple[list[list[int]], Limits]:
    """Their ids, and what `generate_all` takes after them."""
    codec = Codec(load_tokenizer(base))
    limits = codec, params.base_model.max_answer_tokens, params.base_model.generate
    return [codec.prompt_ids(message) for message in messages], limits


def _greedy(
    bare: Roles,
    roles: Roles,
    prompts: list[list[int]],
    limits: Limits,
    work: Path,
    group: ProcessGroup,
) -> dict[str, list[list[int]]]:
    """Ids of greedy responses by model; resumes from checkpoints in `work`."""
    responses = {}
    holders = {"base": (bare, None), "sft": (roles, roles.reference), "ppo": (roles, POLICY)}
    for name, (holder, role) in holders.items():
        with holder.use(role) as model:
            checkpointer = Checkpointer(work / name, group)
            responses[name] = generate_all(model, prompts, *limits, checkpointer=checkpointer)
    return responses
