#!/usr/bin/env bash
# transformers 5.23.0 writes into a tokenizer that was loaded and is saved again whether the process was
# offline: with and without HF_HUB_OFFLINE=1 the same tokenizer has other bytes.
#
# Expected: tokenizer_config.json holds the tokenizer's settings; what is saved depends on the tokenizer.
# Instead: its `local_files_only` is the environment's. Hashes of a saved model then differ from one
#   machine, or one command, to the next, though nothing of the model does.
# Seen:
#   online: "local_files_only": false
#   offline: "local_files_only": true
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q transformers==5.23.0 tokenizers==0.23.3
cd "$work"
cat > save.py <<'PYTHON'
import sys

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = Tokenizer(WordLevel({"<unk>": 0, "네": 1}, unk_token="<unk>"))
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained("first")
AutoTokenizer.from_pretrained("first").save_pretrained(sys.argv[1])
PYTHON
saved() { grep -o '"local_files_only": [a-z]*' "$1/tokenizer_config.json"; }
HF_HUB_OFFLINE=0 python save.py online
HF_HUB_OFFLINE=1 python save.py offline
echo "online: $(saved online)"
echo "offline: $(saved offline)"
test "$(saved online)" != "$(saved offline)"
cmp -s online/tokenizer.json offline/tokenizer.json
