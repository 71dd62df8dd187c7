"""Which PPO update is kept: the best by the reference metrics on validation, under limits.

Neither the reward nor the judge has a say: whoever selects does not grade.
"""

from collections.abc import Callable
from statistics import fmean

from stages.rlhf.chat import Codec
from stages.rlhf.measure.text import chrf, copies, exact, length, loops
from stages.rlhf.model.generation import generate_all, to_response
from stages.rlhf.model.roles import Roles
from stages.rlhf.records import Response, SftRow
from stages.rlhf.reward.model import RewardModel

EOS_SLACK = 0.005  # how far an update's EOS rate may fall below SFT's
REPETITION_SLACK = 0.005  # how far its repetition and copy rates may rise above SFT's
SHOWN = 12  # validation questions whose answers are kept to be read
LENGTH_BAND = 0.15  # relative distance of mean length from the references', or SFT's own distance


class Validator:
    """Greedy answers to the validation questions, measured; a few of them kept to be read.

    `score` and `judge`, of the reward model and of the judge, are for the curves alone.
    """

    def __init__(
        self,
        roles: Roles,
        reward_model: RewardModel,
        judge: RewardModel,
        codec: Codec,
        rows: list[SftRow],
        max_new_tokens: int,
        batch_size: int,
        said: list[list[str]],
    ) -> None:
        self.roles, self.reward_model, self.judge, self.codec = roles, reward_model, judge, codec
        self.rows, self.limits = rows, (max_new_tokens, batch_size)
        self.prompts = [codec.prompt_ids(row.question) for row in rows]
        self.said = said  # filled: per evaluation, the answers that are shown

    def __call__(self) -> dict[str, float]:
        """The metrics of the model in its present role."""
        ids = generate_all(self.roles.model, self.prompts, self.codec, *self.limits)
        answers = [to_response(one, self.codec) for one in ids]
        self.said.append([" ".join(answers[i].text.split()) for i in self._shown()])
        read = [(prompt, [one]) for prompt, one in zip(self.prompts, ids, strict=True)]
        return {
            **reference_metrics(answers, self.rows),
            "score": self.reward_model.corrected_scores(read, self.codec).mean().item(),
            "judge": self.judge.score(read, self.codec).mean.mean().item(),
        }

    def _shown(self) -> list[int]:
        count = min(SHOWN, len(self.rows))
        return [i * len(self.rows) // count for i in range(count)]

    def table(self, updates: list[int]) -> list[dict[str, str]]:
        """One row per question shown: question, reference, and the answer at each evaluation."""
        found = []
        for place, i in enumerate(self._shown()):
            row = {"question": self.rows[i].question, "reference": self.rows[i].answer}
            for update, said in zip(updates, self.said, strict=True):
                row[f"update {update}"] = said[place]
            found.append(row)
        return found


def reference_metrics(answers: list[Response], rows: list[SftRow]) -> dict[str, float]:
    """Means over answers of what their texts tell beside the references'."""
    pairs = list(zip((answer.text for answer in answers), rows, strict=True))
    return {
        "chrf": fmean(chrf(text, row.answer) for text, row in pairs),
        "exact": fmean(exact(text, row.answer) for text, row in pairs),
        "eos_rate": fmean(answer.ended for answer in answers),
        "repetition": fmean(loops(text) for text, _ in pairs),
        "copy_rate": fmean(copies(text, row.question, row.answer) for text, row in pairs),
        "length": fmean(length(text) for text, _ in pairs),
    }


class CheckpointSelector:
    """Says of each validation row whether it is the best so far; the first row is SFT itself."""

    def __init__(self, reference_length: float) -> None:
        self.reference_length = reference_length
        self.sft: dict[str, float] | None = None
        self.best: dict[str, float] | None = None

    def __call__(self, row: dict[str, float]) -> bool:
        """True where this row is SFT's own, or keeps the limits and beats the best chrF."""
        if self.sft is None or self.best is None:
            self.sft = self.best = row
            return True
        if self.broken_limits(row) or row["chrf"] <= self.best["chrf"]:
            return False
        self.best = row
        return True

    def broken_limits(self, row: dict[str, float]) -> list[str]:
        """The names of the limits that a row breaks."""
        assert self.sft is not None
        limits: dict[str, Callable[[dict[str, float], dict[str, float]], bool]] = {
            "eos_rate": lambda r, s: r["eos_rate"] < s["eos_rate"] - EOS_SLACK,
            "repetition": lambda r, s: r["repetition"] > s["repetition"] + REPETITION_SLACK,
            "copy_rate": lambda r, s: r["copy_rate"] > s["copy_rate"] + REPETITION_SLACK,
            "length": lambda r, s: self._off(r) > max(LENGTH_BAND, self._off(s)),
        }
        return [name for name, broken in limits.items() if broken(row, self.sft)]

    def _off(self, row: dict[str, float]) -> float:
        return abs(row["length"] / self.reference_length - 1)
