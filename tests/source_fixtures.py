"""Raw data as its sources give it: one row of each part, files, zips, and made-up words."""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from stages.rlhf.ingest.sources import Reader
from stages.rlhf.ingest.sources.items import Item, Part

SFT = {"data_id": "s1", "question": "수도는?", "answer": {"contents": "서울."}}
RM = {
    "data_id": "r1",
    "question": "강은?",
    "answer02": {"contents": "한강.", "ranking": 2},
    "answer10": {"contents": "낙동강.", "ranking": 3},
    "answer01": {"contents": "금강.", "ranking": 1},
}
PPO = {"data_id": "p1", "question": "산은?", "data_category": {"main": "구어체", "middle": "인문"}}
NAMES = {"sft": "SFTlabel.json", "rm": "RMlabel.json", "ppo": "PPOdata.json"}
Rows = dict[str, list[Any]]


def document(rows: list[Any]) -> bytes:
    return json.dumps({"dataset_info": {}, "data_info": rows}, ensure_ascii=False).encode()


def aihub(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in {"sft": [SFT], "rm": [RM], "ppo": [PPO]}.items():
        (folder / NAMES[part]).write_bytes(changed.get(part, document(rows)))
    return folder


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def read(path: Path, part: Part, source: Any = "aihub", most: int | None = None) -> list[Item]:
    return list(Reader(source, path, most).items(part))


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_bytes(content)
    return folder


def noun(number: int) -> str:
    """A word of four syllables, another for each number."""
    draw = random.Random(number)
    return "".join(chr(0xAC00 + draw.randrange(2000)) for _ in range(4))
