"""Seconds of each stage: pure arithmetic, from a machine's speeds and the amount of work."""

from dataclasses import dataclass

from stages.rlhf.config.whole import Params
from stages.rlhf.plan.calibration import Speeds
from stages.rlhf.plan.footprint import Shape, Work
from stages.rlhf.sizes import GATE_OF, RECOMPUTED_FROM

START = 2.0  # seconds to load models and to write files


@dataclass(frozen=True)
class Costs:
    """Seconds of passes over tokens of one model."""

    shape: Shape
    speeds: Speeds

    def read(self, tokens: float, scored: float = 0.0) -> float:
        """Forwards, without gradients; log-probabilities of `scored` of them."""
        head = scored * self.shape.vocab * self.speeds.head
        return tokens * self.shape.layers * self.speeds.forward + head

    def train(
        self, tokens: float, scored: float, full: bool = False, recomputed: bool = False
    ) -> float:
        """Forwards and backwards; `recomputed`: forwards twice, to save memory."""
        layer = self.speeds.train_full if full else self.speeds.train
        layer += self.speeds.forward if recomputed else 0.0
        head = scored * self.shape.vocab * self.speeds.head_train
        return tokens * self.shape.layers * layer + head

    def decode(self, rows: float, batch: int, prompt: float, mean: float, longest: float) -> float:
        """Responses of `mean` tokens to `rows` prompts, the last of a batch after `longest`."""
        speeds, shape = self.speeds, self.shape
        batches = -(-rows // batch)
        steps = batches * longest
        step = shape.layers * speeds.step + shape.vocab * speeds.head_step
        row = shape.layers * speeds.step_row + shape.vocab * speeds.head_row
        return self.read(rows * prompt) + steps * step + rows * mean * row


def durations(shape: Shape, params: Params, work: Work, speeds: Speeds) -> dict[str, float]:
    """Seconds of each stage that trains or samples."""
    model, members, costs = params.base_model, params.rm.members, Costs(shape, speeds)
    both, batch = work.prompt + work.answer, model.generate.batch_size
    limit = model.max_answer_tokens
    held = min(work.validation, params.validation_rows or work.validation)
    prompts = min(work.prompts, params.validation_rows or work.prompts)
    group = work.prompt + work.answers * work.answer

    def answers(rows: float, size: int = batch) -> float:
        return costs.decode(rows, size, work.prompt, work.answer, min(work.longest, limit))

    def scored(rows: float, models: int) -> float:
        return models * costs.read(rows * both, rows * work.answer)

    def ranked(groups: float, epochs: int, validation: float) -> float:
        tokens = work.answers * work.answer
        passes = costs.train(groups * group, groups * tokens)
        return epochs * (passes + costs.read(validation * group, validation * tokens))

    sft, ppo, scale = model.sft, params.ppo, model.ppo
    full, recomputed = sft.method == "full", shape.decoder >= RECOMPUTED_FROM

    def phase(rows: float, epochs: int) -> float:
        epoch = costs.train(rows * both, rows * work.answer, full, recomputed)
        return epochs * (epoch + costs.read(held * both, held * work.answer))

    best = params.sft.rank1_epochs if params.sft.data == "rank1" else 0
    found = {"sft": phase(work.sft, sft.epochs) + phase(work.groups, best) + answers(held)}
    rm = members * ranked(work.groups, model.rm.epochs, work.held_groups)
    found["rm"] = rm + answers(held) + scored(held, members)
    found["rm"] += members * costs.read(work.held_groups * 2 * group, work.held_groups * 2 * group)
    held_judge = min(params.judge.validation_share * work.judge_groups, held or work.judge_groups)
    found["judge"] = ranked(work.judge_groups - held_judge, model.judge.epochs, held_judge)
    found["gate"] = answers(GATE_OF * prompts) + scored(GATE_OF * prompts, members + 1)
    size = scale.batch_size
    trained = 2 if ppo.advantage == "gae" else 1  # policy, value model
    update = answers(size, size) + scored(size, 1 + trained + members)  # and the reference
    update += ppo.epochs * trained * costs.train(size * both, size * work.answer / trained)
    validations = 1 + scale.updates // ppo.evaluate_every
    found["ppo"] = (scale.updates + ppo.warmup) * update
    found["ppo"] += validations * (answers(held) + scored(held, members + 1))
    test = min(work.test, params.evaluate.max_questions or work.test)
    base = costs.decode(test, batch, work.prompt, limit, limit)  # has not learned to end
    found["evaluate"] = base + answers((2 + params.evaluate.best_of) * test)
    found["evaluate"] += scored((3 + params.evaluate.best_of) * test, members + 1)
    return {stage: START + seconds for stage, seconds in found.items()}
