"""Training the reward model on groups: one question with its K ranked answers is one element.

Different here: each member's head may train with a length head (ODIN, arXiv 2402.07319) that
absorbs the effect of length and is discarded afterwards; a question that occurs c times in a
member's bootstrap sample is encoded once with weight c.

G groups, K answers per group, N answers in a batch.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from stages.rlhf.chat import Codec
from stages.rlhf.config.reward import RewardLosses, RewardScale
from stages.rlhf.measure.ranking import Group, report
from stages.rlhf.model.sequences import decoder_of
from stages.rlhf.reward.groups import (
    EncodedGroup,
    GroupBatch,
    as_pairs,
    batch_groups,
    length_balance,
    prompts_with_responses,
)
from stages.rlhf.reward.losses import (
    bradley_terry,
    length_disentangling,
    length_weights,
    overlap,
    plackett_luce,
)
from stages.rlhf.reward.model import RewardModel
from stages.rlhf.runs.checkpoints import (
    Checkpointer,
    State,
    add_prefix,
    load_optimizer,
    optimizer_tensors,
    strip_prefix,
)
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.sharding import in_step
from stages.rlhf.runtime import derive_seed
from stages.rlhf.train.schedule import cosine_schedule


class Outputs(NamedTuple):
    """A member's outputs for the N answers of G groups, attached to the graph."""

    quality: Tensor  # (N,) the score
    length: Tensor | None  # (N,) of the length head, if there is one
    lm: Tensor | None  # (G,) language-model losses of the best answers, if lm_coef > 0


Gradients = tuple[Tensor, Tensor]  # of the length term, by N quality scores and N length scores


class MemberTrainer:
    """One member, its optional length head, and its optimiser step."""

    def __init__(
        self,
        model: RewardModel,
        index: int,
        rm: RewardLosses,
        settings: RewardScale,
        codec: Codec,
        length_pairs: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.model, self.index, self.member = model, index, model.members[index]
        self.group = model.group
        self.rm, self.settings, self.codec = rm, settings, codec
        self.length_pairs = length_pairs
        self.device = model.roles.model.device
        self.length_head: nn.Linear | None = None
        if rm.odin_coef > 0:
            width = self.member.head.value.weight.shape[1]
            self.length_head = nn.Linear(width, 1, bias=False).to(self.device)
            nn.init.normal_(self.length_head.weight, std=1 / (width + 1) ** 0.5)
        heads = [self.member.head] + ([self.length_head] if self.length_head else [])
        self.parameters = [
            *model.roles.parameters(self.member.name),
            *(p for head in heads for p in head.parameters()),
        ]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=rm.weight_decay, fused=True
        )

    def member_state(self) -> dict[str, Tensor]:
        """The trained weights: adapter and head."""
        head = add_prefix("head.", self.member.head.state_dict())
        return {**add_prefix("adapter.", self.model.roles.state(self.member.name)), **head}

    def load_member(self, state: Mapping[str, Tensor]) -> None:
        """Restore adapter and head."""
        self.model.roles.load_state(self.member.name, strip_prefix("adapter.", state))
        self.member.head.load_state_dict(strip_prefix("head.", state))

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        length = self.length_head.state_dict() if self.length_head else {}
        adam = add_prefix("adam.", optimizer_tensors(self.optimizer))
        return {
            **add_prefix("member.", self.member_state()),
            **add_prefix("length.", length),
            **adam,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state`."""
        self.load_member(strip_prefix("member.", state))
        if self.length_head:
            self.length_head.load_state_dict(strip_prefix("length.", state))
        load_optimizer(self.optimizer, strip_prefix("adam.", state))

    def outputs(self, groups: Sequence[EncodedGroup], batch: GroupBatch) -> Outputs:
        """Scores of all answers of these groups; call inside `roles.use`."""
        with_logprobs = self.model.hybrid or self.rm.lm_coef > 0
        prompts = prompts_with_responses(groups)
        rows = None if self.model.hybrid else batch.best_rows.tolist()  # all the LM loss reads
        features = self.model.features(prompts, self.codec, with_logprobs, rows)
        quality = self.member.head(features)
        length = None
        if self.length_head is not None:
            with torch.autocast(self.device.type, enabled=False):
                length = self.length_head(features.last.float()).squeeze(-1)
        lm = None
        if self.rm.lm_coef > 0:
            assert features.logprobs is not None
            own = features.logprobs[batch.best_rows] if rows is None else features.logprobs
            lm = -own.sum(-1) / features.mask[batch.best_rows].sum(-1)  # 0 on padding
        return Outputs(quality, length, lm)

    def ranking_losses(self, scores: Tensor, batch: GroupBatch) -> Tensor:
        """(N,) -> (G,) by `rm.loss`."""
        padded = torch.zeros(batch.present.shape, device=scores.device)
        padded = padded.masked_scatter(batch.present, scores)
        weights = length_weights(batch.lengths, *self.length_pairs)
        if self.rm.loss == "plackett_luce":
            return plackett_luce(padded, batch.pairs, weights)
        return bradley_terry(
            padded, batch.pairs, weights, self.rm.margin * batch.gaps, self.rm.label_smoothing
        )

    def step(self, groups: Sequence[EncodedGroup], counts: Sequence[int]) -> Tensor:
        """One optimiser step on these groups; returns their mean ranking loss, on the device.

        Each process has a shard of them. Correlations with length are over the whole batch: with
        several micro-batches, a forward pass without a graph first computes their gradient with
        respect to each score.
        """
        weight, total = sum(counts), torch.zeros((), device=self.device)
        sharers = min(self.group.size, len(groups))  # processes that have any of them
        groups, counts = self.group.shard(groups), self.group.shard(counts)
        indices = self.model.micro_batches(
            prompts_with_responses(groups), self.settings.micro_batch_tokens
        )
        parts = [[groups[i] for i in own] for own in indices]
        batches = [
            batch_groups(part, [counts[i] for i in own], self.device)
            for part, own in zip(parts, indices, strict=True)
        ]
        pairs, decoder = list(zip(parts, batches, strict=True)), decoder_of(self.model.roles.model)
        with self.model.roles.use(self.member.name, train=True):
            gradients: list[Gradients] = []
            if self.length_head is not None and (len(parts) > 1 or self.group.size > 1):
                with torch.no_grad():
                    outs = [self.outputs(*one) for one in in_step(decoder, pairs)]
                gradients = _length_gradients(outs, batches, self.device, self.group)
            for i, (part, batch) in enumerate(in_step(decoder, pairs, gradients=1)):
                out = self.outputs(part, batch)
                scores = out.quality if out.length is None else out.quality + out.length
                ranking = (batch.counts * self.ranking_losses(scores, batch)).sum() / weight
                loss = ranking
                if out.lm is not None:
                    loss = loss + self.rm.lm_coef * (batch.counts * out.lm).sum() / weight
                if self.length_head is not None and out.length is not None:
                    alone = gradients or _length_gradients([out], [batch], self.device)
                    d_quality, d_length = alone[i]
                    cosine = overlap(self.member.head.value.weight, self.length_head.weight)
                    odin = (d_quality * out.quality + d_length * out.length).sum()
                    cosine = cosine / (len(parts) * sharers)
                    loss = loss + self.rm.odin_coef * (odin + cosine)
                loss.backward()
                total += ranking.detach()
        self.group.sum([total])
        self.group.sum_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def _length_gradients(
    outs: Sequence[Outputs],
    batches: Sequence[GroupBatch],
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> list[Gradients]:
    """Per micro-batch, the gradient of `length_disentangling` over all, of every process."""
    sizes = [len(out.quality) for out in outs]
    lengths = [out.length.detach() for out in outs if out.length is not None]
    quality, own = group.concatenate([out.quality.detach() for out in outs], device)
    length, _ = group.concatenate(lengths, device)
    tokens, _ = group.concatenate([batch.lengths[batch.present] for batch in batches], device)
    term = length_disentangling(quality.requires_grad_(), length.requires_grad_(), tokens)
    gradients = torch.autograd.grad(term, [quality, length])
    return list(zip(*(gradient[own].split(sizes) for gradient in gradients), strict=True))


def with_scores(groups: Sequence[EncodedGroup], scores: Tensor) -> list[Group]:
    """Groups with their N scores, for `measure.ranking.report`."""
    flat = iter(scores.tolist())
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


def scored(model: RewardModel, groups: Sequence[EncodedGroup], codec: Codec) -> list[Group]:
    """Groups without hard negatives, with the mean score over the members."""
    return with_scores(groups, model.score(prompts_with_responses(groups), codec).mean)


def bootstrap(count: int, seed: int) -> list[int]:
    """Multiplicity of each of `count` questions in a bootstrap sample of the same size."""
    sampled = Counter(random.Random(seed).choices(range(count), k=count))
    return [sampled[i] for i in range(count)]


def train(
    model: RewardModel,
    groups: Sequence[EncodedGroup],
    validation: Sequence[EncodedGroup],
    rm: RewardLosses,
    settings: RewardScale,
    codec: Codec,
    *seed: object,
    kind: str = "rm",
    work: Path | None = None,
) -> dict[str, Any]:
    """Train every member in place, keeping its epoch with the best validation accuracy.

    The model's processes have a shard of each batch. Checkpoints are in `work`, one folder per
    member; training resumes from them.

    Groups without a pair (all tied) are counted and skipped. Raises ValueError without groups for
    training or validation, or if a loss is not finite.
    """
    train_groups = [group for group in groups if group.pairs.any()]
    val_groups = [group for group in validation if group.pairs.any()]
    for name, part in {"train": train_groups, "validation": val_groups}.items():
        if not part:
            raise ValueError(
                f"{kind}/{name} has no group of answers with different ranks; expected one"
            )
    n_groups = len(train_groups)
    if rm.elements == "pairs":
        train_groups = as_pairs(train_groups)
        size = settings.batch_size * round(len(train_groups) / n_groups)  # equal pairs per step
        settings = settings.model_copy(update={"batch_size": size})
    in_a_step = min(settings.batch_size, len(train_groups))
    model.group.check_rows(in_a_step, f"{kind}.batch_size, or all groups,")
    length_pairs = length_balance(train_groups) if rm.length_balance else (1.0, 1.0)
    figures: dict[str, Any] = {
        "groups": n_groups,
        "groups_without_pairs": len(groups) - n_groups,
        "weight_better_is_longer": length_pairs[0],
        "weight_better_is_shorter": length_pairs[1],
    }
    for index, member in enumerate(model.members):
        own = (*seed, index)
        counts = [1] * len(train_groups)
        if len(model.members) > 1:
            counts = bootstrap(len(train_groups), derive_seed(*own, "bootstrap"))
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(*own, "length_head"))
            trainer = MemberTrainer(model, index, rm, settings, codec, length_pairs)
        rng = random.Random(derive_seed(*own, "order"))
        sampled = [(group, n) for group, n in zip(train_groups, counts, strict=True) if n]
        checkpointer = Checkpointer(work / member.name if work else None, model.group)
        figures[member.name] = _train_member(trainer, sampled, validation, rng, checkpointer)
    return figures


def _train_member(
    trainer: MemberTrainer,
    sampled: Sequence[tuple[EncodedGroup, int]],
    validation: Sequence[EncodedGroup],
    rng: random.Random,
    checkpointer: Checkpointer,
) -> dict[str, float]:
    model, member, settings = trainer.model, trainer.member, trainer.settings
    per_epoch = -(-len(sampled) // settings.batch_size)
    steps = settings.epochs * per_epoch
    warmup = max(1, round(trainer.rm.warmup_share * steps))
    best, best_epoch = -1.0, 0
    best_state: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    done = 0  # epochs validated

    def state() -> State:
        tensors = {"losses": torch.stack(losses), **add_prefix("best.", best_state)}
        plain = {"best": best, "best_epoch": best_epoch, "done": done}
        return {**tensors, **trainer.state()}, plain

    if found := checkpointer.load():
        best, best_epoch, done = (found.plain[key] for key in ("best", "best_epoch", "done"))
        best_state = strip_prefix("best.", found.tensors)
        losses = list(found.tensors["losses"].to(trainer.device))
        trainer.load_state(found.tensors)
    progress = tqdm(total=steps, initial=len(losses), desc=member.name, mininterval=5)
    for epoch in range(settings.epochs):
        order = rng.sample(range(len(sampled)), len(sampled))
        if epoch < done:
            continue
        first = (len(losses) - epoch * per_epoch) * settings.batch_size
        for start in range(first, len(order), settings.batch_size):
            batch = [sampled[i] for i in order[start : start + settings.batch_size]]
            for group in trainer.optimizer.param_groups:
                group["lr"] = settings.learning_rate * cosine_schedule(len(losses), steps, warmup)
            losses.append(trainer.step([g for g, _ in batch], [count for _, count in batch]))
            progress.update()
            checkpointer.maybe_save(len(losses) + done, state)
        recent = torch.stack(losses[-per_epoch:])
        if not recent.isfinite().all():
            step = len(losses) - per_epoch + int((~recent.isfinite()).nonzero()[0]) + 1
            raise ValueError(f"{member.name}: the loss of step {step} of {steps} is not finite")
        prompts = prompts_with_responses(validation)
        scores = model.raw_scores(prompts, trainer.codec, [trainer.index])
        accuracy = report(with_scores(validation, scores[0]))["accuracy"] or 0.0
        progress.set_postfix(loss=f"{recent.mean().item():.3f}", validation=f"{accuracy:.3f}")
        if accuracy > best:
            best, best_epoch = accuracy, epoch + 1
            best_state = {k: v.detach().clone() for k, v in trainer.member_state().items()}
        done = epoch + 1
        checkpointer.maybe_save(len(losses) + done, state)
    progress.close()
    trainer.load_member(best_state)
    member.head.eval().requires_grad_(False)
    return {
        "loss": torch.stack(losses[-per_epoch:]).mean().item(),
        "validation_accuracy": best,
        "best_epoch": best_epoch,
        "questions": len(sampled),
    }
