"""Korean particles and endings, chosen by the preceding sound.

Templates mark them in brackets: "{e}[은] {v}에 [있다]" becomes "일본은 아시아에 있습니다".
"""

import re

POLITE, CASUAL, PLAIN = "polite", "casual", "plain"  # 합니다 | 해 | 한다
REGISTERS = (POLITE, CASUAL, PLAIN)

# Marker -> (after a final consonant, after a vowel).
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "으로": ("으로", "로"),
    "이라고": ("이라고", "라고"),
    "예요": ("이에요", "예요"),
    "죠": ("이죠", "죠"),
}

# Marker -> (polite, casual, plain).
VERBS = {
    "있다": ("있습니다", "있어", "있다"),
    "있었다": ("있었습니다", "있었어", "있었다"),
    "쓴다": ("씁니다", "써", "쓴다"),
    "둔다": ("둡니다", "둬", "둔다"),
    "속한다": ("속합니다", "속해", "속한다"),
    "썼다": ("썼습니다", "썼어", "썼다"),
    "쓰였다": ("쓰였습니다", "쓰였어", "쓰였다"),
    "나왔다": ("나왔습니다", "나왔어", "나왔다"),
    "부른다": ("부릅니다", "불러", "부른다"),
    "발명했다": ("발명했습니다", "발명했어", "발명했다"),
    "발명됐다": ("발명되었습니다", "발명됐어", "발명되었다"),
    "발견했다": ("발견했습니다", "발견했어", "발견했다"),
    "발견됐다": ("발견되었습니다", "발견됐어", "발견되었다"),
    "세웠다": ("세웠습니다", "세웠어", "세웠다"),
    "세워졌다": ("세워졌습니다", "세워졌어", "세워졌다"),
    "망했다": ("망했습니다", "망했어", "망했다"),
    "그렸다": ("그렸습니다", "그렸어", "그렸다"),
    "작곡했다": ("작곡했습니다", "작곡했어", "작곡했다"),
    "기린다": ("기립니다", "기려", "기린다"),
    "읽는다": ("읽습니다", "읽어", "읽는다"),
    "열었다": ("열었습니다", "열었어", "열었다"),
    "모인다": ("모입니다", "모여", "모인다"),
    "한다": ("합니다", "해", "한다"),
    "맡는다": ("맡습니다", "맡아", "맡는다"),
    "진료한다": ("진료합니다", "진료해", "진료한다"),
    "만든다": ("만듭니다", "만들어", "만든다"),
    "적는다": ("적습니다", "적어", "적는다"),
    "왔다": ("왔습니다", "왔어", "왔다"),
}

# Read as 영, 일, 삼, 육, 칠, 팔.
_FINAL_DIGITS = {"0": "ㅇ", "1": "ㄹ", "3": "ㅁ", "6": "ㄱ", "7": "ㄹ", "8": "ㄹ"}
_FINAL_LETTERS = {"L": "ㄹ", "M": "ㅁ", "N": "ㄴ", "R": "ㄹ"}  # 엘 엠 엔 알
_RIEUL = 8  # index of ㄹ among the 27 finals
_MARKER = re.compile(r"\[([^\]]+)\]")


def final_consonant(text: str) -> str:
    """The final consonant of `text` as pronounced: "" for a vowel, "ㄹ", or "other"."""
    last = text.rstrip(" '\")]」』.,!?")[-1:]
    if "가" <= last <= "힣":
        index = (ord(last) - ord("가")) % 28
        return "" if index == 0 else "ㄹ" if index == _RIEUL else "other"
    sound = _FINAL_DIGITS.get(last) or _FINAL_LETTERS.get(last.upper(), "")
    return sound if sound in ("", "ㄹ") else "other"


def particle(text: str, marker: str) -> str:
    """The form of `marker` (a key of PARTICLES) that follows `text`."""
    closed, open_ = PARTICLES[marker]
    final = final_consonant(text)
    if marker == "으로" and final == "ㄹ":
        return open_
    return closed if final else open_


def copula(text: str, register: str) -> str:
    """이다 after `text`: 입니다, 이야 / 야, 이다."""
    if register == CASUAL:
        return "이야" if final_consonant(text) else "야"
    return "입니다" if register == POLITE else "이다"


def resolve(text: str, register: str = POLITE) -> str:
    """Replace every [marker] by the form required by the preceding text and the register.

    Raises ValueError for an unknown marker.
    """
    out = ""
    rest = 0
    for match in _MARKER.finditer(text):
        out += text[rest : match.start()]
        rest = match.end()
        marker = match[1]
        if marker in PARTICLES:
            out += particle(out, marker)
        elif marker == "이다":
            out += copula(out, register)
        elif marker in VERBS:
            out += VERBS[marker][REGISTERS.index(register)]
        else:
            raise ValueError(f"unknown marker [{marker}] in '{text}'")
    return out + text[rest:]
