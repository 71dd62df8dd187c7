"""Training the reward model on groups: one question with its K ranked answers is one element.

Different here: a length head (ODIN, arXiv 2402.07319) may stand beside each member's head while it
trains, takes up what answers owe to their length, and is thrown away; a question that a member's
bootstrap draws c times is encoded once and counts c times.

G groups, K answers of a group, N answers of a batch.
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
from stages.rlhf.reward.groups import (
    EncodedGroup,
    GroupBatch,
    as_pairs,
    batch_groups,
    length_balance,
    questions_of,
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
from stages.rlhf.runtime import derive_seed
from stages.rlhf.train.schedule import cosine_schedule


class Outputs(NamedTuple):
    """What a member says of the N answers of G groups, with the graph behind it."""

    quality: Tensor  # (N,) the score that is kept
    length: Tensor | None  # (N,) of the length head, where there is one
    lm: Tensor | None  # (G,) language-model losses of the best answers, where they have a weight


Slopes = tuple[Tensor, Tensor]  # of the length terms by the N quality and the N length scores


class MemberTrainer:
    """One member, its length head if there is one, and the arithmetic of a step."""

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
        """What of the member is kept: its adapter and its head."""
        head = add_prefix("head.", self.member.head.state_dict())
        return {**add_prefix("adapter.", self.model.roles.state(self.member.name)), **head}

    def load_member(self, state: Mapping[str, Tensor]) -> None:
        """Take adapter and head from there."""
        self.model.roles.load_state(self.member.name, strip_prefix("adapter.", state))
        self.member.head.load_state_dict(strip_prefix("head.", state))

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        length = self.length_head.state_dict() if self.length_head else {}
        adam = add_prefix("adam.", optimizer_tensors(self.optimizer))
        return {
            **add_prefix("member.", self.member_state()),
            **add_prefix("length.", length),
            **adam,
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.load_member(strip_prefix("member.", state))
        if self.length_head:
            self.length_head.load_state_dict(strip_prefix("length.", state))
        load_optimizer(self.optimizer, strip_prefix("adam.", state))

    def outputs(self, groups: Sequence[EncodedGroup], batch: GroupBatch) -> Outputs:
        """Scores of all answers of these groups; call inside `roles.use`."""
        asked = self.model.hybrid or self.rm.lm_coef > 0
        features = self.model.features(questions_of(groups), self.codec, asked)
        quality = self.member.head(features)
        length = None
        if self.length_head is not None:
            with torch.autocast(self.device.type, enabled=False):
                length = self.length_head(features.last.float()).squeeze(-1)
        lm = None
        if self.rm.lm_coef > 0:
            assert features.logprobs is not None
            best = features.mask[batch.best_rows]
            said = features.logprobs[batch.best_rows]
            lm = -torch.where(best, said, 0).sum(-1) / best.sum(-1)
        return Outputs(quality, length, lm)

    def ranking_losses(self, scores: Tensor, batch: GroupBatch) -> Tensor:
        """(N,) -> (G,) by `rm.loss`."""
        table = torch.zeros(batch.present.shape, device=scores.device)
        table = table.masked_scatter(batch.present, scores)
        weights = length_weights(batch.lengths, *self.length_pairs)
        if self.rm.loss == "plackett_luce":
            return plackett_luce(table, batch.pairs, weights)
        return bradley_terry(
            table, batch.pairs, weights, self.rm.margin * batch.gaps, self.rm.label_smoothing
        )

    def step(self, groups: Sequence[EncodedGroup], counts: Sequence[int]) -> Tensor:
        """One optimiser step on all these groups; their mean ranking loss, on the device.

        Correlations with length are the whole batch's, whatever the micro-batch: where there are
        several, a forward without a graph finds their slope by each score first.
        """
        whole, total = sum(counts), torch.zeros((), device=self.device)
        places = self.model.parts(questions_of(groups), self.settings.micro_batch_tokens)
        parts = [[groups[i] for i in part] for part in places]
        batches = [
            batch_groups(part, [counts[i] for i in own], self.device)
            for part, own in zip(parts, places, strict=True)
        ]
        with self.model.roles.use(self.member.name, train=True):
            slopes: list[Slopes] = []
            if self.length_head is not None and len(parts) > 1:
                with torch.no_grad():
                    outs = [self.outputs(*part) for part in zip(parts, batches, strict=True)]
                slopes = _length_slopes(outs, batches)
            for i, (part, batch) in enumerate(zip(parts, batches, strict=True)):
                out = self.outputs(part, batch)
                ranked = out.quality if out.length is None else out.quality + out.length
                ranking = (batch.counts * self.ranking_losses(ranked, batch)).sum() / whole
                loss = ranking
                if out.lm is not None:
                    loss = loss + self.rm.lm_coef * (batch.counts * out.lm).sum() / whole
                if self.length_head is not None and out.length is not None:
                    by_quality, by_length = (slopes or _length_slopes([out], [batch]))[i]
                    apart = overlap(self.member.head.value.weight, self.length_head.weight)
                    odin = (by_quality * out.quality + by_length * out.length).sum()
                    loss = loss + self.rm.odin_coef * (odin + apart / len(parts))
                loss.backward()
                total += ranking.detach()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def _length_slopes(outs: Sequence[Outputs], batches: Sequence[GroupBatch]) -> list[Slopes]:
    """Per part, the gradient of `length_disentangling` over all parts together."""
    sizes = [len(out.quality) for out in outs]
    quality = torch.cat([out.quality.detach() for out in outs]).requires_grad_()
    length = torch.cat([out.length.detach() for out in outs if out.length is not None])
    tokens = torch.cat([batch.lengths[batch.present] for batch in batches])
    term = length_disentangling(quality, length.requires_grad_(), tokens)
    found = torch.autograd.grad(term, [quality, length])
    return list(zip(*(slope.split(sizes) for slope in found), strict=True))


def with_scores(groups: Sequence[EncodedGroup], scores: Tensor) -> list[Group]:
    """Groups with their N scores, for `ranking_metrics.report`; lengths are in characters."""
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
    return with_scores(groups, model.score(questions_of(groups), codec).mean)


def bootstrap(count: int, seed: int) -> list[int]:
    """How often each of `count` questions is drawn in as many draws with replacement."""
    drawn = Counter(random.Random(seed).choices(range(count), k=count))
    return [drawn[i] for i in range(count)]


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
    """Train every member in place; of each, the epoch with the best validation accuracy is kept.

    Checkpoints lie in `work`, a folder a member; it goes on from those that it finds there.

    Groups without a pair (all tied) are counted and left out. Raises ValueError where there are no
    groups to train on or to choose by, or where a loss is not finite.
    """
    train_groups = [group for group in groups if group.pairs.any()]
    val_groups = [group for group in validation if group.pairs.any()]
    for name, part in {"train": train_groups, "validation": val_groups}.items():
        if not part:
            raise ValueError(
                f"{kind}/{name} has no group of answers with different ranks; one was expected"
            )
    told = len(train_groups)
    if rm.elements == "pairs":
        train_groups = as_pairs(train_groups)
        size = settings.batch_size * round(len(train_groups) / told)  # as many pairs a step
        settings = settings.model_copy(update={"batch_size": size})
    length_pairs = length_balance(train_groups) if rm.length_balance else (1.0, 1.0)
    figures: dict[str, Any] = {
        "groups": told,
        "groups_without_pairs": len(groups) - told,
        "weight_better_is_longer": length_pairs[0],
        "weight_better_is_shorter": length_pairs[1],
    }
    several = len(model.members) > 1
    for index, member in enumerate(model.members):
        own = (*seed, index)
        counts = [1] * len(train_groups)
        if several:
            counts = bootstrap(len(train_groups), derive_seed(*own, "bootstrap"))
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(*own, "length_head"))
            trainer = MemberTrainer(model, index, rm, settings, codec, length_pairs)
        rng = random.Random(derive_seed(*own, "order"))
        drawn = [(group, count) for group, count in zip(train_groups, counts, strict=True) if count]
        checkpointer = Checkpointer(work / member.name if work else None)
        figures[member.name] = _train_member(trainer, drawn, validation, rng, checkpointer)
    return figures


def _train_member(
    trainer: MemberTrainer,
    drawn: Sequence[tuple[EncodedGroup, int]],
    validation: Sequence[EncodedGroup],
    rng: random.Random,
    checkpointer: Checkpointer,
) -> dict[str, float]:
    model, member, settings = trainer.model, trainer.member, trainer.settings
    per_epoch = -(-len(drawn) // settings.batch_size)
    steps = settings.epochs * per_epoch
    warmup = max(1, round(trainer.rm.warmup_share * steps))
    best, chosen = -1.0, 0
    kept: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    done = 0  # epochs that validation has seen

    def state() -> State:
        told = {"losses": torch.stack(losses), **add_prefix("kept.", kept)}
        return {**told, **trainer.state()}, {"best": best, "chosen": chosen, "done": done}

    if found := checkpointer.load():
        best, chosen, done = (found.plain[key] for key in ("best", "chosen", "done"))
        kept = strip_prefix("kept.", found.tensors)
        losses = list(found.tensors["losses"].to(trainer.device))
        trainer.load_state(found.tensors)
    progress = tqdm(total=steps, initial=len(losses), desc=member.name, mininterval=5)
    for epoch in range(settings.epochs):
        order = rng.sample(range(len(drawn)), len(drawn))
        if epoch < done:
            continue
        first = (len(losses) - epoch * per_epoch) * settings.batch_size
        for start in range(first, len(order), settings.batch_size):
            batch = [drawn[i] for i in order[start : start + settings.batch_size]]
            for group in trainer.optimizer.param_groups:
                group["lr"] = settings.learning_rate * cosine_schedule(len(losses), steps, warmup)
            losses.append(trainer.step([g for g, _ in batch], [count for _, count in batch]))
            progress.update()
            checkpointer.maybe_save(len(losses) + done, state)
        recent = torch.stack(losses[-per_epoch:])
        if not recent.isfinite().all():
            step = len(losses) - per_epoch + int((~recent.isfinite()).nonzero()[0]) + 1
            raise ValueError(f"{member.name}: the loss of step {step} of {steps} is not finite")
        scores = model.raw_scores(questions_of(validation), trainer.codec, [trainer.index])
        accuracy = report(with_scores(validation, scores[0]))["accuracy"] or 0.0
        progress.set_postfix(loss=f"{recent.mean().item():.3f}", validation=f"{accuracy:.3f}")
        if accuracy > best:
            best, chosen = accuracy, epoch + 1
            kept = {k: v.detach().clone() for k, v in trainer.member_state().items()}
        done = epoch + 1
        checkpointer.maybe_save(len(losses) + done, state)
    progress.close()
    trainer.load_member(kept)
    member.head.eval().requires_grad_(False)
    return {
        "loss": torch.stack(losses[-per_epoch:]).mean().item(),
        "validation_accuracy": best,
        "best_epoch": chosen,
        "questions": len(drawn),
    }
