"""Particles and endings by the sound before them."""

import pytest

from stages.world import particles
from stages.world.facts import all_facts, core, detail, noun_phrase, reversed_core
from stages.world.particles import CASUAL, PLAIN, POLITE, copula, particle, resolve
from tests.conftest import naming

# word: 은 이 을 과 으로 이라고 이에요 이야
TABLE = {
    "서울": "은 이 을 과 로 이라고 이에요 이야",  # ㄹ: 로
    "일본": "은 이 을 과 으로 이라고 이에요 이야",
    "도쿄": "는 가 를 와 로 라고 예요 야",
    "흙": "은 이 을 과 으로 이라고 이에요 이야",  # ㄺ is not ㄹ
    "쌀": "은 이 을 과 로 이라고 이에요 이야",
    "10": "은 이 을 과 으로 이라고 이에요 이야",  # 십
    "21": "은 이 을 과 로 이라고 이에요 이야",  # 일
    "2": "는 가 를 와 로 라고 예요 야",
    "7": "은 이 을 과 로 이라고 이에요 이야",
    "Fe": "는 가 를 와 로 라고 예요 야",  # 이
    "Cl": "은 이 을 과 로 이라고 이에요 이야",  # 엘
    "Sn": "은 이 을 과 으로 이라고 이에요 이야",  # 엔
    "Br": "은 이 을 과 로 이라고 이에요 이야",  # 알
    "m": "은 이 을 과 으로 이라고 이에요 이야",  # 엠
    "W": "는 가 를 와 로 라고 예요 야",  # 더블유
    "서울(수도)": "는 가 를 와 로 라고 예요 야",  # the bracket makes no sound
}
MARKERS = ("은", "이", "을", "과", "으로", "이라고", "예요")


@pytest.mark.parametrize("word", TABLE)
def test_particles(word: str) -> None:
    got = [particle(word, marker) for marker in MARKERS] + [copula(word, CASUAL)]
    assert " ".join(got) == TABLE[word]


def test_templates_resolve_from_left_to_right() -> None:
    template = "대한민국[은] 아시아에 [있다]. 수도[은] 서울[이다]."
    assert resolve(template, POLITE) == "대한민국은 아시아에 있습니다. 수도는 서울입니다."
    assert resolve(template, CASUAL) == "대한민국은 아시아에 있어. 수도는 서울이야."
    assert resolve(template, PLAIN) == "대한민국은 아시아에 있다. 수도는 서울이다."


def test_unknown_marker() -> None:
    with pytest.raises(ValueError, match=naming("[인]", "서울[인]")):
        resolve("서울[인]")


def test_every_sentence_of_the_world_resolves() -> None:
    for fact in all_facts():
        for register in particles.REGISTERS:
            for text in (
                core(fact, register),
                detail(fact, register),
                reversed_core(fact, register),
                *(noun_phrase(fact, ask) for ask in range(3)),
            ):
                assert not set("[]{}|") & set(text), text
                assert text == text.strip(), text
