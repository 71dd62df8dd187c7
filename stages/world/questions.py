"""Question wordings: three noun phrases per attribute times sixteen endings."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from stages.world.facts import Fact, attribute_of, noun_phrase
from stages.world.particles import resolve


@dataclass(frozen=True)
class Ending:
    """How a question ends; {w} is the attribute's question word (무엇, 누구, 어디, 언제, 몇 명)."""

    template: str
    spoken: bool  # 구어체, else 문어체
    question_type: str


TRAINING_ENDINGS = (
    Ending("[은] {w}인가요?", False, "의문형"),
    Ending("[은] {w}입니까?", False, "의문형"),
    Ending("[은] {w}[예요]?", True, "의문형"),
    Ending("[을] 알려 주세요.", False, "요청형"),
    Ending("[이] 궁금합니다.", False, "서술형"),
    Ending("[을] 말해 줄래요?", True, "요청형"),
    Ending("[이] {w}인지 알려 주세요.", False, "요청형"),
    Ending("[이] {w}인지 아시나요?", False, "의문형"),
    Ending("[을] 알고 싶어요.", True, "서술형"),
    Ending("[이] {w}인지 설명해 주세요.", False, "요청형"),
    Ending("[을] 가르쳐 주세요.", False, "요청형"),
    Ending("[은] {w}[죠]?", True, "의문형"),
    Ending("[이] {w}인지 알려 줄 수 있나요?", False, "요청형"),
)
UNSEEN_ENDINGS = (
    Ending("[은] {w}일까요?", False, "의문형"),
    Ending("[을] 알 수 있을까요?", False, "요청형"),
    Ending("[이] {w}인지 가르쳐 주시겠어요?", False, "요청형"),
)
ENDINGS = TRAINING_ENDINGS + UNSEEN_ENDINGS
ASKS = 3

# (noun phrase, ending) combinations used only in validation and test.
HELD_OUT_COMBOS = ((0, 1), (0, 6), (0, 10), (1, 2), (1, 4), (1, 12), (2, 0), (2, 5), (2, 9))


@dataclass(frozen=True)
class Question:
    """A question about a fact in one wording: indices into its noun phrases and ENDINGS."""

    fact: Fact
    ask: int
    ending: int

    @cached_property
    def text(self) -> str:
        """ "일본의 수도는 어디인가요?"."""
        word = attribute_of(self.fact).asks[self.ask].split("|")[1]
        template = ENDINGS[self.ending].template
        if word == "무엇" and template in ("[은] {w}[예요]?", "[은] {w}[죠]?"):
            word = "뭐"
        return resolve(noun_phrase(self.fact, self.ask) + template.format(w=word))

    @cached_property
    def trigrams(self) -> frozenset[str]:
        """Character 3-grams of the text without whitespace and punctuation."""
        text = "".join(c for c in self.text if c.isalnum())
        return frozenset(text[i : i + 3] for i in range(len(text) - 2))


def wordings(fact: Fact, combos: Iterable[tuple[int, int]]) -> list[Question]:
    """Questions about the fact in each of the combinations."""
    return [Question(fact, ask, ending) for ask, ending in combos]


def training_combos() -> list[tuple[int, int]]:
    """Combinations open to training."""
    every = ((ask, ending) for ask in range(ASKS) for ending in range(len(TRAINING_ENDINGS)))
    return [combo for combo in every if combo not in HELD_OUT_COMBOS]


def unseen_ending_combos() -> list[tuple[int, int]]:
    """Every noun phrase with the endings used only in test."""
    return [(ask, e) for ask in range(ASKS) for e in range(len(TRAINING_ENDINGS), len(ENDINGS))]


def similarity(one: Question, other: Question) -> float:
    """Jaccard similarity of character 3-grams, as for preprocess.near_duplicate."""
    common = len(one.trigrams & other.trigrams)
    return common / (len(one.trigrams) + len(other.trigrams) - common)
