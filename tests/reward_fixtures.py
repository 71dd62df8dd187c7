"""Ranked groups, settings and a reward model for the tests of its training."""

from pathlib import Path
from typing import Any

from stages.rlhf.chat import Codec
from stages.rlhf.config.reward import RewardScale, RmConfig
from stages.rlhf.records import RmRow
from stages.rlhf.reward.groups import encode_groups
from stages.rlhf.reward.model import RewardModel, new_reward_model
from tests.model_fixtures import sft_roles, shake, shipped
from tests.tokenizer_fixtures import QUESTIONS, tiny_tokenizer

CODEC = Codec(tiny_tokenizer())
ANSWERS = ["1947m입니다.", "모릅니다.", "한라산은 제주도에 있습니다.", "네", "1950m"]
RANKS = [
    (1.0, 2.0, 3.0, 4.0, 5.0),
    (2.0, 1.0),  # fewer answers
    (1.0, 1.0, 2.0, 2.0, 2.0),  # ties
    (3.0, 3.0, 3.0),  # nothing but ties
    (5.0, 4.0, 3.0, 2.0, 1.0),
    (2.0, 1.0, 1.0, 3.0),
]
ROWS = [
    RmRow(id=str(i), question=QUESTIONS[i], answers=tuple(ANSWERS[: len(ranks)]), ranks=ranks)
    for i, ranks in enumerate(RANKS)
]
GROUPS = encode_groups(ROWS, CODEC, window=256)
PLAIN = {
    "head": "hybrid",
    "elements": "groups",
    "loss": "plackett_luce",
    "lm_coef": 0.3,
    "members": 1,
    "margin": 0.0,
    "label_smoothing": 0.0,
    "odin_coef": 0.0,
    "length_balance": False,
    "hard_negatives": 0.0,
}


def knobs(**changed: Any) -> RmConfig:
    return RmConfig.model_validate({**shipped().rm.model_dump(), **PLAIN, **changed})


def settings(**changed: Any) -> RewardScale:
    fixed = {"epochs": 2, "batch_size": 6, "micro_batch_tokens": 9999, "learning_rate": 1e-2}
    return RewardScale(**{**fixed, **changed})


def reward_model(folder: Path, head: str = "hybrid", members: int = 1) -> RewardModel:
    roles = sft_roles(folder, "full")
    model = new_reward_model(roles, head, members, "tests")
    for i in range(members):
        shake(roles, f"reward{i}", seed=5 + i, size=0.1)
    return model
