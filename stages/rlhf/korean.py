"""Normalization of Korean text before tokenization: normal forms, keys, sentence boundaries."""

import re
import unicodedata

# Controls, format characters (BOM, zero-width, direction marks), Hangul fillers without width and
# lone surrogates: invisible in an editor, distinct to a tokenizer. Excludes whitespace.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000e-\u001b\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_FILLERS = str.maketrans({"\u3164": " ", "\uffa0": " "})  # Hangul fillers with a width

# Special tokens of the tokenizers in params.yaml's `models` and of similar ones.
_SPECIAL = re.compile(
    r"<\|[^<>|\s]{1,40}\|>"
    r"|</?s>|<(?:pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn|unused\d{1,3})>"
    r"|\[/?INST\]|<</?SYS>>|\[(?:PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]",
    re.IGNORECASE,
)
_NESTED = 8  # passes: removing a token may form another one
_BRACKETS = str.maketrans("", "", "<[")
# Blanks first: a pattern "blanks, then a break" is quadratic in a run of a million blanks.
_BLANKS = re.compile(r"[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_BREAKS = re.compile(r" ?[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")

# Placeholders that AI-Hub and similar sources put in for redacted names and addresses.
_PLACEHOLDER = re.compile(
    r"<(?:NAME|PERSON|ADDRESS|PHONE|TEL|EMAIL|URL|DATE|ORG|ORGANIZATION|LOCATION|ID|NUMBER|NUM|AGE"
    r"|이름|주소|전화번호|이메일|기관명|지명)[_\-]?\d*>|#@[^#\s]{1,12}#",
    re.IGNORECASE,
)

# Ignored by keys: punctuation and whitespace, except "#%&*+-/@" (3*4 is not 3/4, C# is not C).
_NOT_IN_KEY = {
    point: None
    for point in range(0x20000)
    if (unicodedata.category(chr(point))[0] == "P" and chr(point) not in "#%&*+-/@")
    or chr(point).isspace()
}

_CLOSERS = "\"'”’」』》〉)]】"
_CLOSING = f"[{re.escape(_CLOSERS)}]*"
_ENDS = re.compile(
    rf"(?<![.!?…。！？])[.!?…。！？]++{_CLOSING}+(?=\s|$)"  # marks, then perhaps closing quotes
    r"|(?<=[다요죠까])[.!?](?=[가-힣])"  # missing space after the mark
    rf"|(?<=[다요죠까]){_CLOSING}(?=\n|$)"  # no mark, but a final ending and a line break
)
_NO_END = re.compile(
    r"(?:\d|(?:^|[^A-Za-z])(?:[A-Za-z]|Dr|Mr|Mrs|Ms|Prof|vs|No|St|etc))\.$"  # 1. Dr. 2024. e.g.
    r"|(?:\.\.|…)$"  # a pause
)


def clean(text: str) -> str:
    """Normal form of a text: NFC, no invisible characters or special tokens, whitespace collapsed.

    A run of whitespace becomes one line break if it contains one, else one space.
    """
    text, removed = _without_tokens(text)
    for _ in range(_NESTED):  # a removal may form another token: <</s>/s>
        if not removed:
            break
        text, removed = _without_tokens(text)
    if removed:  # nesting this deep is deliberate
        text = text.translate(_BRACKETS)
    return _BREAKS.sub("\n", _BLANKS.sub(" ", text)).strip()


def _without_tokens(text: str) -> tuple[str, int]:
    text = _INVISIBLE.sub("", text.translate(_FILLERS).replace("<[!newline]>", "\n"))
    return _SPECIAL.subn("", unicodedata.normalize("NFC", text))


def clean_line(text: str) -> str:
    """`clean`, on one line: for questions and phrases."""
    return clean(text).replace("\n", " ")


def has_placeholder(text: str) -> bool:
    """Whether a clean text contains a redaction placeholder such as `<NAME>` or `#@이름#`."""
    return _PLACEHOLDER.search(text) is not None


def same_text(one: str, other: str) -> bool:
    """Whether two clean texts are equal up to case, whitespace and final punctuation.

    Stricter than equal keys: a valid answer may differ from the question by one comma.
    """
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .?!~…")


def question_key(text: str) -> str:
    """A key equal for texts that differ only in whitespace, case, width or punctuation."""
    return unicodedata.normalize("NFKC", clean(text)).casefold().translate(_NOT_IN_KEY)


def sentence_ends(text: str) -> list[int]:
    """Offsets just after each sentence of a clean text, in order.

    A full stop after a number or an abbreviation ("1. ", "2024. 3. 1. ", "Dr. ") or an ellipsis
    ("음... ") ends a sentence only at the end of the text.
    """
    return [
        match.end()
        for match in _ENDS.finditer(text)
        if match.end() == len(text)
        or not _NO_END.search(text[max(0, match.start() - 5) : match.end()].rstrip(_CLOSERS))
    ]
