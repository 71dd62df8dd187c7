#!/usr/bin/env bash
# transformers 5.23.0's Trainer does not load the best checkpoint of a PEFT 0.21.2 adapter whose name is
# not "default": it warns of distributed training and keeps the last weights.
#
# Expected: with load_best_model_at_end, the weights after training are those of the best checkpoint,
#   whatever the adapter is called.
# Instead: a named adapter is saved in a subfolder of its name, Trainer looks for the weights in the
#   checkpoint itself, logs "Could not locate the best model at .../pytorch_model.bin, if you are running
#   a distributed training on multiple nodes, you should activate `--save_on_each_node`", and goes on
#   with the last epoch's weights. Nothing is raised.
# Seen (losses differ by processor):
#   default: adapter_model.safetensors, best loss 3.454, after training 3.454
#   sft: sft/adapter_model.safetensors, best loss 3.454, after training 3.480
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
cd "$work"
python - <<'PYTHON'
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

LORA = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1)


def train(name: str) -> bool:
    """Whether the model after training is that of the best epoch, which is not the last."""
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=2))
    keys = ("input_ids", "labels")
    rows = [{key: torch.randint(0, 32, (8,)) for key in keys} for _ in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=3, learning_rate=1.0, lr_scheduler_type="constant",
            save_strategy="epoch", eval_strategy="epoch", logging_strategy="no",
            load_best_model_at_end=True, metric_for_best_model="eval_loss",
            report_to=[], use_cpu=True, disable_tqdm=True,
        )
        adapted = PeftModel(model, LORA, adapter_name=name)
        trainer = Trainer(adapted, arguments, train_dataset=rows[:8], eval_dataset=rows[8:])
        trainer.train()
        best = Path(trainer.state.best_model_checkpoint)
        (file,) = best.rglob("adapter_model.safetensors")
        loss, after = trainer.state.best_metric, trainer.evaluate()["eval_loss"]
    print(f"{name}: {file.relative_to(best)}, best loss {loss:.3f}, after training {after:.3f}")
    return abs(loss - after) < 1e-3


default, named = train("default"), train("sft")
assert default and not named, "the best checkpoint of a named adapter is loaded now"
PYTHON
