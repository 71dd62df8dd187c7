"""PPO: the loop, phase by phase, and nothing else.

    rollout   1 sample, 2 log-probs and values, 3 score -> reward, 4 token rewards, 5 advantages
    learn     6 epochs of minibatches, each a `step` on the clipped losses
    train     update after update: `rollout`, `learn`, 7 validate and save

B responses, b of them in a micro-batch, P prompt tokens, R response tokens.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.config.ppo import PpoConfig, PpoScale
from stages.rlhf.decoding.generation import draw_uniforms
from stages.rlhf.evidence.evidence import Evidence
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.model.sequences import collate, context_window, decoder_of
from stages.rlhf.ppo import rollout as experience
from stages.rlhf.ppo import stats
from stages.rlhf.ppo.actor_critic import ActorCritic
from stages.rlhf.ppo.core import (
    gae,
    group_normalised,
    has_spread,
    leave_one_out,
    next_kl_coef,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from stages.rlhf.ppo.reward import Penalties, missing_eos_cost
from stages.rlhf.ppo.rollout import Prompt, Rollout, Targets, micro_batches, minibatches
from stages.rlhf.ppo.selection import Decide
from stages.rlhf.ppo.state import Progress, Resume
from stages.rlhf.ppo.validation import Validate
from stages.rlhf.records import PromptRow
from stages.rlhf.reward.model import RewardModel
from stages.rlhf.runs.process_group import SINGLE_PROCESS, BatchShard, ProcessGroup
from stages.rlhf.runs.sharding import in_step
from stages.rlhf.runtime import Clock, derive_seed

ESTIMATORS = {"rloo": leave_one_out, "grpo": group_normalised}  # next to gae, of whole responses


class PpoTrainer:
    """Raises ValueError where there are no prompts, or one is too long for the model."""

    def __init__(
        self,
        roles: Roles,
        reward_model: RewardModel,
        codec: Codec,
        rows: Sequence[PromptRow],
        ppo: PpoConfig,
        settings: PpoScale,
        max_new_tokens: int,
        generation: GenerationScale,
        seed: int,
        work: Path,
        process_group: ProcessGroup = SINGLE_PROCESS,
        evidence: Evidence | None = None,
    ) -> None:
        per_step = settings.batch_size // settings.minibatches
        process_group.check_rows(per_step, "ppo.batch_size / ppo.minibatches")
        window = context_window(roles.model)
        self.prompts = experience.encode_prompts(rows, codec, max_new_tokens, window)
        self.roles, self.reward_model, self.codec = roles, reward_model, codec
        self.ppo, self.settings, self.max_new_tokens = ppo, settings, max_new_tokens
        self.generation = generation
        self.seed, self.work, self.process_group = seed, work, process_group
        self.evidence = evidence
        critic = reward_model.members[0] if ppo.advantage == "gae" else None
        self.model = ActorCritic(roles, critic, settings, ppo.temperature)
        self.progress = Progress(update=-ppo.warmup, kl_coef=ppo.kl_coef)
        self.clock = Clock()

    def train(self, validate: Validate, decide: Decide, resume_in: Path | None = None) -> Progress:
        """Run all updates; those up to 0 warm up the value model alone.

        Checkpoints go to the folder `resume_in`; where it has one already, the run resumes from it,
        to the same bits. Raises Interrupted where a stop was requested.
        """
        ppo, progress, size = self.ppo, self.progress, self.settings.batch_size
        resume = Resume(resume_in, self.model, progress, self.clock, self.process_group)
        if not progress.validation:
            self.evaluate(0, validate, decide)
        updates = range(progress.update + 1, self.settings.updates + 1)
        bar = tqdm([] if progress.stopped else updates, desc="ppo", mininterval=5)
        for update in bar:
            rollout = self.rollout(update, self.prompts_of(update))  # 1 to 5
            learned = self.learn(update, rollout)  # 6
            self.clock.lap("update")
            row = stats.update_row(update, rollout, progress.kl_coef, learned)
            progress.updates.append(row)
            bar.set_postfix(score=f"{row['score']:.2f}", kl=f"{row['kl']:.2f}")
            if ppo.kl_target is not None and update > 0:
                control = (row["kl"], ppo.kl_target, size, ppo.kl_horizon)
                progress.kl_coef = next_kl_coef(progress.kl_coef, *control)
            if row["kl"] > ppo.stop_kl_run:
                progress.stopped = f"KL {row['kl']:.2f} > ppo.stop_kl_run ({ppo.stop_kl_run})"
                break

            # 7. Validate, choose the policy to keep, save a checkpoint.
            last = update == self.settings.updates
            evaluates = update > 0 and (update % ppo.evaluate_every == 0 or last)
            if evaluates:
                self.evaluate(update, validate, decide)
            if last:
                progress.stopped = progress.stopped or "all updates done"
            progress.update = update
            resume.maybe_save(update + ppo.warmup, now=evaluates)
            if progress.stopped:
                break
        return progress

    def evaluate(self, update: int, validate: Validate, decide: Decide) -> None:
        """Validate the policy, and keep it where `decide` says so."""
        with self.roles.use(POLICY):
            metrics, shown = validate()
        self.progress.add_validation(update, self.process_group.broadcast(metrics), shown, decide)
        if self.progress.kept.update == update:
            self.progress.kept_policy = self.roles.state(POLICY)
        self.clock.lap("validate")

    def prompts_of(self, update: int) -> list[Prompt]:
        """The B prompts of an update, each as often in a row as it is answered."""
        number, answers = update - 1 + self.ppo.warmup, self.ppo.answers_per_prompt
        size = self.settings.batch_size // answers
        batch = experience.prompt_batch(self.prompts, number, size, self.seed)
        return [prompt for prompt in batch for _ in range(answers)]

    def penalties(self) -> Penalties:
        """What violations cost; a missing EOS less if many of SFT's validation answers lack it."""
        ppo, validation = self.ppo, self.progress.validation
        cut_share = 1 - validation[0].get("eos_rate", 1.0) if validation else 0.0
        missing_eos = missing_eos_cost(ppo.missing_eos_penalty, cut_share)
        return Penalties(missing_eos, ppo.repetition_penalty, ppo.copy_penalty)

    @torch.no_grad()
    def rollout(self, update: int, prompts: list[Prompt]) -> Rollout:
        """A response to each of B prompts, and what there is to learn from it."""
        ppo, roles, model, codec = self.ppo, self.roles, self.model, self.codec
        shard = BatchShard.of(self.process_group, minibatches(range(len(prompts)), self.settings))

        # 1. Sample a response to each prompt; uniforms sampled beforehand decide every token.
        seed = (self.seed, "ppo", "draws", update)
        uniforms = draw_uniforms(len(prompts), self.max_new_tokens, *seed)  # (B, R)
        with roles.merged_copy(POLICY) as policy:
            responses = experience.sample(
                policy, prompts, uniforms, codec, ppo.temperature, shard, self.generation
            )
        self.clock.lap("generate")
        sequences = collate([p.ids for p in prompts], responses, codec.pad_id, roles.model.device)
        mask = sequences.response_mask  # (B, R), where sequences.ids are (B, P + R)

        # 2. Log-probabilities under policy and reference, and values: by the training forward, in
        #    the micro-batches of the first epoch, so that its ratios are exactly 1.
        decoder, limit = decoder_of(roles.model), self.settings.micro_batch_tokens
        forward = experience.Forward(decoder, sequences, shard, limit)
        with roles.use(POLICY, train=True):
            old_logprobs = forward(model.logprobs)  # (B, R)
        with roles.use(roles.reference):
            ref_logprobs = forward(model.logprobs)  # (B, R)
        values = None
        if ppo.advantage == "gae":
            with roles.use(VALUE, train=True):
                values = forward(model.values)  # (B, R)

        # 3. Score each response; reward = score - uncertainty - penalty, (B,) each.
        scoring = (codec, ppo, self.penalties(), shard)
        evidence = (self.evidence, self.settings.corpus_check)
        reward = experience.score_responses(
            self.reward_model, prompts, responses, *scoring, *evidence
        )

        # 4. -kl_coef * log(policy / reference) at each token, the reward at the last one.
        kl_coef = self.progress.kl_coef
        rewards = token_rewards(reward.total, old_logprobs, ref_logprobs, mask, kl_coef)  # (B, R)

        # 5. Advantages: by GAE, whitened over all tokens of the batch; or of a whole response, over
        #    the other answers to its prompt, where they differ.
        targets, learned = None, list(range(len(prompts)))
        if values is not None:
            advantages, returns = gae(rewards, values, mask, ppo.gamma, ppo.lam)  # (B, R) each
            advantages, targets = whiten(advantages, mask), Targets(values, returns)
        else:
            totals, answers = rewards.sum(-1), ppo.answers_per_prompt  # (B,)
            over_others = ESTIMATORS[ppo.advantage](totals, answers)  # (B,)
            advantages = torch.where(mask, over_others[:, None], 0)  # (B, R)
            learned = has_spread(totals, answers).nonzero().flatten().tolist()
        self.clock.lap("score")
        return Rollout(sequences, reward, old_logprobs, ref_logprobs, advantages, targets, learned)

    def learn(self, update: int, rollout: Rollout) -> stats.StepStats:
        """6. Epochs of minibatches over one rollout: in the order it was sampled, then shuffled."""
        rng = random.Random(derive_seed(self.seed, "ppo", "minibatches", update))
        done: list[stats.StepStats] = []
        for epoch in range(self.ppo.epochs):
            order = list(rollout.rows)
            if epoch > 0:
                rng.shuffle(order)
            for rows in minibatches(order, self.settings):
                done.append(self.step(rollout, rows, train_policy=update > 0))
                if done[-1].approx_kl > self.ppo.stop_kl_batch:
                    return stats.mean_stats(done)
        return stats.mean_stats(done)

    def step(self, rollout: Rollout, rows: list[int], train_policy: bool = True) -> stats.StepStats:
        """One optimiser step: the losses of a minibatch, micro-batch by micro-batch."""
        ppo, roles, model, group = self.ppo, self.roles, self.model, self.process_group
        tokens = int(rollout.sequences.sizes[rows, 1].sum())  # what each loss is a mean over
        sums = stats.LossSums(rollout.advantages.device)
        limit = self.settings.micro_batch_tokens
        parts = micro_batches(rollout.sequences, group.shard(rows), limit)
        passes = int(train_policy) + (rollout.targets is not None)
        for part in in_step(decoder_of(roles.model), parts, gradients=passes):
            mb = rollout[part]
            mask = mb.sequences.response_mask  # (b, R)
            if train_policy:
                with roles.use(POLICY, train=True):
                    logprobs, old = model.logprobs(mb.sequences), mb.old_logprobs  # (b, R) each
                    policy = policy_loss(logprobs, old, mb.advantages, mask, ppo.cliprange)
                    (policy.loss / tokens).backward()
                sums.add(policy_loss=policy.loss, clipfrac=policy.clipped, approx_kl=policy.kl)
            if mb.targets:
                with roles.use(VALUE, train=True):
                    values = model.values(mb.sequences)  # (b, R)
                    value = value_loss(values, *mb.targets, mask, ppo.cliprange_value)
                    (value.loss / tokens).backward()
                sums.add(value_loss=value.loss, value_clipfrac=value.clipped)

        trained = [role for role in model.optimizers if train_policy or role == VALUE]
        group.sum(model.gradients(trained))
        norms = {
            f"{role}_grad_norm": float(clip_grad_norm_(model.parameters[role], ppo.max_grad_norm))
            for role in trained
        }
        found = sums.step_stats(tokens, group, **norms)
        if not found.finite:
            model.zero_grad()
            self.progress.count_bad_step(rollout[rows], self.work if group.is_main else None)
            return stats.StepStats()
        for role in trained:
            model.optimizers[role].step()
        model.zero_grad()
        self.progress.bad_in_a_row = 0
        return found
