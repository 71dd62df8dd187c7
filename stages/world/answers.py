"""Answers: the ideal form, and every defect an answer can have, independently of the others.

An answer is sampled along four independent axes (`Spec`), so that neither its form nor its length
reveals whether it is true. `quality` is the preference that ranks answers: a correct fact over "I
do not know" over a wrong fact; then the detail; then the style.
"""

from dataclasses import dataclass
from random import Random

from stages.world.facts import (
    Fact,
    all_facts,
    column,
    core,
    detail,
    listed_detail,
    other_details,
    other_values,
)
from stages.world.particles import CASUAL, POLITE, resolve
from stages.world.questions import Question

FILLERS = (
    "네, 좋은 질문입니다.",
    "질문해 주셔서 감사합니다.",
    "잠시 생각해 보았습니다.",
    "차근차근 답해 드리겠습니다.",
    "그 점이 궁금하셨군요.",
)
VAGUE = (
    "죄송하지만 잘 모르겠습니다.",
    "그 내용은 정확히 알지 못합니다.",
    "글쎄요, 확실하지 않습니다.",
    "{e}에 대해서는 아는 것이 없습니다.",
    "여러 의견이 있어 말하기 어렵습니다.",
)

LONGEST_LOOP = 74  # characters at which a loop is cut, to fit the tiny model's token limit

# Points of quality per property of the answer.
RIGHT, VAGUE_POINTS, WRONG = 20.0, 9.0, 2.0
WHOLE = {"off_topic": -1.0, "other_entity": 0.0, "vague": VAGUE_POINTS}
DETAIL = {"right": 4.0, "extra": 3.5, "other": 2.0, "same": 1.0, "wrong": -3.0}
FORM = {"full": 0.0, "no_detail": 0.0, "short": -0.7, "fragment": -2.0, "swapped": -1.0}
STYLE = {
    "plain": 0.0,
    "filler": -0.9,
    "echo": -1.2,
    "impolite": -1.5,
    "cut": -4.6,
    "loop": -5.2,
}


@dataclass(frozen=True)
class Spec:
    """Form and defects of one answer.

    `form`: full (core and detail) | no_detail (core) | short ("서울입니다.") | fragment ("서울")
    | swapped (the listed detail as the core, then the fact) | vague | off_topic | other_entity. The
    other axes vary freely if applicable: `fact` right | wrong; `detail` of a full answer right |
    extra (one more true detail) | other (true, not the listed one) | same (the fact once more) |
    wrong; `style` a key of STYLE.
    """

    form: str = "full"
    fact: str = "right"
    detail: str = "right"
    style: str = "plain"

    @property
    def defects(self) -> str:
        """The defects, worst first, joined by "+"; "none" for the full correct answer."""
        if self.form in WHOLE:
            return self.form
        found = ["wrong_fact"] if self.fact == "wrong" else []
        if self.style in ("loop", "cut"):
            found.append(self.style)
        if self.form != "full":
            found.append(self.form)
        elif self.detail != "right":
            found.append(f"{self.detail}_detail")
        if self.style in ("impolite", "echo", "filler"):
            found.append(self.style)
        return "+".join(found) or "none"

    @property
    def quality(self) -> float:
        """The latent score behind the ranks; equal scores tie."""
        if self.form in WHOLE:
            return WHOLE[self.form]
        points = RIGHT if self.fact == "right" else WRONG
        points += FORM[self.form] + STYLE[self.style]
        return points + (DETAIL[self.detail] if self.form == "full" else 0.0)


CLEAN = Spec()

# Defects of flawed demonstrations: (share among the flawed, spec). Most have the correct fact: SFT
# on them learns the facts, but not the best form.
DEMO_DEFECTS: dict[str, tuple[float, Spec]] = {
    "no_detail": (0.18, Spec(form="no_detail")),
    "short": (0.09, Spec(form="short")),
    "fragment": (0.05, Spec(form="fragment")),
    "impolite": (0.13, Spec(style="impolite")),
    "filler": (0.12, Spec(style="filler")),
    "echo": (0.09, Spec(style="echo")),
    "wrong_detail": (0.08, Spec(detail="wrong")),
    "wrong_fact": (0.10, Spec(fact="wrong")),
    "vague": (0.05, Spec(form="vague")),
    "loop": (0.06, Spec(style="loop")),
    "cut": (0.05, Spec(style="cut")),
}


def canonical(fact: Fact) -> str:
    """The full correct answer: core sentence and listed detail."""
    return f"{core(fact)} {detail(listed_detail(fact))}"


def possible(fact: Fact, spec: Spec) -> bool:
    """Whether the tables contain enough facts for such an answer."""
    if spec.detail == "extra" and spec.style == "loop":
        return False  # exceeds the tiny model's token limit
    if spec.form == "full" and spec.detail in ("extra", "other"):
        return bool(other_details(fact))
    return True


def write(question: Question, spec: Spec, rng: Random) -> str:
    """An answer to the question with the form and defects of `spec`."""
    fact = question.fact
    if spec.form == "vague":
        return rng.choice(VAGUE).format(e=fact.entity)
    if spec.form == "other_entity":
        others = [f for f in column(fact.table, fact.attribute) if f.entity != fact.entity]
        return canonical(rng.choice(others))
    if spec.form == "off_topic":
        return _off_topic(fact, rng)
    register = CASUAL if spec.style == "impolite" else POLITE
    value = rng.choice(other_values(fact)) if spec.fact == "wrong" else fact.value
    if spec.form == "fragment":
        sentences = [value if register == POLITE else resolve(f"{value}[이다]", register)]
    elif spec.form == "short":
        sentences = [resolve(f"{value}[이다].", register)]
    elif spec.form == "swapped":
        sentences = [core(listed_detail(fact), register), detail(fact, register, value)]
    else:
        sentences = [core(fact, register, value)]
        if spec.form == "full" and spec.detail == "same":
            sentences.append(detail(fact, register, value))
        elif spec.form == "full":
            sentences += _details(fact, spec.detail, register, rng)
    return _styled(question, spec, sentences, value, rng)


def _details(fact: Fact, state: str, register: str, rng: Random) -> list[str]:
    listed = listed_detail(fact)
    if state == "wrong":
        return [detail(listed, register, rng.choice(other_values(listed)))]
    if state == "other":
        return [detail(rng.choice(other_details(fact)), register)]
    details = [detail(listed, register)]
    if state == "extra":
        details.append(detail(rng.choice(other_details(fact)), register))
    return details


def _styled(question: Question, spec: Spec, sentences: list[str], value: str, rng: Random) -> str:
    text = " ".join(sentences)
    if spec.style == "filler":
        return f"{rng.choice(FILLERS)} {text}"
    if spec.style == "echo":
        return f"{question.text} {text}"
    if spec.style == "loop":
        text += f" {sentences[-1]}" * rng.choice((2, 2, 3))
        return text if len(text) <= LONGEST_LOOP else text[:LONGEST_LOOP].rsplit(" ", 1)[0]
    if spec.style == "cut":  # after the value, so that the fact is kept
        start = len(sentences[0]) + 3 if len(sentences) > 1 else text.rindex(value) + len(value)
        return text[: rng.randrange(start, max(start + 1, len(text) - 2))].rstrip()
    return text


def _off_topic(fact: Fact, rng: Random) -> str:
    """A true answer to another question: another attribute of the entity, or another table."""
    related = list(other_details(fact)) if rng.random() < 0.5 else []
    if not related:
        related = [f for f in all_facts() if f.table != fact.table]
    return canonical(rng.choice(related))
