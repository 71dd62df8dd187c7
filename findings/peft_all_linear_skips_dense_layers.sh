#!/usr/bin/env bash
# peft 0.21.2's "all-linear" leaves out dense linear layers of mixture-of-experts models of
# transformers 5.23.0: the layers before the first mixture, and the shared experts.
#
# Expected: as documented, target_modules="all-linear" adapts every linear layer but the output head.
# Instead: for deepseek_v3, glm4_moe, ernie4_5_moe and qwen3_moe the names gate_proj, up_proj and
#   down_proj are moved to target_parameters, which are the fused experts; dense layers of those names
#   are in no list any more and get no adapter. Nothing is said. qwen2_moe, of the same layout, and
#   mixtral, which has no such layers, are complete.
# Seen:
#   deepseek_v3: 6 of 16 linear layers without an adapter, such as layers.0.mlp.down_proj
#   glm4_moe: 6 of 14 linear layers without an adapter, such as layers.0.mlp.down_proj
#   qwen3_moe: 3 of 11 linear layers without an adapter, such as layers.0.mlp.down_proj
#   qwen2_moe: 0 of 15 linear layers without an adapter
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
source "$work/venv/bin/activate"
pip install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
python - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = dict(vocab_size=32, hidden_size=16, intermediate_size=32, moe_intermediate_size=8)
SIZES |= dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
SIZES |= dict(num_experts_per_tok=2)
LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
FAMILIES = {  # the first layer is dense, the second a mixture
    "deepseek_v3": dict(n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1) | LATENT,
    "glm4_moe": dict(n_routed_experts=4, first_k_dense_replace=1, head_dim=8),
    "qwen3_moe": dict(num_experts=4, mlp_only_layers=[0]),
    "qwen2_moe": dict(num_experts=4, mlp_only_layers=[0], shared_expert_intermediate_size=32),
}


def skipped(family: str) -> int:
    """Linear layers of a tiny model of the family that "all-linear" leaves without an adapter."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **FAMILIES[family]))
    head = model.get_output_embeddings()
    linear = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    wrapped = {m.get_base_layer() for m in adapted.modules() if hasattr(m, "lora_A")}
    left = sorted(name for module, name in linear.items() if module not in wrapped)
    example = f", such as {left[0].removeprefix('model.')}" if left else ""
    print(f"{family}: {len(left)} of {len(linear)} linear layers without an adapter{example}")
    return len(left)


found = {family: skipped(family) for family in FAMILIES}
assert found.pop("qwen2_moe") == 0 and all(found.values()), "all-linear means all linear layers now"
PYTHON
