"""Groups of five ranked answers, with ranking noise.

About three groups in four contain the full correct answer, half of these a near miss of it, too.
Half contain a contrast pair, of the near miss where there is one: two answers with the same form,
detail and style, one true and one false. The rest is sampled axis by axis.
One bias of human rankings is built in (AI-Hub's second-best answers are the longest): next to the
full correct answer, the second-best is often correct but wordy (filler or an extra detail), so that
rank 2 is slightly the longest on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from tqdm import tqdm

from stages.world.answers import CLEAN, STYLE, WHOLE, Spec, possible, write
from stages.world.questions import Question

ANSWERS = 5
CLEAN_SHARE = 0.66  # groups given the full correct answer; others may sample it
WORDY_SHARE = 0.45  # of these, groups with a correct but wordy second-best
NEAR_SHARE = 0.5  # of these, groups with a near miss
NEAR = (Spec(detail="other"), Spec(detail="same"), Spec(detail="wrong"), Spec(form="swapped"))
CONTRAST_SHARE = 0.5  # groups with a same-form pair of a correct and a wrong fact
TIE_SHARE = 0.04  # groups in which two answers may be equally good
WORDY = (Spec(detail="extra"), Spec(style="filler"), Spec(detail="extra", style="filler"))
CONFOUNDED = (
    CLEAN,
    Spec(form="short"),
    Spec(form="vague"),
    Spec(fact="wrong"),
    Spec(form="other_entity"),
)


@dataclass(frozen=True)
class Group:
    """A question with its answers, sorted by true quality, best first; equal ranks are ties."""

    question: Question
    answers: tuple[str, ...]
    specs: tuple[Spec, ...]
    ranks: tuple[int, ...]


def sample_spec(rng: Random) -> Spec:
    """A spec sampled axis by axis."""
    form = rng.choices(
        ("full", "no_detail", "short", "fragment", "swapped", "vague", "off_topic", "other_entity"),
        (0.46, 0.13, 0.08, 0.06, 0.06, 0.08, 0.065, 0.065),
    )[0]
    if form in WHOLE:
        return Spec(form=form)
    fact = rng.choice(("right", "wrong"))
    if form in ("short", "fragment"):
        style = rng.choices(("plain", "impolite", "filler"), (0.7, 0.15, 0.15))[0]
        return Spec(form=form, fact=fact, style=style)
    style = rng.choices(tuple(STYLE), (0.42, 0.11, 0.11, 0.15, 0.11, 0.10))[0]
    states = ("right", "extra", "other", "same", "wrong")
    state = rng.choices(states, (0.46, 0.06, 0.14, 0.10, 0.24))[0] if form == "full" else "right"
    return Spec(form=form, fact=fact, detail=state, style=style)


def _sample_specs(question: Question, rng: Random) -> list[Spec]:
    specs: list[Spec] = []
    near = None
    if rng.random() < CLEAN_SHARE:
        specs.append(CLEAN)
        if rng.random() < WORDY_SHARE:
            specs.append(rng.choice([s for s in WORDY if possible(question.fact, s)]))
        if rng.random() < NEAR_SHARE:
            near = rng.choice([s for s in NEAR if possible(question.fact, s)])
    if rng.random() < CONTRAST_SHARE:
        one = near or sample_spec(rng)
        while one.form in WHOLE:
            one = sample_spec(rng)
        specs += [Spec(one.form, fact, one.detail, one.style) for fact in ("right", "wrong")]
    elif near:
        specs.append(near)
    tie = rng.random() < TIE_SHARE
    kept: list[Spec] = []
    while len(kept) < ANSWERS:
        spec = specs.pop(0) if specs else sample_spec(rng)
        equal = sum(spec.quality == other.quality for other in kept)
        if spec.quality == CLEAN.quality and spec in kept:
            continue
        if possible(question.fact, spec) and equal <= (1 if tie else 0):
            tie = tie and not equal
            kept.append(spec)
    return kept


def make_group(question: Question, rng: Random, confounded: bool = False) -> Group:
    """Five distinct answers to a question, with their true ranks."""
    specs = list(CONFOUNDED) if confounded else _sample_specs(question, rng)
    answers: list[str] = []
    for spec in specs:
        for _ in range(50):
            text = write(question, spec, rng)
            if text not in answers:
                break
        else:  # the tables have no other answer of this kind
            return make_group(question, rng, confounded)
        answers.append(text)
    order = sorted(range(ANSWERS), key=lambda i: -specs[i].quality)
    ranks = [1 + sum(o.quality > specs[i].quality for o in specs) for i in order]
    return Group(
        question,
        tuple(answers[i] for i in order),
        tuple(specs[i] for i in order),
        tuple(ranks),
    )


def competition_ranks(scores: Sequence[float]) -> tuple[int, ...]:
    """Ranks of scores where lower is better: 1, 2, 2, 4."""
    ordered = sorted(scores)
    return tuple(1 + ordered.index(score) for score in scores)


def flipped_share(true: Sequence[Sequence[float]], noisy: Sequence[Sequence[float]]) -> float:
    """Share of truly ordered pairs that the noisy ranks reverse."""
    pairs = flips = 0
    for before, after in zip(true, noisy, strict=True):
        for i, j in combinations(range(len(before)), 2):
            if before[i] != before[j]:
                pairs += 1
                flips += (before[i] - before[j]) * (after[i] - after[j]) < 0
    return flips / max(1, pairs)


def noisy_ranks(groups: Sequence[Group], share: float, rng: Random) -> list[tuple[int, ...]]:
    """Noisy ranks: a given `share` of the ordered pairs is flipped.

    Gaussian noise is added to every rank level, with a common scale found by bisection. It acts on
    ranks, not on quality, so that a correct and a wrong fact can swap like any neighbours.
    """
    true = [group.ranks for group in groups]
    if not share:
        return true
    moves = [{rank: rng.gauss(0, 1) for rank in sorted(set(ranks))} for ranks in true]

    def at(scale: float) -> list[tuple[int, ...]]:
        return [
            competition_ranks([rank + scale * move[rank] for rank in ranks])
            for ranks, move in zip(true, moves, strict=True)
        ]

    low, high = 0.0, 1e3
    for _ in tqdm(range(40), desc="flip ranks", delay=5, mininterval=5, leave=False):
        middle = (low + high) / 2
        low, high = (middle, high) if flipped_share(true, at(middle)) < share else (low, middle)
    return at(low)
