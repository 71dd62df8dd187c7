#!/usr/bin/env bash
# Is an export the same in llama.cpp? bash tests/benchmarks/llama_cpp.sh my-model [PRE_TOKENIZER]
#
# Converts the folder by llama.cpp's own converter (in the sources of llama-cpp-python, PyPI), runs it
# by its binaries (node-llama-cpp, npm) and compares, on 64 questions of data/preprocess/sft/test.jsonl,
# the ids of the prompt and the greedy tokens with those of transformers. PRE_TOKENIZER: llama-bpe for
# a model that was trained here; none where the converter knows the tokenizer. Leaves my-model.gguf.
# Needs this project's packages, node 20 and the two package indexes; a minute, 250 MB, removed.
set -euo pipefail
model=$(realpath "$1") pre=${2:-} rows=$(realpath data/preprocess/sft/test.jsonl)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
pip install -q --target packages --no-deps sentencepiece==0.2.3 protobuf==7.36.2
pip download -q --no-deps --no-binary :all: llama-cpp-python==0.3.36
tar xzf llama_cpp_python-0.3.36.tar.gz
npm install --silent --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
export PYTHONPATH="$work/packages" HF_HUB_OFFLINE=1
cat >convert.py <<'PYTHON'
import runpy, sys
from pathlib import Path

home, pre, model, out = sys.argv[1:]
sys.path.insert(0, home)
if pre:
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [str(Path(home, "convert_hf_to_gguf.py")), model, "--outtype", "f32", "--outfile", out]
runpy.run_path(sys.argv[0], run_name="__main__")
PYTHON
python convert.py llama_cpp_python-0.3.36/vendor/llama.cpp "$pre" "$model" "$model.gguf" >log 2>&1 ||
    { tail -n 1 log; exit 1; }
python - "$model" "$rows" <<'PYTHON'
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, rows = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
questions = [json.loads(line)["question"] for line in open(rows, encoding="utf-8")]
found = []
for question in questions[:: max(1, len(questions) // 64)][:64]:
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    prompt = ids["input_ids"][0].tolist()
    with torch.no_grad():
        answer = lm.generate(**ids)[0, len(prompt) :].tolist()
    found.append({"text": text, "prompt": prompt, "answer": answer})
json.dump(found, open("expected.json", "w", encoding="utf-8"))
PYTHON
cat >run.mjs <<'JS'
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";
const rows = JSON.parse(fs.readFileSync("expected.json"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: process.argv[2], useMmap: false});
for (const cache of ["F32", "F16"]) {
    const context = await model.createContext({contextSize: 1024, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: cache, experimentalKvCacheValueType: cache});
    let prompts = 0, answers = 0;
    for (const row of rows) {
        prompts += String(model.tokenize(row.text, true)) === String(row.prompt);
        const sequence = context.getSequence(), found = [];
        for await (const id of sequence.evaluate(row.prompt, {temperature: 0, yieldEogToken: true})) {
            found.push(id);
            if (found.length === row.answer.length) break;
        }
        answers += String(found) === String(row.answer);
        sequence.dispose();
    }
    console.log(`cache ${cache}: prompts ${prompts} of ${rows.length}, answers ${answers} of ${rows.length}`);
    await context.dispose();
}
process.exit(0);
JS
node run.mjs "$model.gguf"
