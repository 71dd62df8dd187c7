"""Stage `gate`: does the reward model choose among SFT's responses what the judge prefers, too?

python -m stages.gate --code data/check/gate.json --base data/base --sft data/sft --rm data/rm
    --judge data/judge --judge-metrics metrics/details/judge.json
    --prompts data/rows/ppo/validation.jsonl --out data/gate --metrics metrics/gate.json

It trains nothing: best-of-4 under the reward model against the mean response, scored by the judge.
A judge that is no better than length alone decides nothing: `passed` is null, with the reason.
"""

import shutil
from pathlib import Path
from typing import Any

import click

from stages.cli.options import one_sentence_errors, path_options
from stages.rlhf import runtime
from stages.rlhf.chat import Codec
from stages.rlhf.config.base import load
from stages.rlhf.config.limits import GateParams
from stages.rlhf.model.store import check_card, load_base, load_sft, load_tokenizer
from stages.rlhf.records import (
    PromptRow,
    read_rows,
    runtime_file,
    subset,
    write_jsonl,
    write_metrics,
)
from stages.rlhf.reward.best_of_n import best_of_n_indices, gate, sample
from stages.rlhf.reward.gate import GATE, read_gate, vouched
from stages.rlhf.reward.model import load_reward_model
from stages.rlhf.runs.checkpoints import Checkpointer
from stages.rlhf.runs.parallel import run_parallel
from stages.rlhf.runs.process_group import ProcessGroup
from stages.rlhf.runs.provenance import Stage
from stages.rlhf.runtime import derive_seed
from stages.rlhf.sizes import GATE_OF

Paths = dict[str, Path]


def run(
    params: GateParams, paths: Paths, work: Path, process_group: ProcessGroup
) -> tuple[dict[str, Any], list[Any]]:
    """The gate's figures on the validation prompts, and the responses with the judge's scores."""
    base_model = params.base_model
    check_card(paths["rm"], {"base": paths["base"], "sft": paths["sft"]})
    check_card(paths["judge"], {"base": paths["base"]})
    codec = Codec(load_tokenizer(paths["base"]))
    bare = load_base(paths["base"], base_model.dtype, base_model.lora)
    judge = load_reward_model(bare, paths["judge"], process_group)
    roles = load_sft(paths["base"], paths["sft"], base_model.dtype, base_model.lora, bare)
    reward_model = load_reward_model(roles, paths["rm"], process_group)
    subset_seed = derive_seed(params.seed, "validation")
    prompts = subset(read_rows(paths["prompts"], PromptRow), params.validation_rows, subset_seed)
    messages = [row.message for row in prompts]
    with roles.use(roles.reference) as sft:
        sampled = sample(
            sft,
            [codec.prompt_ids(message) for message in messages],
            GATE_OF,
            codec,
            base_model.max_answer_tokens,
            base_model.generate,
            params.ppo.temperature,
            params.seed,
            "judge",
            "gate",
            checkpointer=Checkpointer(work / "gate", process_group),
        )
    judge_scores = judge.score(sampled, codec).mean.view(-1, GATE_OF)
    indices = best_of_n_indices(reward_model, sampled, codec)
    seed = derive_seed(params.seed, "judge", "gate resamples")
    rows = [
        {
            "question": row.question,
            "answers": [codec.text(response) for response in responses],
            "judge_scores": [round(score, 4) for score in scores],
            "chosen": chosen,
        }
        for row, (_, responses), scores, chosen in zip(
            prompts, sampled, judge_scores.tolist(), indices.tolist(), strict=True
        )
    ]
    found = gate(judge_scores, indices, params.gate.resamples, seed)
    return {GATE: vouched(found, paths["judge_metrics"])}, rows


@click.command(help=__doc__)
@path_options("code", "base", "sft", "rm", "judge", "judge-metrics", "prompts", "out", "metrics")
def main(code: Path, out: Path, metrics: Path, **paths: Path) -> None:
    """Try the gate."""
    clock = runtime.Clock()
    seconds = runtime_file(metrics)
    with one_sentence_errors():
        params = load(GateParams)
        runtime.start(params.threads, params.seed, "gate")

        def make(work: Path, process_group: ProcessGroup) -> None:
            figures, rows = run(params, paths, work, process_group)
            if not process_group.is_main:
                return
            shutil.rmtree(out, ignore_errors=True)
            write_jsonl(out / "samples.jsonl", rows)
            write_metrics(metrics, figures)
            clock.write(seconds)

        run_parallel(Stage("gate", params, code, paths), [out, metrics, seconds], make)
    verdict = read_gate(metrics)
    state = {True: "open", False: "shut", None: "unknown"}[verdict.passed]
    click.echo(f"gate: {state}" + (f": {verdict.reason}" if verdict.reason else ""))


if __name__ == "__main__":
    main()
