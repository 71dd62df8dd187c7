"""A library of twenty passages on ten countries, and questions that they answer."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from stages.rlhf.config.preprocess import RagConfig
from stages.rlhf.records import RmRow, SftRow
from stages.rlhf.retrieval.lexical import Lexical
from stages.rlhf.retrieval.library import Library
from stages.rlhf.retrieval.mix import Mix
from stages.rlhf.retrieval.passages import Passage
from stages.rlhf.retrieval.support import Support

COUNTRIES = {  # capital, currency; two of them have the same
    "일본": ("도쿄", "엔"),
    "프랑스": ("파리", "유로"),
    "독일": ("베를린", "유로"),
    "영국": ("런던", "파운드"),
    "중국": ("베이징", "위안"),
    "러시아": ("모스크바", "루블"),
    "인도": ("뉴델리", "루피"),
    "태국": ("방콕", "바트"),
    "스웨덴": ("스톡홀름", "크로나"),
    "폴란드": ("바르샤바", "즈워티"),
}
PASSAGES = [
    Passage(f"{country}.txt:{page}", sentences)
    for country, (capital, currency) in COUNTRIES.items()
    for page, sentences in enumerate(
        (
            (f"{country}의 수도는 {capital}이다.", "사람이 많이 산다."),
            (f"{country}의 화폐는 {currency}이다.",),
        ),
        1,
    )
]
TEXTS = [passage.text for passage in PASSAGES]


def demonstrations() -> list[SftRow]:
    """Thirty questions, three a country; the phrase of the answer with two of the three."""
    rows = []
    for country, (capital, currency) in COUNTRIES.items():
        asked = (
            (f"{country}의 수도는 어디인가요?", f"{country}의 수도는 {capital}입니다.", capital),
            (f"{country} 수도를 알려 주세요.", f"{capital}입니다.", None),
            (f"{country}의 화폐가 무엇인지 아시나요?", f"{currency}입니다.", currency),
        )
        for question, answer, phrase in asked:
            rows.append(
                SftRow(
                    id=str(len(rows)),
                    question=question,
                    answer=answer,
                    must_contain=phrase,
                    kind="asked" if phrase else "paraphrased",
                )
            )
    return rows


def groups() -> list[RmRow]:
    """The same questions: a right answer, one of another country, and a vague one, in any order."""
    rows = []
    for number, row in enumerate(demonstrations()):
        wrong = demonstrations()[(number + 3) % 30].answer
        ranked = [(row.answer, 1, "none"), (wrong, 2, "wrong_fact"), ("글쎄요.", 3, "vague")]
        ranked = ranked[number % 3 :] + ranked[: number % 3]
        answers, ranks, defects = zip(*ranked, strict=True)
        rows.append(
            RmRow(id=row.id, question=row.question, answers=answers, ranks=ranks, defects=defects)
        )
    return rows


@cache
def library() -> Library:
    """Of all passages, in memory."""
    return Library(TEXTS, [Lexical.build(PASSAGES, ["pieces", "morphemes"])], Support.of(TEXTS))


def rag(**changed: Any) -> RagConfig:
    """Section `rag` as params.yaml has it, enabled."""
    whole = {
        "enabled": True,
        "path": Path("corpus.jsonl"),
        "tokens": "both",
        "dense": False,
        "characters": 200,
        "passages": 3,
        "passage_tokens": 128,
        "right": 0.6,
        "absent": 0.2,
        "reading": 1,
    }
    return RagConfig(**{**whole, **changed})


def blanks(text: str) -> int:
    """Tokens of a text that is split at blanks."""
    return len(text.split())


def mix(seed: int = 0, tokens: Callable[[str], int] = blanks, **changed: Any) -> Mix:
    """Over that library."""
    return Mix(library(), rag(**changed), seed, tokens)
