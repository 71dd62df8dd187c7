"""Packaging as in AI-Hub dataset 71748: its folders and zips, entry names that begin with "/".

The bytes depend only on the rows: fixed timestamps, entries stored uncompressed (compressed bytes
differ between zlib builds).
"""

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

ROOT = Path("3.개방데이터/1.데이터")
SFT, RM, PPO = "/SFTlabel.json", "/RMlabel.json", "/PPOdata.json"
_INFO = {
    "identifier": "koqa-sample",
    "name": "한국어 질의응답 표본 세계",
    "src_path": "/dataset/rlhf/",
    "label_path": "/dataset/rlhf/",
    "category": 2,
    "type": 0,
}


def write_package(folder: Path, parts: dict[str, tuple[list[Any], list[Any]]]) -> list[Path]:
    """Write the four zips; `parts`: {sft, rm, ppo: (Training rows, Validation rows)}."""
    paths = []
    for side, name, source, label in (
        (0, "Training", "TS_02.RLHF데이터.zip", "TL_02.RLHF데이터.zip"),
        (1, "Validation", "VS_02.RLHF데이터.zip", "VL.zip"),
    ):
        base = folder / ROOT / name
        paths.append(_write_zip(base / "01.원천데이터" / source, {PPO: parts["ppo"][side]}))
        labels = {SFT: parts["sft"][side], RM: parts["rm"][side]}
        paths.append(_write_zip(base / "02.라벨링데이터" / label, labels))
    return paths


def _write_zip(path: Path, entries: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w", ZIP_STORED) as package:
        for name, rows in entries.items():
            info = ZipInfo(name, date_time=(2024, 1, 1, 0, 0, 0))
            info.create_system = 3  # the same bytes on every system
            info.external_attr = 0o644 << 16
            text = json.dumps({"dataset_info": _INFO, "data_info": rows}, ensure_ascii=False)
            package.writestr(info, text)
    return path
