"""Greedy responses to the validation questions: measured for the choice, shown to be read."""

from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

from stages.rlhf.chat import Codec
from stages.rlhf.config.models import GenerationScale
from stages.rlhf.decoding.generation import generate_all, to_response
from stages.rlhf.measure.text import chrf, chrf_plus_plus, exact, length
from stages.rlhf.measure.violations import copies, loops
from stages.rlhf.model.roles import Roles
from stages.rlhf.records import Response, SftRow
from stages.rlhf.reward.model import RewardModel
from stages.rlhf.runs.checkpoints import Checkpointer

SHOWN = 12  # validation questions whose answers are kept to be read


class Validation(NamedTuple):
    """One evaluation of one policy."""

    metrics: dict[str, float]  # a row of validation.csv
    shown: list[str]  # the answers that are kept to be read


Validate = Callable[[], Validation]  # of the model in its present role


class Validator:
    """Measures the model in its present role on the validation questions.

    The reward model's processes share them.
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
        scale: GenerationScale,
    ) -> None:
        self.roles, self.reward_model, self.judge, self.codec = roles, reward_model, judge, codec
        self.max_new_tokens, self.scale = max_new_tokens, scale
        self.rows = rows
        self.prompts = [codec.prompt_ids(row.message) for row in rows]
        count = min(SHOWN, len(rows))
        self._shown = [i * len(rows) // count for i in range(count)]  # evenly spaced

    def __call__(self) -> Validation:
        """Answer every question greedily, and measure the answers."""
        model, codec = self.roles.model, self.codec
        limits = self.max_new_tokens, self.scale
        together = Checkpointer(None, self.reward_model.group)
        ids = generate_all(model, self.prompts, codec, *limits, checkpointer=together)
        answers = [to_response(one, codec) for one in ids]
        read = [(prompt, [one]) for prompt, one in zip(self.prompts, ids, strict=True)]
        metrics = {
            **reference_metrics(answers, self.rows),
            "score": self.reward_model.corrected_scores(read, codec).mean().item(),
            "judge": self.judge.score(read, codec).mean.mean().item(),
        }
        return Validation(metrics, [" ".join(answers[i].text.split()) for i in self._shown])

    def table(self, updates: list[int], shown: list[list[str]]) -> list[dict[str, str]]:
        """One row per question shown: question, reference, and the answer after each update."""
        found = []
        for column, i in enumerate(self._shown):
            row = {"question": self.rows[i].question, "reference": self.rows[i].answer}
            for update, answers in zip(updates, shown, strict=True):
                row[f"update {update}"] = answers[column]
            found.append(row)
        return found


def reference_metrics(answers: list[Response], rows: list[SftRow]) -> dict[str, float]:
    """Means over N answers of their texts, citations aside, compared with the N references.

    In `chrf_valid` an answer that was cut off, loops or gives the question back counts 0: what goes
    on to the token limit overlaps with much of any reference.
    """
    texts = [row.spoken(answer.text) for answer, row in zip(answers, rows, strict=True)]
    references = [row.spoken(row.answer) for row in rows]
    pairs = list(zip(texts, references, strict=True))
    overlaps = [chrf(*pair) for pair in pairs]
    looped = [loops(text) for text in texts]
    copied = [copies(one, row.question, two) for (one, two), row in zip(pairs, rows, strict=True)]
    valid = [
        answer.ended and not loop and not copy
        for answer, loop, copy in zip(answers, looped, copied, strict=True)
    ]
    return {
        "chrf_valid": fmean(one * ok for one, ok in zip(overlaps, valid, strict=True)),
        "chrf": fmean(overlaps),
        "chrf_plus_plus": fmean(chrf_plus_plus(*pair) for pair in pairs),
        "exact": fmean(exact(*pair) for pair in pairs),
        "eos_rate": fmean(answer.ended for answer in answers),
        "repetition": fmean(looped),
        "copy_rate": fmean(copied),
        "length": fmean(length(text) for text in texts),
    }
