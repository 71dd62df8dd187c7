"""Training the reward model on groups: one question with its K ranked answers is one element."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from stages.rlhf.chat import Codec
from stages.rlhf.config import Rm, RmSettings
from stages.rlhf.ranking import LOSSES
from stages.rlhf.ranking_metrics import Group, report
from stages.rlhf.records import RmRow
from stages.rlhf.reward_model import ROLE, RewardModel
from stages.rlhf.schedule import cosine_schedule
from stages.rlhf.sequences import collate


@dataclass(frozen=True)
class EncodedGroup:
    """A question's answers as ids, with their ranks, and the row they come from."""

    prompt: list[int]
    answers: list[list[int]]
    row: RmRow


def encode_groups(rows: list[RmRow], codec: Codec) -> list[EncodedGroup]:
    """Rows -> ids."""
    return [
        EncodedGroup(
            codec.prompt_ids(row.question), [codec.answer_ids(a) for a in row.answers], row
        )
        for row in rows
    ]


def group_losses(
    model: RewardModel, groups: list[EncodedGroup], rm: Rm, codec: Codec
) -> tuple[Tensor, Tensor]:
    """G groups -> ranking losses (G,) and language-model losses of the best answers (G,)."""
    device = model.roles.model.device
    prompts = [g.prompt for g in groups for _ in g.answers]
    answers = [a for g in groups for a in g.answers]
    batch = collate(prompts, answers, codec.pad_id, device)
    flat, logprobs = model.forward(batch)

    widest = max(len(g.answers) for g in groups)
    present = torch.tensor([[k < len(g.answers) for k in range(widest)] for g in groups])
    ranks = torch.zeros(present.shape)
    ranks[present] = torch.tensor([float(r) for g in groups for r in g.row.ranks])
    present, ranks = present.to(device), ranks.to(device)
    scores = torch.zeros(present.shape, device=device).masked_scatter(present, flat)
    ranking = LOSSES[rm.loss](scores, ranks, present)

    best = [g.row.ranks.index(min(g.row.ranks)) for g in groups]
    starts = torch.tensor([len(g.answers) for g in groups]).cumsum(0)
    rows = torch.tensor(
        [s - len(g.answers) + b for s, g, b in zip(starts.tolist(), groups, best, strict=True)]
    )
    mask = batch.response_mask[rows]
    return ranking, -torch.where(mask, logprobs[rows], 0).sum(-1) / mask.sum(-1)


def scored(
    model: RewardModel, groups: list[EncodedGroup], codec: Codec, batch_size: int
) -> list[Group]:
    """Groups with their scores, for `ranking_metrics.report`; lengths are in characters."""
    prompts = [g.prompt for g in groups for _ in g.answers]
    answers = [a for g in groups for a in g.answers]
    flat = iter(model.normalise(model.score(prompts, answers, codec, batch_size)).tolist())
    return [
        Group(
            scores=[next(flat) for _ in g.answers],
            ranks=g.row.ranks,
            lengths=[len(a) for a in g.row.answers],
            tokens=[len(a) for a in g.answers],
            defects=g.row.defects,
            kind=g.row.kind,
        )
        for g in groups
    ]


def train(
    model: RewardModel,
    groups: list[EncodedGroup],
    validation: list[EncodedGroup],
    rm: Rm,
    settings: RmSettings,
    codec: Codec,
    rng: random.Random,
) -> dict[str, float]:
    """Train in place; the epoch with the best validation accuracy is kept.

    Raises ValueError where there are no groups to train on or to choose by.
    """
    for name, part in {"rm/train": groups, "rm/validation": validation}.items():
        if not part:
            raise ValueError(f"{name} is empty: at least one group of ranked answers was expected")
    parameters = [*model.roles.parameters(ROLE), *model.head.parameters()]
    per_epoch = -(-len(groups) // settings.batch_size)
    steps = settings.epochs * per_epoch
    warmup = max(1, round(rm.warmup_share * steps))
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=rm.weight_decay
    )
    progress = tqdm(total=steps, desc="rm", mininterval=5)
    best, kept, kept_head, step, chosen = -1.0, model.roles.state(ROLE), {}, 0, 0
    losses: list[Tensor] = []
    for epoch in range(settings.epochs):
        order = rng.sample(range(len(groups)), len(groups))
        for start in range(0, len(order), settings.batch_size):
            batch = [groups[i] for i in order[start : start + settings.batch_size]]
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * cosine_schedule(step, steps, warmup)
            losses.append(_step(model, batch, rm, settings, codec, optimizer, parameters))
            step += 1
            progress.update()
        accuracy = report(scored(model, validation, codec, 256))["accuracy"] or 0.0
        recent = torch.stack(losses[-per_epoch:]).mean().item()
        progress.set_postfix(loss=f"{recent:.3f}", validation=f"{accuracy:.3f}")
        if accuracy > best:
            best, chosen = accuracy, epoch + 1
            kept = model.roles.state(ROLE)
            kept_head = {k: v.detach().clone() for k, v in model.head.state_dict().items()}
    progress.close()
    model.roles.load_state(ROLE, kept)
    model.head.load_state_dict(kept_head)
    model.head.eval().requires_grad_(False)
    return {
        "loss": torch.stack(losses[-per_epoch:]).mean().item(),
        "validation_accuracy": best,
        "best_epoch": chosen,
    }


def _step(
    model: RewardModel,
    batch: list[EncodedGroup],
    rm: Rm,
    settings: RmSettings,
    codec: Codec,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
) -> Tensor:
    total = torch.zeros(())
    with model.roles.use(ROLE, train=True):
        for start in range(0, len(batch), settings.micro_batch_size):
            part = batch[start : start + settings.micro_batch_size]
            ranking, lm = group_losses(model, part, rm, codec)
            loss = (ranking + rm.lm_coef * lm).sum() / len(batch)
            loss.backward()
            total += ranking.detach().sum().cpu() / len(batch)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total
