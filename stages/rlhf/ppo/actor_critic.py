"""Policy, reference and value model: roles on one frozen backbone, and what trains two of them.

b responses, T tokens of prompt and response together, R response tokens, H hidden size.
"""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from stages.rlhf.config.ppo import PpoScale
from stages.rlhf.model.roles import POLICY, VALUE, Roles
from stages.rlhf.model.sequences import Sequences, hidden_states, response_logprobs
from stages.rlhf.reward.model import Member


class ActorCritic:
    """The policy starts as the reference, SFT; the value model as a member of the reward model.

    Without a critic there is no value model: the other answers to a prompt are the baseline.
    The reference is that adapter, or no adapter at all, so the KL is exactly 0 at first.
    """

    def __init__(
        self, roles: Roles, critic: Member | None, settings: PpoScale, temperature: float
    ) -> None:
        self.roles, self.temperature = roles, temperature
        adamw = partial(torch.optim.AdamW, eps=1e-5, weight_decay=0.0)
        roles.add(POLICY, like=roles.reference)
        self.value_head = new_value_head(critic) if critic else None
        self.parameters = {POLICY: roles.parameters(POLICY)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            POLICY: adamw(self.parameters[POLICY], lr=settings.learning_rate)
        }
        if critic and self.value_head:
            roles.add(VALUE, like=critic.name)
            self.parameters[VALUE] = [*roles.parameters(VALUE), *self.value_head.parameters()]
            self.optimizers[VALUE] = adamw(self.parameters[VALUE], lr=settings.value_learning_rate)

    def logprobs(self, sequences: Sequences) -> Tensor:
        """(b, R) under the role in use: one code path for old, new and reference."""
        return policy_logprobs(self.roles, sequences, self.temperature)

    def values(self, sequences: Sequences) -> Tensor:
        """(b, R), the value role being in use."""
        assert self.value_head is not None
        return token_values(self.roles, self.value_head, sequences)

    def gradients(self, roles: Collection[str]) -> list[Tensor]:
        """Of the roles that are trained; 0 where this process had no row to learn from."""
        found = []
        for p in (p for role in roles for p in self.parameters[role]):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            found.append(p.grad)
        return found

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def policy_logprobs(roles: Roles, sequences: Sequences, temperature: float) -> Tensor:
    """(b, R) log-probabilities of the response's tokens under the role in use; 0 on padding."""
    hidden = hidden_states(roles.model, sequences)  # (b, T, H)
    return response_logprobs(roles.model, hidden, sequences, temperature)


def token_values(roles: Roles, head: nn.Linear, sequences: Sequences) -> Tensor:
    """(b, R) values of the states from which each response token is sampled; 0 on padding."""
    hidden = hidden_states(roles.model, sequences)  # (b, T, H)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]  # (b, 1)
    with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has three digits
        values: Tensor = head(hidden[rows, sequences.predicts].float()).squeeze(-1)  # (b, R)
    return torch.where(sequences.response_mask, values, 0)


def new_value_head(member: Member) -> nn.Linear:
    """A copy of the linear part of a member's head, on the scale of the normalised score.

    A scalar head has no other part: at a response's last token its value is the score itself.
    """
    weight = member.head.value.weight  # (1, H)
    scalar = member.head.fluency is None
    head = nn.Linear(weight.shape[1], 1).to(weight.device)
    with torch.no_grad():
        head.weight.copy_(weight / member.sd)
        head.bias.fill_(-member.mean / member.sd if scalar else 0.0)
    return head
