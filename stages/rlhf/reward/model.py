"""The reward model: an ensemble of adapters on the frozen SFT backbone, each with a small head.

score = w . h_last  [+ a * mean_t l_t + b * min_t l_t + sum_k sum_t p_kt (v_k . h_t + c_k * l_t)]

h_t is the state at the answer's token t, h_last that at its last, the EOS; l_t is the token's
log-probability by the adapter's own language model head. The terms in brackets are the hybrid
head's: how likely the answer's tokens are says what the backbone knows, so that a fact counts which
no ranked pair has shown. Where in an answer it matters is learned: p_k is a softmax over the tokens
of q_k . h_t, for TOKEN_HEADS values of k, so that the surprise of a name and that of a filler are
told apart, which mean and minimum alone cannot.

Members differ by their initial weights, the order and the bootstrap of their questions; where they
disagree, none of them has seen the like. Coste et al. 2024, arXiv 2310.02743. M members, N answers,
B answers of a batch, R response tokens, H hidden size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.rlhf import tensors
from stages.rlhf.chat import Codec
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.model.packing import (
    answer_logprobs,
    answer_states,
    by_length,
    can_pack,
    last_states,
    pack,
    packed_states,
    row_length,
    worth_packing,
)
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import collate, hidden_states, response_logprobs, response_states
from stages.rlhf.runtime import derive_seed

SCORING_TOKENS = 2048  # of a part that is scored at once
TOKEN_HEADS = 4
PromptWithResponses = tuple[list[int], list[list[int]]]  # ids of a prompt and of its answers


def member_name(index: int, kind: str = "reward") -> str:
    """The adapter of a member, and its folder; `kind` tells the judge's from the reward model's."""
    return f"{kind}{index}"


class Features(NamedTuple):
    """What a head reads of B answers, however they were laid out in rows."""

    last: Tensor  # (B, H) state at the answer's last token
    logprobs: Tensor | None  # (B, R) of its tokens; None where nobody asks
    states: Tensor | None  # (N, H) at the N tokens that the mask counts; None where nobody asks
    mask: Tensor  # (B, R) bool


class Scores(NamedTuple):
    """N answers in standard deviations above the mean of SFT's own, over the members."""

    mean: Tensor  # (N,)
    variance: Tensor  # (N,) 0 with one member


class TokenHeads(nn.Module):
    """sum_k sum_t p_kt (v_k . h_t + c_k * l_t) over an answer's tokens t, K = TOKEN_HEADS."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.where = nn.Linear(hidden_size, TOKEN_HEADS, bias=False)
        self.value = nn.Linear(hidden_size, TOKEN_HEADS, bias=False)
        self.fluency = nn.Parameter(torch.full((TOKEN_HEADS,), 0.2))
        nn.init.normal_(self.where.weight, std=0.02)  # all tokens alike, to begin with
        nn.init.normal_(self.value.weight, std=0.3 / (hidden_size + 1) ** 0.5)

    def forward(self, logprobs: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """(B, R), (N, H), (B, R) -> (B,)."""
        spread = mask[..., None].expand(*mask.shape, TOKEN_HEADS)
        logits = torch.full(spread.shape, -torch.inf, device=mask.device)
        weights = logits.masked_scatter(spread, self.where(states)).softmax(1)  # (B, R, K)
        values = torch.zeros(spread.shape, device=mask.device)
        values = values.masked_scatter(spread, self.value(states))
        values = values + torch.where(mask, logprobs, 0)[..., None] * self.fluency
        return (weights * values).sum((1, 2))


class Head(nn.Module):
    """From hidden states and token log-probabilities to one number per answer."""

    def __init__(self, hidden_size: int, hybrid: bool) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1, bias=False)
        self.fluency = nn.Parameter(torch.tensor([1.0, 0.5])) if hybrid else None
        self.tokens = TokenHeads(hidden_size) if hybrid else None
        nn.init.normal_(self.value.weight, std=1 / (hidden_size + 1) ** 0.5)

    def forward(self, features: Features) -> Tensor:
        """(B,); a head without the hybrid's terms needs `last` alone."""
        last, logprobs, states, mask = features
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has three digits
            scores: Tensor = self.value(last.float()).squeeze(-1)
            if self.fluency is None or self.tokens is None:
                return scores
            assert logprobs is not None, "the hybrid head reads log-probabilities"
            assert states is not None, "the hybrid head reads all states of an answer"
            mean = torch.where(mask, logprobs, 0).sum(-1) / mask.sum(-1)
            least = torch.where(mask, logprobs, 0).min(-1).values
            scores = scores + self.fluency[0] * mean + self.fluency[1] * least
            return scores + self.tokens(logprobs, states.float(), mask)


@dataclass
class Member:
    """A head, and the adapter it was trained with; `mean` and `sd` are its raw score's over answers
    that SFT samples for validation prompts.
    """

    name: str
    head: Head
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """What validation says of a trained model; scores are on the scale of `Scores`."""

    curve: LengthCurve  # lengths in tokens, EOS included
    applied: bool  # whether PPO takes the curve off the score
    accuracy: float | None  # on the half of validation that the tried curve was not fitted on
    accuracy_corrected: float | None
    temperature: float
    temperature_corrected: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"curve": self.curve.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """The calibration of `to_dict`."""
        return cls(**{**plain, "curve": LengthCurve.from_dict(plain["curve"])})


@dataclass
class RewardModel:
    """The members, and the roles that hold their adapters."""

    roles: Roles
    members: list[Member]
    calibration: Calibration | None = None  # by validation, once trained

    @property
    def hybrid(self) -> bool:
        """Whether the heads read log-probabilities."""
        return self.members[0].head.fluency is not None

    def parts(self, questions: Sequence[PromptWithResponses], tokens: int) -> list[list[int]]:
        """Places of questions that `features` reads at once, at most `tokens` tokens each.

        A question's answers share a row with its prompt where the model allows it and it pays;
        the others have a row each, in parts of their own.
        """
        model, found = self.roles.model, []
        packs = can_pack(model)
        together = [packs and worth_packing(*q, model.config.hidden_size) for q in questions]
        for shared in (True, False):
            places = [i for i, is_shared in enumerate(together) if is_shared is shared]
            lengths = [
                row_length(prompt, answers)
                if shared
                else len(answers) * (len(prompt) + max(map(len, answers)))
                for prompt, answers in (questions[i] for i in places)
            ]
            found += [[places[i] for i in part] for part in by_length(lengths, tokens)]
        return found

    def features(
        self, questions: Sequence[PromptWithResponses], codec: Codec, logprobs: bool = True
    ) -> Features:
        """What a head reads of these questions' answers under the role in use, in their order.

        `logprobs` only if asked for.
        """
        model = self.roles.model
        if can_pack(model) and all(worth_packing(*q, model.config.hidden_size) for q in questions):
            prompts, answers = map(list, zip(*questions, strict=True))
            packed = pack(prompts, answers, codec.pad_id, model.device)
            hidden = packed_states(model, packed)
            said = answer_logprobs(model, hidden, packed) if logprobs else None
            states = answer_states(hidden, packed) if self.hybrid else None
            return Features(last_states(hidden, packed), said, states, packed.response_mask)
        rows = collate(
            [prompt for prompt, answers in questions for _ in answers],
            [answer for _, answers in questions for answer in answers],
            codec.pad_id,
            model.device,
        )
        hidden = hidden_states(model, rows)
        last = hidden[torch.arange(len(hidden), device=hidden.device), rows.last]
        said = response_logprobs(model, hidden, rows) if logprobs else None
        states = response_states(hidden, rows) if self.hybrid else None
        return Features(last, said, states, rows.response_mask)

    def forward(
        self, questions: Sequence[PromptWithResponses], codec: Codec, index: int = 0
    ) -> Tensor:
        """(N,) raw scores of all answers by a member; call inside `roles.use` of its name."""
        scores: Tensor = self.members[index].head(self.features(questions, codec, self.hybrid))
        return scores

    @torch.no_grad()
    def raw_scores(
        self,
        questions: Sequence[PromptWithResponses],
        codec: Codec,
        members: Sequence[int] | None = None,
        tokens: int = SCORING_TOKENS,
    ) -> Tensor:
        """(M, N) raw scores of the questions' N answers by all members, or some, on the CPU.

        Raises ValueError naming the first answer whose score is not finite.
        """
        chosen = range(len(self.members)) if members is None else members
        ends = [0, *accumulate(len(answers) for _, answers in questions)]
        scores = torch.empty(len(chosen), ends[-1])
        parts = self.parts(questions, tokens)
        for place, index in enumerate(chosen):
            with self.roles.use(self.members[index].name):
                for part in parts:
                    columns = [i for q in part for i in range(ends[q], ends[q + 1])]
                    read = [questions[q] for q in part]
                    scores[place, columns] = self.forward(read, codec, index).float().cpu()
        if not scores.isfinite().all():
            place, first = (~scores.isfinite()).nonzero()[0].tolist()
            name, score = self.members[chosen[place]].name, scores[place, first]
            answer = [a for _, answers in questions for a in answers][first]
            raise ValueError(f"{name}: score of answer {first} is {score}: {answer}")
        return scores

    def score(self, questions: Sequence[PromptWithResponses], codec: Codec) -> Scores:
        """Scores (N,) of all answers, on the CPU. Raises ValueError where one is not finite."""
        return self.combine(self.raw_scores(questions, codec))

    def combine(self, raw: Tensor) -> Scores:
        """(M, N) raw scores -> each on its member's scale, then mean and variance over members."""
        means = torch.tensor([[member.mean] for member in self.members])
        sds = torch.tensor([[member.sd] for member in self.members])
        scores = (raw - means) / sds
        return Scores(scores.mean(0), scores.var(0, correction=0))

    def corrected_scores(self, questions: Sequence[PromptWithResponses], codec: Codec) -> Tensor:
        """(N,) mean scores less the length curve where it is applied: what PPO follows."""
        answers = [answer for _, given in questions for answer in given]
        return self.score(questions, codec).mean - self.length_offsets(answers)

    def length_offsets(self, answers: Sequence[list[int]]) -> Tensor:
        """(N,) what the length curve takes off the scores of these answers; 0 if not applied."""
        if self.calibration is None or not self.calibration.applied:
            return torch.zeros(len(answers))
        offsets = self.calibration.curve.at([len(answer) for answer in answers])
        return torch.tensor(offsets, dtype=torch.float32)

    def save(self, folder: Path) -> None:
        """Write a folder per member, adapter and head.safetensors, and reward.json."""
        for member in self.members:
            self.roles.save(member.name, folder / member.name)
            state = member.head.state_dict()
            tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
            save_file(tensors, folder / member.name / "head.safetensors")
        scales = {member.name: {"mean": member.mean, "sd": member.sd} for member in self.members}
        found = self.calibration.to_dict() if self.calibration else None
        plain = {"hybrid": self.hybrid, "members": scales, "calibration": found}
        text = json.dumps(plain, indent=2)
        (folder / "reward.json").write_text(text + "\n", encoding="utf-8")


def new_reward_model(
    roles: Roles, head: str, members: int, *seed: object, kind: str = "reward"
) -> RewardModel:
    """Untrained members: copies of the reference's adapter, or new ones, and random heads."""
    made = []
    for index in range(members):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(*seed, index, "init"))
            roles.add(member_name(index, kind), like=roles.reference)
            random_head = Head(roles.model.config.hidden_size, hybrid=head == "hybrid")
        made.append(Member(member_name(index, kind), random_head.to(roles.model.device)))
    return RewardModel(roles, made)


def load_reward_model(roles: Roles, folder: Path) -> RewardModel:
    """Read a reward model onto the backbone it was trained with (`models.check_card` tells)."""
    figures: dict[str, Any] = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    members = []
    for name, scale in figures["members"].items():
        roles.load(name, folder / name)
        head = Head(roles.model.config.hidden_size, hybrid=figures["hybrid"])
        head.load_state_dict(tensors.read(folder / name / "head.safetensors"))
        head = head.to(roles.model.device).eval().requires_grad_(False)
        members.append(Member(name, head, scale["mean"], scale["sd"]))
    found = figures["calibration"]
    return RewardModel(roles, members, Calibration.from_dict(found) if found else None)
