"""The reward model: an ensemble of adapters on the frozen SFT backbone, each with a small head.

score = w . h_last  [+ a * mean_t l_t + b * min_t l_t + sum_k sum_t p_kt (v_k . h_t + c_k * l_t)]

h_t is the hidden state at response token t, h_last that at the last token, EOS; l_t is the token's
log-probability under the adapter's own LM head. The bracketed terms belong to the hybrid head:
likelihood reflects what the backbone knows, including facts that no ranked pair covers. Which
tokens matter is learned: p_k is a softmax over the tokens of q_k . h_t, for TOKEN_HEADS values of
k, so that an unlikely name and an unlikely filler count differently, unlike in mean and minimum.

Members differ in initial weights, data order and bootstrap sample; their disagreement signals
inputs unlike the training data. Coste et al. 2024, arXiv 2310.02743. M members, N responses, B
responses in a batch, R response tokens, H hidden size.
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
from tqdm import tqdm

from stages.rlhf import tensors
from stages.rlhf.chat import Codec
from stages.rlhf.measure.length_curve import LengthCurve
from stages.rlhf.model.packing import (
    by_length,
    can_pack,
    last_states,
    pack,
    packed_response_logprobs,
    packed_response_states,
    packed_states,
    row_length,
    worth_packing,
)
from stages.rlhf.model.roles import Roles
from stages.rlhf.model.sequences import (
    collate,
    decoder_of,
    hidden_states,
    response_logprobs,
    response_states,
)
from stages.rlhf.runs.process_group import SINGLE_PROCESS, ProcessGroup
from stages.rlhf.runs.sharding import in_step
from stages.rlhf.runtime import derive_seed
from stages.rlhf.sizes import SCORING_TOKENS

TOKEN_HEADS = 4
PromptWithResponses = tuple[list[int], list[list[int]]]  # ids of a prompt and of its responses


def member_name(index: int, kind: str = "reward") -> str:
    """Name of a member's adapter and folder; `kind` is "reward" or "judge"."""
    return f"{kind}{index}"


class Features(NamedTuple):
    """Inputs of a head for B responses, packed or not."""

    last: Tensor  # (B, H) state at the response's last token
    logprobs: Tensor | None  # (B, R) of its tokens, or some responses' alone; None if not needed
    states: Tensor | None  # (N, H) at the N unmasked tokens; None if not needed
    mask: Tensor  # (B, R) bool


class Scores(NamedTuple):
    """Scores of N responses, in sd above the mean of SFT's own, over the members."""

    mean: Tensor  # (N,)
    variance: Tensor  # (N,) over members; 0 with one member


class TokenHeads(nn.Module):
    """sum_k sum_t p_kt (v_k . h_t + c_k * l_t) over a response's tokens t, K = TOKEN_HEADS."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.where = nn.Linear(hidden_size, TOKEN_HEADS, bias=False)
        self.value = nn.Linear(hidden_size, TOKEN_HEADS, bias=False)
        self.fluency = nn.Parameter(torch.full((TOKEN_HEADS,), 0.2))
        nn.init.normal_(self.where.weight, std=0.02)  # near-uniform attention at initialisation
        nn.init.normal_(self.value.weight, std=0.3 / (hidden_size + 1) ** 0.5)

    def forward(self, logprobs: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """(B, R), (N, H), (B, R) -> (B,)."""
        mask_k = mask[..., None].expand(*mask.shape, TOKEN_HEADS)
        logits = torch.full(mask_k.shape, -torch.inf, device=mask.device)
        weights = logits.masked_scatter(mask_k, self.where(states)).softmax(1)  # (B, R, K)
        values = torch.zeros(mask_k.shape, device=mask.device)
        values = values.masked_scatter(mask_k, self.value(states))
        values = values + torch.where(mask, logprobs, 0)[..., None] * self.fluency
        return (weights * values).sum((1, 2))


class Head(nn.Module):
    """Hidden states and token log-probabilities to one score per response."""

    def __init__(self, hidden_size: int, hybrid: bool) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_size, 1, bias=False)
        self.fluency = nn.Parameter(torch.tensor([1.0, 0.5])) if hybrid else None
        self.tokens = TokenHeads(hidden_size) if hybrid else None
        nn.init.normal_(self.value.weight, std=1 / (hidden_size + 1) ** 0.5)

    def forward(self, features: Features) -> Tensor:
        """(B,); a scalar head needs `last` only."""
        last, logprobs, states, mask = features
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has 3 digits
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
    """A head and its adapter; `mean` and `sd` are those of its raw scores on SFT samples to
    validation prompts.
    """

    name: str
    head: Head
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Calibration:
    """Calibration of a trained model on validation; on the scale of `Scores`."""

    curve: LengthCurve  # lengths in tokens, EOS included
    applied: bool  # whether the curve is subtracted from PPO's scores
    accuracy: float | None  # on validation
    accuracy_corrected: float | None  # the same, each half corrected by the curve of the other
    temperature: float
    temperature_corrected: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"curve": self.curve.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Calibration":
        """Inverse of `to_dict`."""
        return cls(**{**plain, "curve": LengthCurve.from_dict(plain["curve"])})


@dataclass
class RewardModel:
    """An ensemble of members, with the roles that contain their adapters."""

    roles: Roles
    members: list[Member]
    calibration: Calibration | None = None  # set after training
    group: ProcessGroup = SINGLE_PROCESS  # the processes that share the scoring of what all have

    @property
    def hybrid(self) -> bool:
        """Whether the heads use log-probabilities."""
        return self.members[0].head.fluency is not None

    def micro_batches(self, prompts: Sequence[PromptWithResponses], tokens: int) -> list[list[int]]:
        """Indices of prompts to encode together, at most `tokens` tokens per micro-batch.

        A prompt's responses are packed with it if the model supports that and it is cheaper; the
        others have a row each, in micro-batches of their own.
        """
        model, found = self.roles.model, []
        packs = can_pack(model)
        packed = [packs and worth_packing(*p, model.config.hidden_size) for p in prompts]
        for wanted in (True, False):
            indices = [i for i, is_packed in enumerate(packed) if is_packed is wanted]
            lengths = [
                row_length(prompt, responses)
                if wanted
                else len(responses) * (len(prompt) + max(map(len, responses)))
                for prompt, responses in (prompts[i] for i in indices)
            ]
            found += [[indices[i] for i in batch] for batch in by_length(lengths, tokens)]
        return found

    def features(
        self,
        prompts: Sequence[PromptWithResponses],
        codec: Codec,
        logprobs: bool = True,
        rows: list[int] | None = None,
    ) -> Features:
        """Inputs of a head for the responses to these prompts, in order, under the role in use.

        `logprobs` are computed only if requested, of the responses `rows` alone; None: of all.
        """
        model = self.roles.model
        if can_pack(model) and all(worth_packing(*p, model.config.hidden_size) for p in prompts):
            ids, responses = map(list, zip(*prompts, strict=True))
            packed = pack(ids, responses, codec.pad_id, model.device)
            hidden = packed_states(model, packed)
            some = slice(None) if rows is None else rows
            found = packed_response_logprobs(model, hidden, packed, some) if logprobs else None
            states = packed_response_states(hidden, packed) if self.hybrid else None
            return Features(last_states(hidden, packed), found, states, packed.response_mask)
        sequences = collate(
            [prompt for prompt, responses in prompts for _ in responses],
            [response for _, responses in prompts for response in responses],
            codec.pad_id,
            model.device,
        )
        hidden = hidden_states(model, sequences)
        last = hidden[torch.arange(len(hidden), device=hidden.device), sequences.last]
        read = (hidden, sequences) if rows is None else (hidden[rows], sequences[rows])
        found = response_logprobs(model, *read) if logprobs else None
        states = response_states(hidden, sequences) if self.hybrid else None
        return Features(last, found, states, sequences.response_mask)

    def forward(
        self, prompts: Sequence[PromptWithResponses], codec: Codec, index: int = 0
    ) -> Tensor:
        """(N,) raw scores of all responses by one member; call inside `roles.use` of its name."""
        scores: Tensor = self.members[index].head(self.features(prompts, codec, self.hybrid))
        return scores

    @torch.no_grad()
    def raw_scores(
        self,
        prompts: Sequence[PromptWithResponses],
        codec: Codec,
        members: Sequence[int] | None = None,
        tokens: int = SCORING_TOKENS,
    ) -> Tensor:
        """(M, N) raw scores of the N responses by all members, or the given ones, on the CPU.

        Raises ValueError naming the first response whose score is not finite.
        """
        chosen = range(len(self.members)) if members is None else members
        ends = [0, *accumulate(len(responses) for _, responses in prompts)]
        scores = torch.zeros(len(chosen), ends[-1])
        micro_batches = self.group.shard(self.micro_batches(prompts, tokens))
        for row, index in enumerate(chosen):
            with self.roles.use(self.members[index].name):
                passes = in_step(decoder_of(self.roles.model), micro_batches)
                for micro_batch in tqdm(
                    passes, "score", len(micro_batches), delay=5, mininterval=5, leave=False
                ):
                    columns = [i for p in micro_batch for i in range(ends[p], ends[p + 1])]
                    own = [prompts[p] for p in micro_batch]
                    scores[row, columns] = self.forward(own, codec, index).float().cpu()
        self.group.sum([scores])
        if not scores.isfinite().all():
            row, first = (~scores.isfinite()).nonzero()[0].tolist()
            name, score = self.members[chosen[row]].name, scores[row, first]
            response = [r for _, responses in prompts for r in responses][first]
            raise ValueError(f"{name}: score of response {first} is {score}: {response}")
        return scores

    def score(self, prompts: Sequence[PromptWithResponses], codec: Codec) -> Scores:
        """Scores (N,) of all responses, on the CPU. Raises ValueError if one is not finite."""
        return self.combine(self.raw_scores(prompts, codec))

    def combine(self, raw: Tensor) -> Scores:
        """(M, N) raw scores -> normalised per member, then mean and variance over members."""
        means = torch.tensor([[member.mean] for member in self.members])
        sds = torch.tensor([[member.sd] for member in self.members])
        scores = (raw - means) / sds
        return Scores(scores.mean(0), scores.var(0, correction=0))

    def corrected_scores(self, prompts: Sequence[PromptWithResponses], codec: Codec) -> Tensor:
        """(N,) mean scores minus the length curve if it is applied: the score PPO optimises."""
        responses = [response for _, own in prompts for response in own]
        return self.score(prompts, codec).mean - self.length_offsets(responses)

    def length_offsets(self, responses: Sequence[list[int]]) -> Tensor:
        """(N,) the length curve, to be subtracted from these scores; 0 if not applied."""
        if self.calibration is None or not self.calibration.applied:
            return torch.zeros(len(responses))
        offsets = self.calibration.curve.at([len(response) for response in responses])
        return torch.tensor(offsets, dtype=torch.float32)

    def save(self, folder: Path) -> None:
        """Write reward.json and, in a folder per member, its adapter and head.safetensors."""
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


def mean_and_sd(raw: Tensor) -> tuple[float, float]:
    """(N,) raw scores -> a member's mean and sd; the sd is at least 1e-6, since it divides."""
    return raw.mean().item(), max(raw.std().item(), 1e-6)


def new_reward_model(
    roles: Roles,
    head: str,
    members: int,
    *seed: object,
    kind: str = "reward",
    group: ProcessGroup = SINGLE_PROCESS,
) -> RewardModel:
    """Untrained members: adapters copied from the reference's, or new, and random heads."""
    ensemble = []
    for index in range(members):
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(*seed, index, "init"))
            roles.add(member_name(index, kind), like=roles.reference)
            random_head = Head(roles.model.config.hidden_size, hybrid=head == "hybrid")
        ensemble.append(Member(member_name(index, kind), random_head.to(roles.model.device)))
    return RewardModel(roles, ensemble, group=group)


def load_reward_model(
    roles: Roles, folder: Path, group: ProcessGroup = SINGLE_PROCESS
) -> RewardModel:
    """Load a reward model onto the backbone it was trained with (see `store.check_card`)."""
    saved: dict[str, Any] = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
    members = []
    for name, scale in saved["members"].items():
        roles.load(name, folder / name)
        head = Head(roles.model.config.hidden_size, hybrid=saved["hybrid"])
        head.load_state_dict(tensors.read(folder / name / "head.safetensors"))
        head = head.to(roles.model.device).eval().requires_grad_(False)
        members.append(Member(name, head, scale["mean"], scale["sd"]))
    found = saved["calibration"]
    return RewardModel(roles, members, Calibration.from_dict(found) if found else None, group)
