"""The reward model: an ensemble of adapters on the frozen SFT backbone, each with a small head.

score = w . h_last  [+ a * mean log-probability of the answer's tokens + b * the least of them]

The terms in brackets are the hybrid head's: the adapter's own language model head says how likely
the answer's tokens are, so that a fact which the backbone knows but no ranked pair has shown still
counts. h_last is the state at the last attended token, the answer's EOS.

Members differ by their initial weights, the order and the bootstrap of their questions; where they
disagree, none of them has seen the like. Coste et al. 2024, arXiv 2310.02743. M members, N answers,
B answers of a batch, R response tokens, H hidden size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.rlhf.chat import Codec
from stages.rlhf.models import Roles
from stages.rlhf.runtime import derive_seed
from stages.rlhf.sequences import Sequences, collate, hidden_states, response_logprobs


def member_name(index: int) -> str:
    """The adapter of a member, and its folder."""
    return f"reward{index}"


class Features(NamedTuple):
    """What a head reads of B answers, however they were laid out in rows."""

    last: Tensor  # (B, H) state at the answer's last token
    logprobs: Tensor | None  # (B, R) of its tokens; None where nobody asks
    mask: Tensor  # (B, R) bool


class Scores(NamedTuple):
    """N answers in standard deviations above the mean of SFT's own, over the members."""

    mean: Tensor  # (N,)
    variance: Tensor  # (N,) 0 with one member


class Head(nn.Module):
    """From hidden states and token log-probabilities to one number per answer."""

    def __init__(self, hidden_size: int, hybrid: bool) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1, bias=False)
        self.fluency = nn.Parameter(torch.tensor([1.0, 0.5])) if hybrid else None
        nn.init.normal_(self.value.weight, std=1 / (hidden_size + 1) ** 0.5)

    def forward(self, last: Tensor, logprobs: Tensor | None, mask: Tensor) -> Tensor:
        """(B, H), (B, R) x 2 -> (B,); a head without the hybrid's terms needs no logprobs."""
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has three digits
            scores: Tensor = self.value(last.float()).squeeze(-1)
        if self.fluency is None:
            return scores
        assert logprobs is not None, "the hybrid head reads log-probabilities"
        mean = torch.where(mask, logprobs, 0).sum(-1) / mask.sum(-1)
        least = torch.where(mask, logprobs, 0).min(-1).values
        return scores + self.fluency[0] * mean + self.fluency[1] * least


@dataclass
class Member:
    """A head, and the adapter it was trained with; `mean` and `sd` are its raw score's over answers
    that SFT samples for validation prompts.
    """

    name: str
    head: Head
    mean: float = 0.0
    sd: float = 1.0


@dataclass
class RewardModel:
    """The members, and the roles that hold their adapters."""

    roles: Roles
    members: list[Member]

    @property
    def hybrid(self) -> bool:
        """Whether the heads read log-probabilities."""
        return self.members[0].head.fluency is not None

    def features(self, sequences: Sequences, logprobs: bool) -> Features:
        """What a head reads of these rows under the role in use; `logprobs` only if asked for."""
        hidden = hidden_states(self.roles.model, sequences)
        last = hidden[torch.arange(len(hidden), device=hidden.device), sequences.last]
        said = response_logprobs(self.roles.model, hidden, sequences) if logprobs else None
        return Features(last, said, sequences.response_mask)

    def forward(self, sequences: Sequences, index: int = 0) -> Tensor:
        """(B,) raw scores by a member; call inside `roles.use(member_name(index))`."""
        scores: Tensor = self.members[index].head(*self.features(sequences, self.hybrid))
        return scores

    @torch.no_grad()
    def raw_scores(
        self,
        prompts: list[list[int]],
        answers: list[list[int]],
        codec: Codec,
        batch_size: int,
        members: Sequence[int] | None = None,
    ) -> Tensor:
        """(M, N) raw scores of N answers by all members, or by some, on the CPU.

        Raises ValueError naming the first answer whose score is not finite.
        """
        chosen = range(len(self.members)) if members is None else members
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
        scores = torch.empty(len(chosen), len(prompts))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate(
                [prompts[i] for i in rows],
                [answers[i] for i in rows],
                codec.pad_id,
                self.roles.model.device,
            )
            for place, index in enumerate(chosen):
                with self.roles.use(self.members[index].name):
                    scores[place, rows] = self.forward(batch, index).cpu()
        if not scores.isfinite().all():
            place, first = (~scores.isfinite()).nonzero()[0].tolist()
            name, score = self.members[chosen[place]].name, scores[place, first]
            raise ValueError(f"{name}: score of answer {first} is {score}: {answers[first]}")
        return scores

    def score(
        self, prompts: list[list[int]], answers: list[list[int]], codec: Codec, batch_size: int
    ) -> Scores:
        """Scores (N,) of N answers, on the CPU. Raises ValueError where one is not finite."""
        return self.combine(self.raw_scores(prompts, answers, codec, batch_size))

    def combine(self, raw: Tensor) -> Scores:
        """(M, N) raw scores -> each on its member's scale, then mean and variance over members."""
        means = torch.tensor([[member.mean] for member in self.members])
        sds = torch.tensor([[member.sd] for member in self.members])
        scores = (raw - means) / sds
        return Scores(scores.mean(0), scores.var(0, correction=0))

    def save(self, folder: Path) -> None:
        """Write a folder per member, adapter and head.safetensors, and reward.json."""
        for member in self.members:
            self.roles.save(member.name, folder / member.name)
            state = member.head.state_dict()
            plain = {k: v.detach().cpu().contiguous() for k, v in state.items()}
            save_file(plain, folder / member.name / "head.safetensors")
        scales = {member.name: {"mean": member.mean, "sd": member.sd} for member in self.members}
        text = json.dumps({"hybrid": self.hybrid, "members": scales}, indent=2)
        (folder / "reward.json").write_text(text + "\n", encoding="utf-8")


def new_reward_model(roles: Roles, head: str, members: int, *seed: object) -> RewardModel:
    """Untrained members: copies of the reference's adapter, or new ones, and random heads."""
    made = []
    for index in range(members):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(*seed, index, "init"))
            roles.add(member_name(index), like=roles.reference)
            random_head = Head(roles.model.config.hidden_size, hybrid=head == "hybrid")
        made.append(Member(member_name(index), random_head.to(roles.model.device)))
    return RewardModel(roles, made)


def load_reward_model(roles: Roles, folder: Path) -> RewardModel:
    """Read a reward model onto the backbone it was trained with (`models.check_card` tells)."""
    figures: dict[str, Any] = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    members = []
    for name, scale in figures["members"].items():
        roles.load(name, folder / name)
        head = Head(roles.model.config.hidden_size, hybrid=figures["hybrid"])
        head.load_state_dict(load_file(folder / name / "head.safetensors"))
        head = head.to(roles.model.device).eval().requires_grad_(False)
        members.append(Member(name, head, scale["mean"], scale["sd"]))
    return RewardModel(roles, members)
