#!/usr/bin/env bash
# transformers 5.23.0: a LlamaTokenizer that is saved and loaded again gives other ids after a special
# token, because save_pretrained does not write its `legacy` flag.
#
# Expected: from_pretrained(save_pretrained(x)) encodes every text as x does.
# Instead: a folder with "legacy": true in tokenizer_config.json (as Llama 2 models have it) is read
#   rightly, with the blank that SentencePiece puts before a text also after a special token. The
#   folder that save_pretrained writes has no `legacy` at all; it is read as legacy false, without
#   that blank. Texts without special tokens are encoded as before, so that nothing looks wrong.
# Seen:
#   read:  <s>한국의 수도 -> ['<s>', '▁한국의▁수도']
#   again: <s>한국의 수도 -> ['<s>', '한', '국의', '▁수도'], legacy in its config: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q transformers==5.23.0 tokenizers==0.23.3
cd "$work"
python - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer

TEXT = "<s>한국의 수도"

made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
specials = ["<unk>", "<s>", "</s>"]
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
made.train_from_iterator(["한국의 수도는 서울입니다", "서울은 한국의 수도입니다"] * 50, trainer)

first, second = Path("first"), Path("second")
first.mkdir()
made.save(str(first / "tokenizer.json"))
config = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
config |= dict(zip(("unk_token", "bos_token", "eos_token"), specials))
(first / "tokenizer_config.json").write_text(json.dumps(config))

read = AutoTokenizer.from_pretrained(first)
read.save_pretrained(second)
again = AutoTokenizer.from_pretrained(second)
kept = "legacy" in json.loads((second / "tokenizer_config.json").read_text())
print(f"read:  {TEXT} -> {read.tokenize(TEXT)}")
print(f"again: {TEXT} -> {again.tokenize(TEXT)}, legacy in its config: {kept}")
assert read.tokenize(TEXT) != again.tokenize(TEXT), "the flag survives saving now"
assert not kept
PYTHON
