#!/usr/bin/env bash
# transformers 5.23.0: in a process group, save_pretrained writes nothing on any rank but 0, whatever
# is_main_process says, and says nothing about it.
#
# Expected: "is_main_process: Whether the process calling this is the main one": the caller decides who
#   writes. On two machines with a disk each, the first process of each is one; Trainer's
#   save_on_each_node is for that.
# Instead: should_save_on_this_rank is `is_main_process and rank == 0` as soon as torch.distributed is
#   initialised. The call returns normally; the second machine's folder has no config and no weights,
#   while the tokenizer and peft's adapters, saved by the same process in the same way, are there.
# Seen:
#   rank 0: ['config.json', 'generation_config.json', 'model.safetensors', 'tokenizer']
#   rank 1: ['tokenizer']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 transformers==5.23.0 tokenizers==0.23.1
cd "$work"
cat > save.py <<'PYTHON'
import os
from pathlib import Path

from tokenizers import Tokenizer, models
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

distributed.init_process_group("gloo")
rank = distributed.get_rank()
config = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)
folder = Path(f"machine{rank}")
LlamaForCausalLM(config).save_pretrained(folder, is_main_process=True)
words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
files = sorted({"tokenizer" if n.startswith("tokenizer") else n for n in os.listdir(folder)})
for turn in range(2):
    if turn == rank:
        print(f"rank {rank}: {files}", flush=True)
    distributed.barrier()
assert ("model.safetensors" in files) == (rank == 0), "fixed"
distributed.destroy_process_group()
PYTHON
OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node=2 save.py
