"""PPO: the loop, and nothing else. The arithmetic is in ppo_math, the experience in rollout.

Different here: one frozen backbone carries policy, reference, reward and value model as adapters;
the reference metrics on validation choose the update that is kept, never the reward.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from stages.rlhf.chat import Codec
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.model.generation import draw_uniforms
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.ppo.core import masked_mean, next_kl_coef, policy_loss, value_loss
from stages.rlhf.ppo.process_group import ProcessGroup
from stages.rlhf.ppo.reward import Reward
from stages.rlhf.ppo.rollout import (
    Graphs,
    Prompt,
    Rollout,
    collect,
    micro_batches,
    minibatches,
    policy_logprobs,
    token_values,
)
from stages.rlhf.reward.model import Member, RewardModel
from stages.rlhf.runs import signals
from stages.rlhf.runs.checkpoints import (
    Checkpointer,
    State,
    add_prefix,
    load_optimizer,
    optimizer_tensors,
    strip_prefix,
)
from stages.rlhf.runtime import Clock, derive_seed

SINGLE_PROCESS = ProcessGroup()
MAX_BAD_STEPS = 3  # steps in a row whose gradient is not finite, before the run gives up

Validate = Callable[[], dict[str, float]]


@dataclass
class Outcome:
    """What a run leaves behind, beside the adapter itself."""

    updates: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    best_update: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    said: list[list[str]] = field(default_factory=list)  # per evaluation, the answers shown
    stopped: str = "all updates done"
    bad_steps: int = 0


class PpoTrainer:
    """Policy and value adapters on one backbone, trained on answers the policy samples.

    Raises ValueError where there are no prompts, or one is too long for the model.
    """

    def __init__(
        self,
        roles: Roles,
        reward_model: RewardModel,
        codec: Codec,
        questions: list[str],
        ppo: PpoConfig,
        settings: PpoScale,
        max_new_tokens: int,
        seed: int,
        work: Path,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if not questions:
            raise ValueError("no prompts to train PPO on: ppo/train.jsonl is empty")
        step = settings.batch_size // settings.minibatches
        if step < process_group.size:
            raise ValueError(
                f"ppo.batch_size / ppo.minibatches ({step}) leaves some of"
                f" {process_group.size} processes without an answer; at least one each was expected"
            )
        self.roles, self.reward_model, self.codec = roles, reward_model, codec
        self.prompts = [Prompt(question, codec.prompt_ids(question)) for question in questions]
        check_window(self.prompts, max_new_tokens, roles.model.config.max_position_embeddings)
        self.ppo, self.settings = ppo, settings
        self.max_new_tokens, self.seed, self.work, self.process_group = (
            max_new_tokens,
            seed,
            work,
            process_group,
        )
        roles.add(POLICY, like=roles.reference)
        roles.add(VALUE, like=reward_model.members[0].name)
        self.value_head = new_value_head(reward_model.members[0])
        self.policy_parameters = roles.parameters(POLICY)
        self.value_parameters = [*roles.parameters(VALUE), *self.value_head.parameters()]
        adam: dict[str, Any] = {"eps": 1e-5, "weight_decay": 0.0}
        self.policy_optimizer = torch.optim.AdamW(
            self.policy_parameters, lr=settings.learning_rate, **adam
        )
        self.value_optimizer = torch.optim.AdamW(
            self.value_parameters, lr=settings.value_learning_rate, **adam
        )
        self.kl_coef = ppo.kl_coef
        self.clock = Clock()
        self.outcome = Outcome()
        self._bad_in_a_row = 0
        self._graphs: Graphs = {}  # of the rollout that comes next

    def train(
        self,
        validate: Validate,
        better: Callable[[dict[str, float]], bool],
        resume_in: Path | None = None,
    ) -> Outcome:
        """Run all updates; `better` says whether a validation row is the best one so far.

        After each evaluation, and between them when it is time, a checkpoint is written to the
        folder `resume_in`; where one lies there already, the run goes on from it, and comes to the
        same bits. Raises Interrupted where the process was asked to end, the update being saved.
        """
        outcome, ppo = self.outcome, self.ppo
        first = 1 - ppo.value_warmup
        checkpointer = Checkpointer(resume_in, self.process_group.is_main)
        update, stale, ended = self._resume(checkpointer, better) or (first - 1, 0, False)
        if not outcome.validation:
            self._evaluate(0, validate, better)
        stream = self._prompt_stream()
        for _ in range((update + 1 - first) * self.settings.batch_size):
            next(stream)
        updates = range(update + 1, self.settings.updates + 1)
        progress = tqdm([] if ended else updates, desc="ppo", mininterval=5)
        for update in progress:
            prompts = [next(stream) for _ in range(self.settings.batch_size)]
            rollout, reward = self._collect(update, prompts)
            row = self._update(update, rollout, train_policy=update > 0)
            row = {"update": update, **describe(rollout, reward, self.kl_coef), **row}
            outcome.updates.append(row)
            progress.set_postfix(score=f"{row['score']:.2f}", kl=f"{row['kl']:.2f}")
            if ppo.kl_target is not None and update > 0:
                answers = self.settings.batch_size
                self.kl_coef = next_kl_coef(
                    self.kl_coef, row["kl"], ppo.kl_target, answers, ppo.kl_horizon
                )
            if row["kl"] > ppo.stop_kl_run:
                outcome.stopped = f"KL {row['kl']:.2f} > ppo.stop_kl_run ({ppo.stop_kl_run})"
                break
            evaluates = update > 0 and (update % ppo.evaluate_every == 0 or update == updates[-1])
            if evaluates:
                stale = 0 if self._evaluate(update, validate, better) else stale + 1
                ended = stale == ppo.patience or update == updates[-1]
                if stale == ppo.patience:
                    outcome.stopped = f"no better update in ppo.patience ({stale}) evaluations"
            asked = not ended and self.process_group.any(signals.stop_requested())
            state = partial(self._state, update, stale, ended)
            checkpointer.maybe_save(update + ppo.value_warmup, state, evaluates, asked)
            self.clock.lap("checkpoint")
            if ended:
                break
        progress.close()
        return outcome

    def _state(self, update: int, stale: int, ended: bool) -> State:
        """All that the next update depends on."""
        tensors = dict(self.value_head.state_dict(prefix="head."))
        states = {role: self.roles.state(role) for role in (POLICY, VALUE)}
        for name, state in {**states, "best": self.outcome.best_state}.items():
            tensors |= add_prefix(f"{name}.", state)
        for name, optimizer in self._optimizers().items():
            tensors |= add_prefix(f"adam.{name}.", optimizer_tensors(optimizer))
        plain = {
            "update": update,
            "outcome": {
                f.name: getattr(self.outcome, f.name)
                for f in fields(self.outcome)
                if f.name != "best_state"
            },
            "kl_coef": self.kl_coef,
            "bad_in_a_row": self._bad_in_a_row,
            "seconds": self.clock.seconds,
            "stale": stale,
            "ended": ended,
        }
        return tensors, plain

    def _resume(
        self, checkpointer: Checkpointer, better: Callable[[dict[str, float]], bool]
    ) -> tuple[int, int, bool] | None:
        """Take everything from the newest checkpoint: its update, its `stale`, whether it ended."""
        found = checkpointer.load()
        if found is None:
            return None
        tensors, plain = found.tensors, found.plain
        for role in (POLICY, VALUE):
            self.roles.load_state(role, strip_prefix(f"{role}.", tensors))
        self.value_head.load_state_dict(strip_prefix("head.", tensors))
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, strip_prefix(f"adam.{name}.", tensors))
        for name, value in plain["outcome"].items():
            if isinstance(value, list):
                getattr(self.outcome, name)[:] = value  # the validator holds one of these lists
            else:
                setattr(self.outcome, name, value)
        self.outcome.best_state = strip_prefix("best.", tensors)
        for row in self.outcome.validation:
            better(row)
        self.kl_coef, self._bad_in_a_row = plain["kl_coef"], plain["bad_in_a_row"]
        self.clock.seconds.update(plain["seconds"])
        return plain["update"], plain["stale"], plain["ended"]

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value_optimizer}

    def skip_training(
        self, validate: Validate, better: Callable[[dict[str, float]], bool]
    ) -> Outcome:
        """No update at all: SFT, as validation sees it, is the result."""
        self._evaluate(0, validate, better)
        return self.outcome

    def _prompt_stream(self) -> Iterator[Prompt]:
        epoch = 0
        while True:
            rng = random.Random(derive_seed(self.seed, "ppo", "order", epoch))
            for i in rng.sample(range(len(self.prompts)), len(self.prompts)):
                yield self.prompts[i]
            epoch += 1

    def _collect(self, update: int, prompts: list[Prompt]) -> tuple[Rollout, Reward]:
        draws = draw_uniforms(len(prompts), self.max_new_tokens, self.seed, "ppo", "draws", update)
        self._graphs = {role: [] for role in ((POLICY, VALUE) if update > 0 else (VALUE,))}
        return collect(
            self.roles,
            self.value_head,
            self.reward_model,
            self.codec,
            prompts,
            draws,
            self.ppo,
            self.kl_coef,
            self.settings,
            self.process_group,
            self.clock,
            self._graphs,
        )

    def _evaluate(
        self, update: int, validate: Validate, better: Callable[[dict[str, float]], bool]
    ) -> bool:
        with self.roles.use(POLICY):
            row = self.process_group.broadcast(validate())
        kl = self.outcome.updates[-1]["kl"] if self.outcome.updates else 0.0
        row = {"update": update, "sqrt_kl": max(kl, 0.0) ** 0.5, **row}
        self.outcome.validation.append(row)
        self.clock.lap("validate")
        if not better(row):
            return False
        self.outcome.best_update = update
        self.outcome.best_state = self.roles.state(POLICY)
        return True

    def _update(self, update: int, rollout: Rollout, train_policy: bool) -> dict[str, float]:
        """All epochs over one rollout: minibatches in the rollout's order first, then shuffled.

        The first minibatch goes on from the activations that `_collect` kept of it, if it did.
        """
        graphs, self._graphs = self._graphs, {}
        rng = random.Random(derive_seed(self.seed, "ppo", "minibatches", update))
        sums: dict[str, float] = {}
        steps = 0
        for epoch in range(self.ppo.epochs):
            order = list(range(len(rollout)))
            if epoch > 0:
                rng.shuffle(order)
            for rows in minibatches(order, self.settings):
                figures = self._minibatch(rollout, rows, train_policy, graphs)
                graphs = {}
                steps += 1
                for key, value in figures.items():
                    sums[key] = sums.get(key, 0.0) + value
                if figures["approx_kl"] > self.ppo.stop_kl_batch:
                    break
            else:
                continue
            break
        self.clock.lap("update")
        return {key: value / steps for key, value in sums.items()}

    def _minibatch(
        self,
        rollout: Rollout,
        rows: list[int],
        train_policy: bool,
        graphs: Graphs | None = None,
    ) -> dict[str, float]:
        """One optimiser step: micro-batch losses are sums over the minibatch's token count."""
        sequences = rollout.sequences
        sums = torch.zeros(5, device=rollout.returns.device)
        tokens = int(sequences.sizes[rows, 1].sum())
        own = self.process_group.shard(rows)
        for i, part in enumerate(micro_batches(sequences, own, self.settings.micro_batch_tokens)):
            kept = {role: parts[i] for role, parts in (graphs or {}).items() if parts}
            sums += self._backward(rollout[part], tokens, train_policy, kept)
        learned = [*(self.policy_parameters if train_policy else []), *self.value_parameters]
        self.process_group.sum([p.grad for p in learned if p.grad is not None])
        self.process_group.sum([sums])
        policy_norm = nn.utils.clip_grad_norm_(self.policy_parameters, self.ppo.max_grad_norm)
        value_norm = nn.utils.clip_grad_norm_(self.value_parameters, self.ppo.max_grad_norm)
        finite = bool(torch.isfinite(policy_norm + value_norm + sums.sum()))
        if finite:
            if train_policy:
                self.policy_optimizer.step()
            self.value_optimizer.step()
            self._bad_in_a_row = 0
        self.policy_optimizer.zero_grad(set_to_none=True)
        self.value_optimizer.zero_grad(set_to_none=True)
        if not finite:
            self._bad_step(rollout, rows)
            sums, policy_norm, value_norm = torch.zeros(5), torch.zeros(()), torch.zeros(())
        names = ("policy_loss", "clipfrac", "approx_kl", "value_loss", "value_clipfrac")
        figures = dict(zip(names, (sums / tokens).tolist(), strict=True))
        norms = {"policy_grad_norm": float(policy_norm), "value_grad_norm": float(value_norm)}
        return {**figures, **norms}

    def _backward(
        self, part: Rollout, tokens: int, train_policy: bool, kept: dict[str, Tensor]
    ) -> Tensor:
        """(5,) sums of policy loss, clipped tokens, KL(old || new), value loss, clipped values."""
        mask = part.sequences.response_mask
        sums = [torch.zeros(3, device=mask.device)]
        if train_policy:
            with self.roles.use(POLICY, train=True):
                logprobs = kept.get(POLICY)
                if logprobs is None:
                    logprobs = policy_logprobs(self.roles, part.sequences, self.ppo.temperature)
                policy = policy_loss(
                    logprobs, part.old_logprobs, part.advantages, mask, self.ppo.cliprange
                )
                (policy.loss / tokens).backward()
            sums = [torch.stack(policy).detach().float()]
        with self.roles.use(VALUE, train=True):
            values = kept.get(VALUE)
            if values is None:
                values = token_values(self.roles, self.value_head, part.sequences)
            value = value_loss(
                values, part.old_values, part.returns, mask, self.ppo.cliprange_value
            )
            (value.loss / tokens).backward()
        return torch.cat([*sums, torch.stack(value).detach().float()])

    def _bad_step(self, rollout: Rollout, rows: list[int]) -> None:
        """Count a step that was not finite; after three in a row save its batch and give up."""
        self.outcome.bad_steps += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row < MAX_BAD_STEPS:
            return
        part = rollout[rows]
        file = self.work / "bad_batch.json"
        batch = {"ids": part.sequences.ids.tolist(), "advantages": part.advantages.tolist()}
        if self.process_group.is_main:
            self.work.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(batch), encoding="utf-8")
        raise ValueError(
            f"{MAX_BAD_STEPS} steps in a row had a gradient that is not finite;"
            f" the last batch is in {file}"
        )


def check_window(prompts: list[Prompt], answer: int, window: int) -> None:
    """Raises ValueError naming the first prompt that leaves no room for an answer's tokens."""
    for prompt in prompts:
        if len(prompt.ids) + answer > window:
            raise ValueError(
                f"ppo/train.jsonl: a prompt of {len(prompt.ids)} tokens and an answer of {answer}"
                f" exceed the model's window of {window}: {prompt.question[:60]!r}"
            )


def new_value_head(member: Member) -> nn.Linear:
    """A copy of the linear part of a member's head, on the scale of the normalised score."""
    weight = member.head.value.weight
    head = nn.Linear(weight.shape[1], 1).to(weight.device)
    with torch.no_grad():
        head.weight.copy_(weight / member.sd)
        head.bias.zero_()
    return head


def describe(rollout: Rollout, reward: Reward, kl_coef: float) -> dict[str, float]:
    """The rollout in numbers, for one row of the CSV; KL in nats per answer."""
    mask = rollout.sequences.response_mask
    kl = torch.where(mask, rollout.old_logprobs - rollout.ref_logprobs, 0).sum(-1)
    left = torch.where(mask, rollout.returns - rollout.old_values, 0)
    spread = masked_mean((rollout.returns - masked_mean(rollout.returns, mask)) ** 2, mask)
    return {
        "score": reward.score.mean().item(),
        "uncertainty": reward.uncertainty.mean().item(),
        "reward": (reward.total - kl_coef * kl).mean().item(),
        "penalty": reward.penalty.mean().item(),
        "eos_rate": 1 - reward.violations.missing_eos.float().mean().item(),
        "repetition": reward.violations.repetition.float().mean().item(),
        "copy_rate": reward.violations.copy.float().mean().item(),
        "kl": kl.mean().item(),
        "kl_coef": kl_coef,
        "length": mask.sum(-1).float().mean().item(),
        "entropy": -masked_mean(rollout.old_logprobs, mask).item(),
        "explained_variance": 1 - (masked_mean(left**2, mask) / spread.clamp(min=1e-8)).item(),
    }
