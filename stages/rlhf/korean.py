"""Normalization of Korean text before tokenization: normal forms, sentence boundaries."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal

# Controls, format characters (BOM, zero-width, direction marks), Hangul fillers without width and
# lone surrogates: invisible in an editor, distinct to a tokenizer. Excludes whitespace, and what
# joins two emoji to one.
_EMOJI = "\u2190-\u2bff\U0001f000-\U0001faff"
_INVISIBLE = re.compile(
    f"\u200d(?!(?<=[{_EMOJI}\ufe0f]\u200d)[{_EMOJI}])|"
    "[\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u180e"
    "\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_BREAKS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Blanks but the space and the tab, and Hangul fillers with a width.
_BLANKS = re.compile("[\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164\uffa0]")
_FILLERS = re.compile("[\u034f\u115f\u1160\u3164\uffa0]")  # printable to str.isprintable
_NEWLINE = "<[!newline]>"  # AI-Hub's
# What a model's output ends with, or is alone, when it was saved with its special tokens.
_TRAILERS = (
    *("</s>", "<eos>", "<pad>", "[EOS]", "[PAD]", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|end|>", "<s>", "<bos>"),
)
_State = Literal["", "start", "code", "end"]
# A line that opens a block of code, perhaps as an item or a quote; without a word it closes one.
_FENCE = re.compile(r"\s*(?:(?:[-*+>]|\d{1,3}[.)])\s+)*(`{3,})([^`]*)")

# Placeholders that AI-Hub and similar sources put in for redacted names and addresses: in capitals,
# numbered, or before an honorific, because <name> and <address> are tags and List<ID> is a type.
_REDACTED = (
    "NAME|PERSON|ADDRESS|PHONE|TEL|EMAIL|URL|DATE|ORG|ORGANIZATION|LOCATION|ID|NUMBER|NUM|AGE"
    "|이름|주소|전화번호|이메일|기관명|지명"
)
_PLACEHOLDER = re.compile(
    rf"(?<![A-Za-z0-9_])<(?:({_REDACTED})>(?! ?(?:태그|요소|엘리먼트|tag|element))"
    rf"|((?i:{_REDACTED})[_\-]?\d+)>|(?i:{_REDACTED})> ?[씨님])|#@[^#\s]{{1,12}}#"
)

_MARKS = ".!?…。！？"
_CLOSERS = "\"'”’」』》〉)]】"
_CLOSING = f"[{re.escape(_CLOSERS)}]*"
_ENDS = re.compile(
    rf"(?<![{_MARKS}])[{_MARKS}]++{_CLOSING}+(?=\s|$)"  # marks, then perhaps closing quotes
    r"|(?<=[다요죠까])[.!?](?=[가-힣])"  # missing space after the mark
    rf"|(?<=[다요죠까]){_CLOSING}(?=\n|$)"  # no mark, but a final ending and a line break
)
_NO_END = re.compile(
    r"(?:\d|(?:^|[^A-Za-z])(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|vs|No|St|etc))\.$"  # 1. Dr. 2024. e.g.
    r"|(?:\.\.|…)$"  # a pause
)


def clean(text: str) -> str:
    """Normal form of a text that keeps its lines: NFC, no invisible characters, LF line breaks.

    A line keeps its indentation and loses trailing blanks; other runs of blanks become one space,
    runs of blank lines one blank line, except within a fenced block of code (```). Blank lines
    around the text go, and so does the indentation of its first line: from all lines that follow
    it with the same. EOS after the last sentence goes; elsewhere special tokens are text.
    """
    text = _untrailed(_visible(text))
    if "\n" not in text:
        return _folded(text)
    lines = _kept_lines(text.strip("\n").split("\n"))
    while lines and not lines[-1]:  # of a fence that nothing closes
        lines.pop()
    return "\n".join(_dedented(lines))


def clean_line(text: str) -> str:
    """`clean`, on one line: for questions and phrases."""
    return _folded(_untrailed(_visible(text)))


def _untrailed(text: str) -> str:
    """The text without EOS and padding right after its end, unless </s> closes an <s>."""
    whole = len(text.rstrip())
    end = whole
    while text.endswith(_TRAILERS, 0, end):
        end -= next(len(trailer) for trailer in _TRAILERS if text.endswith(trailer, 0, end))
        while end and text[end - 1].isspace():
            end -= 1
    spaced = text[end : end + 1].isspace() and text[end - 1 : end] not in _MARKS + _CLOSERS
    if end == whole or spaced or ("</s>" in text[end:] and "<s>" in text[:end]):
        return text
    return text[:end]


def _visible(text: str) -> str:
    """NFC without invisible characters; breaks are LF, and other blanks space or tab."""
    if not text.replace("\n", "").isprintable() or _FILLERS.search(text):
        text = _INVISIBLE.sub("", _BLANKS.sub(" ", _BREAKS.sub("\n", text)))
    if _NEWLINE in text:
        text = text.replace(_NEWLINE, "\n")
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return " ".join(text.split())


def _kept_lines(lines: list[str]) -> list[str]:
    """The lines with blanks and blank lines folded outside of fences; none blank at the start."""
    kept: list[str] = []
    for line, code in zip(lines, _in_code(lines), strict=True):
        body = line.strip()
        if not body:
            if code or (kept and kept[-1]):
                kept.append("")
        elif code == "code" or not ("  " in body or "\t" in body):
            kept.append(line.rstrip())
        else:
            kept.append(line[: len(line) - len(line.lstrip())] + _folded(body))
    return kept


def _in_code(lines: Iterable[str]) -> Iterator[_State]:
    """Whether each line starts, is within, or ends a fenced block of code; one may never end."""
    fence = ""
    for line in lines:
        state: _State = "code" if fence else ""
        if "```" in line and (found := _FENCE.fullmatch(line)):
            marks, word = found.groups()
            if not fence:
                fence, state = marks, "start"
            elif not word.strip() and len(marks) >= len(fence):
                fence, state = "", "end"
        yield state


def _dedented(lines: list[str]) -> list[str]:
    """The lines without the first line's indentation, up to a line that has less."""
    indentation = lines[0][: len(lines[0]) - len(lines[0].lstrip())] if lines else ""
    if not indentation:
        return lines
    for index, line in enumerate(lines):
        if line and not line.startswith(indentation):
            break
        lines[index] = line[len(indentation) :]
    return lines


def has_placeholder(text: str) -> bool:
    """Whether a clean text contains a redaction placeholder such as `<NAME>` or `#@이름#`.

    An element of XML, closed in the same text or called a tag, is none.
    """
    if "<" not in text and "#@" not in text:
        return False
    closed = set(re.findall(r"</(\w+)>", text))
    return any((m[1] or m[2]) not in closed for m in _PLACEHOLDER.finditer(text))


def same_text(one: str, other: str) -> bool:
    """Whether two clean texts are equal up to case, whitespace and final punctuation.

    Stricter than equal keys: a valid answer may differ from the question by one comma.
    """
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .?!~…")


def sentence_ends(text: str) -> list[int]:
    """Offsets just after each sentence of a clean text, in order.

    A full stop after a number or an abbreviation ("1. ", "2024. 3. 1. ", "Dr. ") or an ellipsis
    ("음... ") ends a sentence only at the end of the text. A fenced block of code is no sentence,
    but its last line ends one.
    """
    ends: list[int] = []
    position = 0
    for start, stop, closed in (*_blocks(text), (len(text), len(text), False)):
        spoken = _ENDS.finditer(text, position, start) if position < start else ()
        ends += [
            match.end()
            for match in spoken
            if match.end() == len(text)
            or not _NO_END.search(text[max(0, match.start() - 5) : match.end()].rstrip(_CLOSERS))
        ]
        if closed:
            ends.append(stop)
        position = stop
    return ends


def _blocks(text: str) -> list[tuple[int, int, bool]]:
    """Start and stop of each fenced block of code, and whether it is closed."""
    if "```" not in text:
        return []
    blocks: list[tuple[int, int, bool]] = []
    lines = text.split("\n")
    start, offset = -1, 0
    for line, state in zip(lines, _in_code(lines), strict=True):
        if state and start < 0:
            start = offset
        if state == "end":
            blocks.append((start, offset + len(line), True))
            start = -1
        offset += len(line) + 1
    return blocks if start < 0 else [*blocks, (start, len(text), False)]
