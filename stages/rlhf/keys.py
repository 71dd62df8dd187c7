"""Keys of questions: equal for the same question, whatever its spacing and punctuation."""

import re
import unicodedata

from stages.rlhf.korean import clean_line

# Ignored by keys: punctuation and whitespace, except signs that are read (3*4 is not 3/4, C# is
# not C) and what _KEPT finds: 3.5, 12:30, 5!, x!=1, f'(x), .NET, snake_case.
_IGNORED = "".join(
    char
    for char in map(chr, range(0x20000))
    if (unicodedata.category(char)[0] == "P" and char not in "#%&*+-/@\\‰‱") or char.isspace()
)
_KEPT = re.compile(
    r"[.,: ](?<=\d.)(?=\d)|\.(?<![\w.].)(?=[a-z0-9])"
    r"|!(?:(?<=\d!)|(?<=(?<![a-z])[a-z]!)|(?==))|['′](?<=[a-z'′].)(?=['′]?[(⎛])"
    r"|_(?:(?=_?[a-z0-9])|(?<=[a-z0-9]_)|(?<=[a-z0-9]__))"
)
_STAND_INS = {char: chr(0xFDD0 + index) for index, char in enumerate(".,: !'′_")}
_NOT_IN_KEY = str.maketrans("", "", _IGNORED) | {ord(s): c for c, s in _STAND_INS.items()}
_READ = re.compile(r"[\da-z]")  # next to these, punctuation may matter
_THOUSANDS = re.compile(r",(?<=\d,)(?<!\d{4},)(?=\d{3}(?!\d))")
_DASHES = "‐‒–—―"
_DASH = re.compile(rf"[{_DASHES}](?=\d)")
_GAP = re.compile(rf"(?<=\d)(?!!)[{re.escape(_IGNORED)}]+(?=\d)")
_OPERAND = r"(?:\d|(?<![a-z])[a-z](?![a-z]))"
_SUM = re.compile(rf"{_OPERAND} ?[-+*/^×÷] ?{_OPERAND}|^[-+] ?{_OPERAND}")
_BRACKETS = re.compile(r"\(([^()]*)\)")

# Signs that NFKC turns into plain digits: x² is not x2, and 1½ and log₂8 are not 11/2 and log28.
_RAISED = "⁰ⁱ¹²³⁴-⁹⁺⁻ⁿ"
_UNITS = "\u339f-\u33a6\u33a8\u33af"  # ㎟ to ㎦, ㎨, ㎯
_DISGUISED = "".join(
    char
    for char in map(chr, range(0x20000))
    if unicodedata.decomposition(char)
    and unicodedata.category(char) != "Nd"
    and not re.match(f"[{_RAISED}{_UNITS}]", char)
    and re.search("[0-9]", unicodedata.normalize("NFKC", char))
)
_COMPOSED = re.compile(f"([{_RAISED}]+)|([{_UNITS}])|[{_DISGUISED}]")


def question_key(text: str) -> str:
    """A key equal for texts that differ only in whitespace, case, width or punctuation.

    Kept is what changes a number or the meaning of a formula or a name: 3.5 and 35, 1 2 and 12,
    3² and 32, 5! and 5, (3+4)*2 and 3+4*2, .NET and NET. 1,000 is 1000, and H₂O is H2O.
    """
    text = clean_line(text)
    if unicodedata.normalize("NFKC", text) != text:
        text = unicodedata.normalize("NFKC", _COMPOSED.sub(_apart, text))
    text = text.casefold()
    if _READ.search(text):
        for char, plain in (("\u2212", "-"), ("\u2044", "/"), ("\u2215", "/")):
            text = text.replace(char, plain)
        text = _DASH.sub("-", _THOUSANDS.sub("", text))
        if "(" in text:
            text = _BRACKETS.sub(_bracketed, text)
        text = _KEPT.sub(lambda found: _STAND_INS[found[0]], _GAP.sub(_gap, text))
    return text.translate(_NOT_IN_KEY)


def is_blank(text: str) -> bool:
    """Whether a text has nothing but whitespace and punctuation; much cheaper than its key."""
    return not text.strip(_IGNORED)


def _apart(found: re.Match[str]) -> str:
    """The sign with a mark where its digits begin; a space counts only between digits."""
    raised, unit = found.groups()
    if raised:
        return f"^{raised}"
    if unit:
        plain = unicodedata.normalize("NFKC", unit)
        return f"{plain[:-1]}^{plain[-1]}"
    return f" {found[0]} "


def _bracketed(found: re.Match[str]) -> str:
    return f"⎛{found[1]}⎠" if _SUM.search(found[1]) else found[0]


def _gap(found: re.Match[str]) -> str:
    """What stands between two digits, as one character."""
    signs = found[0].strip()
    if signs in (".", ",", ":"):
        return signs
    if signs and signs in _DASHES:
        return "-"
    return "~" if signs == "〜" else " "
