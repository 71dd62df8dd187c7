#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` raises a model's max_new_tokens to 1024.
#
# Expected: a request without max_tokens is limited by the max_new_tokens of the model's
#   generation_config.json, as model.generate and the text-generation pipeline are.
# Instead: a value below 1024 is replaced by 1024, so that a model of short answers goes on past what
#   it was made for, and past its max_position_embeddings. Nothing is said. finish_reason is "length"
#   only at 1024.
# Seen:
#   generation_config.json: max_new_tokens 8
#   generate: 8 tokens
#   served: 1024 tokens, finish_reason length
#   served with max_tokens 8: 8 tokens, finish_reason length
set -euo pipefail
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 "transformers[serving]==5.23.0" tokenizers==0.23.3
cd "$work"
export HF_HUB_OFFLINE=1
python - <<'PYTHON'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2, "c": 3}, unk_token="a"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token="<eos>", chat_template=template
)
sizes = dict(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, eos_token_id=None)).eval()
model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8)
model.save_pretrained("model")
tokenizer.save_pretrained("model")
print("generation_config.json: max_new_tokens 8")
inputs = tokenizer("a b", return_tensors="pt", return_token_type_ids=False)
print(f"generate: {model.generate(**inputs).shape[1] - inputs['input_ids'].shape[1]} tokens")
PYTHON
transformers serve "$work/model" --device cpu --port 18653 >log 2>&1 &
server=$!
python - <<'PYTHON'
import time
from pathlib import Path
from urllib.request import urlopen

from openai import OpenAI

MODEL = str(Path("model").resolve())

for _ in range(600):
    try:
        urlopen("http://localhost:18653/health").close()
        break
    except OSError:
        time.sleep(0.2)
client = OpenAI(base_url="http://localhost:18653/v1", api_key="none")
found = {}
for limit in ({}, {"max_tokens": 8}):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a b"}], temperature=0, **limit
    )
    found[len(limit)] = answer.usage.completion_tokens
    named = "served with max_tokens 8" if limit else "served"
    print(f"{named}: {found[len(limit)]} tokens, finish_reason {answer.choices[0].finish_reason}")
assert found == {0: 1024, 1: 8}, "the model's own limit holds now"
PYTHON
