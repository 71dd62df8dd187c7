"""Reward model training: the stage's own step against TRL's RewardTrainer, in one call.

    python -m tests.benchmarks.rm_vs_trl            # full fine-tuning on both sides
    python -m tests.benchmarks.rm_vs_trl --lora     # LoRA of rank 16 on both sides
    python -m tests.benchmarks.rm_vs_trl --vocab 262144
    python -m tests.benchmarks.rm_vs_trl --lora --model llama-1b --vocab 128256    # for a GPU

The same random Llama, questions, Bradley-Terry loss, optimizer, float32 and two threads. TRL gets
each question as its ten pairs, and the fastest of a few micro-batches, gradients accumulated to 160
pairs a step; we get the 16 questions of such a step. First both sides' loss and gradient of one
batch are compared; then each side's peak memory is measured in a process of its own; then steps of
all sides alternate in this process, so that a busy machine slows all alike. The first command
writes metrics/tables/rm_vs_trl.csv.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from stages.rlhf.config.models import Lora
from stages.rlhf.config.whole import load_params
from stages.rlhf.model.roles import Roles
from stages.rlhf.precision import device
from stages.rlhf.records import RmRow
from stages.rlhf.reward.groups import EncodedGroup
from stages.rlhf.reward.losses import better, rank_gap
from stages.rlhf.reward.model import Head, Member, RewardModel, member_name
from stages.rlhf.reward.training import MemberTrainer
from tests.benchmarks.device_memory import held, most, seconds_are_over
from tests.model_fixtures import Recorder, ids_codec, random_ids

TABLE = Path(__file__).parents[2] / "metrics" / "tables" / "rm_vs_trl.csv"
VOCAB, PAD, QUESTIONS, ANSWERS = 2000, 0, 300, 5
STEP = 16  # questions
PAIRS = STEP * ANSWERS * (ANSWERS - 1) // 2  # of a step
MICRO_BATCHES = (160, 80, 40, 20, 10)  # pairs, of which TRL gets its fastest
MICRO_TOKENS = 256  # of ours, some two questions; 384 is as fast in turn, with 17 % more memory
RATE, CLIP = 1e-4, 1.0
MODELS: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
STEPS = 19  # 300 questions

PromptWithResponses = tuple[list[int], list[list[int]]]  # prompt, answers from best to worst


def make_questions(vocab: int) -> list[PromptWithResponses]:
    """Prompts of 12 tokens, five answers of 8 to 24 each."""
    prompts = random_ids(QUESTIONS, 12, 12, vocab, seed=0)
    answers = random_ids(QUESTIONS * ANSWERS, 8, 24, vocab, seed=1)
    return [(p, answers[ANSWERS * i : ANSWERS * (i + 1)]) for i, p in enumerate(prompts)]


def make_pairs(questions: list[PromptWithResponses]) -> list[dict[str, list[int]]]:
    """TRL's rows: each question's ten pairs, prompt included in both."""
    return [
        {"chosen_ids": prompt + better, "rejected_ids": prompt + worse}
        for prompt, answers in questions
        for better, worse in combinations(answers, 2)
    ]


@dataclass
class Chosen:
    """The model of this call."""

    name: str = "small"

    @property
    def width(self) -> int:
        """Its hidden size."""
        return MODELS[self.name]["hidden_size"]

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return torch.float32 if self.name == "small" else torch.bfloat16


CHOSEN = Chosen()


def make_model(kind: Any, vocab: int, lora: bool, **more: Any) -> Any:
    """A random Llama; the decoder, or its adapter, has the same weights whatever the head."""
    config = LlamaConfig(
        vocab_size=vocab,
        **MODELS[CHOSEN.name],
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        **more,
    )
    torch.manual_seed(0)
    model = kind(config)
    torch.manual_seed(1)
    for weight in model.get_decoder().parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.05)
    model = model.to(device(), CHOSEN.dtype)
    if lora:
        torch.manual_seed(2)
        saved = ["score"] if kind is LlamaForSequenceClassification else None
        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules=linear, modules_to_save=saved)
        )
    return model


def first_head() -> Tensor:
    """(1, H): the score's weights on both sides."""
    width = CHOSEN.width
    return torch.randn(1, width, generator=torch.Generator().manual_seed(3)) / width**0.5


class WholeModel:
    """Roles of a model that is trained whole: there is nothing to switch."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @contextmanager
    def use(self, name: str, train: bool = False) -> Iterator[Any]:
        """The model as it is."""
        yield self.model

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Everything that learns."""
        return [p for p in self.model.parameters() if p.requires_grad]


class Ours:
    """`MemberTrainer` as stage rm runs it."""

    def __init__(self, vocab: int, lora: bool, hybrid: bool) -> None:
        model = make_model(LlamaForCausalLM, vocab, False).train()
        model.get_output_embeddings().requires_grad_(False)  # as the reward model's is
        roles: Any = WholeModel(model)
        if lora:
            roles = Roles(model.requires_grad_(False), Lora(r=16, alpha=32))
            torch.manual_seed(2)
            roles.add(member_name(0))
        head = Head(CHOSEN.width, hybrid).to(device())
        with torch.no_grad():
            head.value.weight.copy_(first_head())
        knobs = {"loss": "bradley_terry", "lm_coef": 0.0, "members": 1, "odin_coef": 0.0}
        knobs |= {"length_balance": False, "margin": 0.0, "label_smoothing": 0.0}
        settings = {"batch_size": STEP, "micro_batch_tokens": MICRO_TOKENS, "learning_rate": RATE}
        shipped = load_params()
        self.trainer = MemberTrainer(
            RewardModel(roles, [Member(member_name(0), head)]),
            0,
            shipped.rm.model_copy(update=knobs),
            shipped.base_model.rm.model_copy(update=settings),
            ids_codec(PAD),
        )

    def step(self, questions: list[PromptWithResponses]) -> float:
        """One optimizer step; the loss before it."""
        return float(self.trainer.step(encoded(questions), [1] * len(questions)))


def encoded(questions: list[PromptWithResponses]) -> list[EncodedGroup]:
    """Questions as the stage encodes them, answers from best to worst."""
    ranks = tuple(float(rank) for rank in range(1, ANSWERS + 1))
    table, present = torch.tensor([ranks]), torch.ones(1, ANSWERS, dtype=torch.bool)
    pairs, gaps = better(table, present)[0], rank_gap(table, present)[0]
    row = RmRow(id="", question="", answers=("",) * ANSWERS, ranks=ranks)
    return [EncodedGroup(prompt, answers, pairs, gaps, 0, row) for prompt, answers in questions]


class AfterStep(TrainerCallback):
    """Calls back with a step's seconds: everything since the call before returned."""

    def __init__(self, then: Callable[[float], None]) -> None:
        self.then, self.since = then, time.perf_counter()

    def on_step_end(self, *args: Any, **more: Any) -> None:
        seconds_are_over()
        self.then(time.perf_counter() - self.since)
        self.since = time.perf_counter()


def trl_model(vocab: int, lora: bool) -> Any:
    """The same decoder with TRL's scalar head."""
    model = make_model(LlamaForSequenceClassification, vocab, lora, num_labels=1)
    score = [p for n, p in model.named_parameters() if "score" in n and p.requires_grad]
    with torch.no_grad():
        for weight in score:
            weight.copy_(first_head())
    return model


def trl_trainer(
    model: Any,
    questions: list[PromptWithResponses],
    micro_batch: int,
    steps: int,
    folder: str,
    then: Callable[[float], None],
) -> RewardTrainer:
    """TRL's trainer, no slower than it need be: no checkpoints, no recomputing, no logging."""
    words = {"<pad>": PAD, **{str(i): i for i in range(1, model.config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="1"))
    args = RewardConfig(
        output_dir=folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=PAIRS // micro_batch,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        bf16=CHOSEN.dtype == torch.bfloat16,
        use_cpu=device() == "cpu",
        pad_to_multiple_of=None,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    return RewardTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(make_pairs(questions)),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="2"
        ),
        callbacks=[AfterStep(then)],
    )


def batches(questions: list[PromptWithResponses], steps: int) -> list[list[PromptWithResponses]]:
    """The questions of each step, shuffled anew at each epoch."""
    generator = torch.Generator().manual_seed(0)
    made: list[list[PromptWithResponses]] = []
    while len(made) < steps:
        order = torch.randperm(len(questions), generator=generator).tolist()
        whole = range(0, len(order) - STEP + 1, STEP)
        made += [[questions[i] for i in order[start : start + STEP]] for start in whole]
    return made[:steps]


def measure(side: str, vocab: int, lora: bool, micro_batch: int, steps: int) -> dict[str, float]:
    """One side alone in this process: peak MiB above imports and model; its rate.

    The rate is the fastest step's, which a busy machine disturbs least.
    """
    questions, seconds = make_questions(vocab), []
    if side == "trl":
        model = trl_model(vocab, lora)
        start = held()
        with tempfile.TemporaryDirectory() as folder:
            trl_trainer(model, questions, micro_batch, steps, folder, seconds.append).train()
    else:
        ours = Ours(vocab, lora, side == "hybrid")
        start = held()
        for batch in batches(questions, steps):
            begin = time.perf_counter()
            ours.step(batch)
            seconds_are_over()
            seconds.append(time.perf_counter() - begin)
    return {"rate": STEP / min(seconds[1:]), "mib": most() - start}


def in_a_process(
    side: str, vocab: int, lora: bool, micro_batch: int = 0, steps: int = 4
) -> dict[str, float]:
    """`measure` in a fresh process."""
    words = [
        "--side",
        side,
        "--vocab",
        str(vocab),
        "--micro-batch",
        str(micro_batch),
        "--steps",
        str(steps),
        "--model",
        CHOSEN.name,
    ]
    command = [sys.executable, "-m", "tests.benchmarks.rm_vs_trl", *words]
    done = subprocess.run(
        [*command, *(["--lora"] if lora else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def same_training(vocab: int, lora: bool) -> dict[str, float]:
    """One batch on both sides: the losses, and the largest difference of a clipped gradient.

    Raises ValueError where they differ.
    """
    batch = make_questions(vocab)[:STEP]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(trl_model(vocab, lora), batch, PAIRS, 1, folder, lambda _: None)
        trainer.model.train()
        theirs = trainer.compute_loss(trainer.model, trainer.data_collator(make_pairs(batch)))
        theirs.backward()
    learned = [p for p in trainer.model.parameters() if p.grad is not None]
    nn.utils.clip_grad_norm_(learned, CLIP)
    ours = Ours(vocab, lora, hybrid=False).trainer
    ours.optimizer = recorder = Recorder(ours.parameters, lr=1.0)
    loss = float(ours.step(encoded(batch), [1] * len(batch)))
    expected = {tuple(p.shape): [] for p in learned}
    for parameter in learned:
        expected[tuple(parameter.shape)].append(parameter.grad)
    off = 0.0
    for grad in recorder.seen:  # in the order of the modules on both sides, by shape
        off = max(off, float((grad - expected[tuple(grad.shape)].pop(0)).abs().max()))
    found = {"loss": float(theirs.detach()), "ours": loss, "off": off}
    limit = 1e-5 if CHOSEN.name == "small" else 0.1
    if abs(found["loss"] - found["ours"]) > limit or off > limit or any(expected.values()):
        raise ValueError(f"the two sides do not train the same thing: {found}")
    return found


def alternate(vocab: int, lora: bool, micro_batch: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, taken in turn."""
    questions = make_questions(vocab)
    sides = {"plain": Ours(vocab, lora, hybrid=False), "hybrid": Ours(vocab, lora, hybrid=True)}
    seconds: dict[str, list[float]] = {"trl": [], "plain": [], "hybrid": []}
    waiting = iter(batches(questions, steps + 1))

    def then(spent: float) -> None:
        seconds["trl"].append(spent)
        batch = next(waiting)
        for name, side in sides.items():
            begin = time.perf_counter()
            side.step(batch)
            seconds_are_over()
            seconds[name].append(time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:
        trl_trainer(trl_model(vocab, lora), questions, micro_batch, steps + 1, folder, then).train()
    return {name: spent[1:] for name, spent in seconds.items()}  # the first warms up


def main() -> None:
    """Print the two sides' figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=MICRO_BATCHES)
    parser.add_argument("--side", choices=["trl", "plain", "hybrid"], help="used by this itself")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", choices=MODELS, default="small")
    given = parser.parse_args()
    CHOSEN.name = given.model
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    disable_progress_bars()
    if given.side:
        print(
            json.dumps(measure(given.side, given.vocab, given.lora, given.micro_batch, given.steps))
        )
        return
    print("LoRA on both sides" if given.lora else "full fine-tuning on both sides")
    one = same_training(given.vocab, given.lora)
    print(f"one batch: loss TRL {one['loss']:.6f}, ours {one['ours']:.6f};", end=" ")
    print(f"no entry of the clipped gradient differs by more than {one['off']:.1e}")
    tried = {
        size: in_a_process("trl", given.vocab, given.lora, size) for size in given.micro_batches
    }
    for size, found in tried.items():
        print(f"TRL at {size:3d} pairs: {found['rate']:5.1f} questions/s, {found['mib']:6.0f} MiB")
    best = max(tried, key=lambda size: tried[size]["rate"])
    least = min(found["mib"] for found in tried.values())
    peak = {"trl": tried[best]["mib"]}
    for name in ("plain", "hybrid"):
        peak[name] = in_a_process(name, given.vocab, given.lora)["mib"]
    spent = alternate(given.vocab, given.lora, best, given.steps or STEPS)
    print(f"{len(spent['trl'])} steps in turn, TRL at {best} pairs; MiB above the start")
    rows = []
    for name, seconds in spent.items():
        times = statistics.median(t / own for t, own in zip(spent["trl"], seconds, strict=True))
        row = {
            "side": name,
            "micro_batch_pairs": best if name == "trl" else None,
            "questions_per_second": round(STEP * len(seconds) / sum(seconds), 1),
            "times_trl": round(times, 2),
            "peak_mib": round(peak[name]),
            "of_trl": round(peak[name] / peak["trl"], 2),
            "of_trls_least": round(peak[name] / least, 2),
        }
        print(row)
        rows.append(row)
    if not given.lora and given.vocab == VOCAB and given.model == "small":
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
