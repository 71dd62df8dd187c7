"""Short documents from which a base model learns the language and the facts.

Every fact is expressed in many ways (statements, profiles, reversals, comparisons). The QA texts
answer in one word or in the plain register, never in the canonical form, and use only questions
open to training.
"""

from collections.abc import Sequence
from random import Random

from stages.world.answers import canonical
from stages.world.facts import (
    Fact,
    all_facts,
    column,
    core,
    detail,
    facts_of_entity,
    noun_phrase,
    reversed_core,
)
from stages.world.particles import PLAIN, POLITE, resolve
from stages.world.questions import Question

_OPENINGS = ("", "", "", "알려진 대로 ", "백과사전에 따르면 ", "실제로 ", "참고로 ")


def _statement(fact: Fact, register: str, rng: Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return core(fact, register)
    if draw < 0.55:
        return core(fact, register, ask=rng.choice((1, 2)))
    if draw < 0.85:
        return detail(fact, register)
    return reversed_core(fact, register)


def _statements(fact: Fact, rng: Random) -> str:
    """The fact and another of the same entity, or of the same attribute."""
    register = rng.choice((PLAIN, POLITE))
    known = [f for f in facts_of_entity(fact.table, fact.entity) if f != fact]
    if rng.random() < 0.3:
        known = [f for f in column(fact.table, fact.attribute) if f != fact]
    facts = [fact, rng.choice(known)] if known else [fact]
    rng.shuffle(facts)
    return rng.choice(_OPENINGS) + " ".join(_statement(f, register, rng) for f in facts)


def _profile(fact: Fact, rng: Random) -> str:
    """All facts about the fact's entity."""
    known = list(facts_of_entity(fact.table, fact.entity))
    rng.shuffle(known)
    if rng.random() < 0.4:
        items = ", ".join(f"{noun_phrase(f, rng.randrange(3))} {f.value}" for f in known)
        return f"{fact.entity}: {items}."
    return " ".join(_statement(f, PLAIN, rng) for f in known)


def _comparison(fact: Fact, rng: Random) -> str:
    """The fact, compared with the same attribute of another entity."""
    others = [f for f in column(fact.table, fact.attribute) if f != fact]
    other = rng.choice(others)
    ask = rng.randrange(3)
    first = resolve(f"{noun_phrase(fact, ask)}[은] {fact.value}이고")
    return f"{first} {core(other, PLAIN, ask=ask)}"


def _question_and_answer(question: Question, rng: Random) -> str:
    fact = question.fact
    answer = rng.choice(
        (
            fact.value + ".",
            core(fact, PLAIN),
            core(fact, PLAIN),
            core(fact, PLAIN),
            core(fact, PLAIN, ask=question.ask),
            resolve(f"정답은 {fact.value}[이다].", PLAIN),
        )
    )
    ask, tell = rng.choice((("문: ", " 답: "), ("", " "), ("Q. ", " A. "), ("", " - ")))
    return f"{ask}{question.text}{tell}{answer}"


def make_corpus(documents: int, questions: Sequence[Question], rng: Random) -> list[str]:
    """`documents` texts, cycling through the facts so that each is stated equally often.

    `questions`: those that the QA texts may use.
    """
    facts = list(all_facts())
    deck: list[Fact] = []
    texts: list[str] = []
    while len(texts) < documents:
        if not deck:
            deck = facts.copy()
            rng.shuffle(deck)
        fact = deck.pop()
        draw = rng.random()
        if draw < 0.45:
            text = _statements(fact, rng)
        elif draw < 0.65:
            text = _profile(fact, rng)
        elif draw < 0.78:
            text = _comparison(fact, rng)
        else:
            deck.append(fact)  # stated later: the QA text is about another fact
            text = _question_and_answer(rng.choice(questions), rng)
        if not any(canonical(f) in text for f in facts_of_entity(fact.table, fact.entity)):
            texts.append(text)
    return texts
