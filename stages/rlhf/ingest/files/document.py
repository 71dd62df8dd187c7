"""A JSON document read row by row in bounded memory, whatever it is."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, Final

ROW_BYTES: Final = 1 << 20  # of one row; AI-Hub's longest has about 26,000
DEPTH: Final = 64  # nesting of lists and objects; AI-Hub's rows have 2
DECODER: Final = json.JSONDecoder(strict=False)  # a tab or line break within a string is itself
_CHUNK = 1 << 16  # bytes
_BLANK = re.compile(r"[ \t\n\r]*")
_MARK = re.compile(r'[\[\]{},:]|"[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_CLOSERS = {"[": "]", "{": "}"}
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes, as surrogateescape decodes them


class Document:
    """A JSON document, of which the part from the last row's end is in memory.

    The part grows by its own size at least, so that whatever begins again at a row's begin takes
    time in proportion to the row. `count`: rows read so far.
    """

    def __init__(self, raw: IO[bytes], where: str) -> None:
        self._raw, self._where = raw, where
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text, self._at = "", 0
        self._began = 0  # of the row, with blanks before it
        self._read = 0  # bytes
        self._ended = False
        self._utf8 = True
        self.count = 0

    def rows_under(self, key: str) -> Iterator[Any]:
        """Rows of the array under a key of the object that begins here."""
        found, expected = False, f'expected {{"{key}": [rows]}}, an array'
        if (first := self.peek()) == "{":
            self._at += 1
            while self.peek() != "}":
                if self._value(":") == key:
                    found = True
                    self._at += 1
                    if (kind := self.peek()) not in ("[", ""):
                        raise ValueError(f"{self._where}: {key} begins with {kind}; {expected}")
                    yield from self.rows()
                else:
                    self._at += 1
                    self._value(",}")
                self._row_ends()
                if self.peek() == ",":
                    self._at += 1
                elif self.peek() != "}":
                    raise self.error("expected , or }")
            self._at += 1
        elif first != "[":
            raise self.error("expected an object")
        if not found:
            raise ValueError(f"{self._where}: no {key}; {expected}")

    def rows(self) -> Iterator[Any]:
        """Rows of the array that begins here; what is not JSON, as text."""
        if self.peek() != "[":
            raise self.error("expected [rows], an array")
        self._at += 1
        while self.peek() != "]":  # a comma after the last row is passed over
            row = self._value(",]", texts=self.count > 0)
            self.count += 1
            self._row_ends()
            if self._text[self._at] == ",":
                self._at += 1
            yield row
        self._at += 1

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            self._at = _blank(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more() and self._at == len(self._text):
                return ""

    def error(self, reason: str, at: int | None = None) -> ValueError:
        """What is wrong at a position of the text, or here."""
        rest = self._text[self._at if at is None else at :]
        byte = self._read - len(self._decoder.getstate()[0]) - _bytes(rest)
        if self.count == 0 and not self._utf8:
            reason = f"not UTF-8; {reason}"
        return ValueError(
            f"{self._where}: not JSON, or truncated, after row {self.count}, at byte {byte}:"
            f" {reason}"
        )

    def _value(self, stops: str, texts: bool = False) -> Any:
        """The value that is followed by one of `stops`, at which to go on.

        `texts`: what is not JSON is its text; else it raises ValueError.
        """
        self.peek()
        while True:
            value, end, wrong = None, -1, ""
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                wrong = error.msg
            except ValueError as error:  # a number of 5,000 digits
                wrong = one_line(error)
            except RecursionError:
                wrong = f"nested deeper than {DEPTH}"
            if not wrong:
                end = _blank(self._text, end)
                if end < len(self._text) and self._text[end] not in stops:
                    wrong = f"expected one of {stops}"
            if wrong:
                end = self._end(stops)
            if end < len(self._text):
                break
            if not self._more():
                raise self.error(wrong or "it ends here")
        wrong = wrong or self._flaw(value, end)
        if wrong and not texts:
            raise self.error(wrong)
        if wrong:
            value = self._text[self._at : end].strip()
            value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._at = end
        return value

    def _flaw(self, value: Any, end: int) -> str:
        """What is wrong with a value that json can parse, if anything."""
        text, at = self._text, self._at
        if text.count("[", at, end) + text.count("{", at, end) > DEPTH and is_deep(value):
            return f"nested deeper than {DEPTH}"
        if not self._utf8 and _NOT_UTF8.search(text, at, end):
            return "not UTF-8"
        return ""

    def _end(self, stops: str) -> int:
        """Where the value that begins here ends; len(text) if that is not in memory.

        Counts brackets outside of strings. Raises ValueError if they do not match.
        """
        closers: list[str] = []
        for match in _MARK.finditer(self._text, self._at):
            mark = self._text[match.start()]
            if mark == '"':
                if not match[1]:
                    break
            elif not closers and mark in stops:
                return match.start()
            elif mark in _CLOSERS:
                closers.append(_CLOSERS[mark])
            elif mark in "]}" and (not closers or closers.pop() != mark):
                raise self.error(f"a {mark} too many", match.start())
        return len(self._text)

    def _row_ends(self) -> None:
        """Let go of what is before this position."""
        if 4 * (self._at - self._began) > ROW_BYTES:
            self._check_size(self._text[self._began : self._at])
        self._began = self._at

    def _more(self) -> bool:
        """Read on; False at the end of the file. Raises ValueError if a row is too large."""
        kept = self._text[self._began :]
        self._check_size(kept)
        chunk = b"" if self._ended else self._raw.read(max(_CHUNK, len(kept)))
        self._ended = not chunk
        new = self._decoder.decode(chunk, final=self._ended)
        self._utf8 = self._utf8 and _is_utf8(new)
        self._text = kept + new
        self._at -= self._began
        self._began = 0
        self._read += len(chunk)
        return not self._ended

    def _check_size(self, row: str) -> None:
        if (size := _bytes(row)) > ROW_BYTES:
            raise ValueError(
                f"{self._where}: after row {self.count}: no row ends within {size} bytes;"
                f" expected at most {ROW_BYTES}"
            )


def _blank(text: str, at: int) -> int:
    """Where blanks from here end."""
    match = _BLANK.match(text, at)
    assert match is not None
    return match.end()


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _is_utf8(text: str) -> bool:
    """Whether text decoded with surrogateescape was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than DEPTH."""
    layer = [value]
    for _ in range(DEPTH):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(layer)


def one_line(error: Exception) -> str:
    """A short message without line breaks."""
    return " ".join(str(error).split())[:200]
