"""What the names of files and folders, and a row's `split`, mean: a part, and a split.

The innermost name decides: in `train/sft_dev.jsonl` it is `dev`.
"""

import re
import unicodedata
from typing import Final

from stages.rlhf.ingest.sources.items import Part

WORDS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("train", "training", "학습", "훈련"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "검증"),
    "test": ("test", "testing", "시험", "평가", "테스트"),
    "judge_train": ("judge_train",),
    "judge_test": ("judge_test",),
}
_SPLITS: Final = {word: split for split, words in WORDS.items() for word in words}
_PARTS: Final[dict[str, Part]] = {"sft": "sft", "rm": "rm", "ppo": "ppo"}
_NUMBERED = re.compile(r"^\d+[.\-_ ]+")  # 2.Validation
_SET = re.compile(r"[\-_ ]?(?:set|split|data|dataset|데이터|데이터셋|용)$")
_AIHUB = re.compile(r"([tv])[ls](?:[_.\- \d].*)?\.zip")  # VL.zip, TS_02.RLHF데이터.zip
_ENDING = re.compile(r"\.(?:jsonl?|csv|tsv|parquet)(?:\.gz)?$")
_WITHIN = re.compile(r"[.\-_ ]+")  # between the words of a file's name
_FILLING = re.compile(r"\d+|of|v\d+|data|ko|[0-9a-f]{16}")  # train-00000-of-00001-8dbb0c5e7ac1e3f2


def is_data(name: str) -> bool:
    """Whether a file of this base name may hold rows."""
    return bool(_ENDING.search(name.casefold()))


def known_split(word: str) -> str | None:
    """The split that a word means, in any case: `Dev` is validation; None if none."""
    return _SPLITS.get(unicodedata.normalize("NFC", word).strip().casefold())


def split_named(folders: tuple[str, ...], name: str) -> str | None:
    """The split that a file's name, or else a folder or zip around it, stands for."""
    words = {split for word in _words(name) if (split := known_split(word))}
    if len(words) == 1:
        return words.pop()
    for folder in reversed(folders):
        if split := _folder_split(folder):
            return split
    return None


def part_named(folders: tuple[str, ...], name: str) -> Part | None:
    """The part of a file such as `sft.jsonl`, `rm_train.csv` or `ppo/train-00000-of-1.parquet`.

    None for any other ending, a hidden file, and a name with any other word: `sft_backup.jsonl`.
    Below a folder of the part's name, numbers and `data` are a name: `sft/data/0000.parquet`.
    """
    if not is_data(name) or name.startswith((".", "~")):
        return None
    words = _words(name)
    parts = [_PARTS[word] for word in words if word in _PARTS]
    if any(
        word not in _PARTS and not known_split(word) and not _FILLING.fullmatch(word)
        for word in words
    ):
        return None
    if not parts:
        return next(
            (_PARTS[f.casefold()] for f in reversed(folders) if f.casefold() in _PARTS), None
        )
    return parts[0] if len(parts) == 1 else None


def _folder_split(folder: str) -> str | None:
    name = unicodedata.normalize("NFC", folder).casefold()
    if match := _AIHUB.fullmatch(name):
        return "train" if match[1] == "t" else "validation"
    name = _NUMBERED.sub("", name.removesuffix(".zip"))
    return known_split(name) or known_split(_SET.sub("", name))


def _words(name: str) -> list[str]:
    stem = _ENDING.sub("", unicodedata.normalize("NFC", name).casefold())
    return [word for word in _WITHIN.split(stem) if word]
