"""A two-layer random model of every decoder family that transformers has.

Different here: one list of small sizes is put into each family's own default config, whatever it
calls them; what a family needs besides is in NEEDS. Logits are scaled and capped where it can be.
"""

from inspect import signature
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, WINDOW = 128, 6
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 4_000_000  # parameters of what is still a twin

_HIDDEN = ("hidden_size", "n_embd", "d_model", "d_embed", "embedding_size", "word_embed_proj_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "attention_heads")
_WIDE = ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "dff")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_LENGTH = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
SIZES: dict[str, Any] = {
    **dict.fromkeys(_HIDDEN, 32),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_WIDE, 64),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_LENGTH, 64),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "num_dense_layers"), 1),
    **{"vocab_size": VOCAB, "n_words": VOCAB, "rotary_dim": 4, "sliding_window": WINDOW},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True},
    "moe_layer_start_index": 0,
}
SCALES = {"logit_scale": 0.5, "logits_scaling": 0.5, "final_logit_softcapping": 2.0}
MIXED = ["sliding_attention", "full_attention"]
_LATENT_FAMILIES = (  # multi-head latent attention
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
    *("glm_moe_dsa", "minicpm3", "youtu"),
)
_MIXED_FAMILIES = (
    *("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "gemma3_text"),
    *("kolibri1", "laguna", "mellum", "ministral", "olmo3", "smollm3"),
)
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
NEEDS: dict[str, dict[str, Any]] = {  # None: a size that the family has no room for
    **{family: {"head_dim": None, "num_key_value_heads": 4} for family in _LATENT_FAMILIES},
    **{family: {"layer_types": MIXED} for family in _MIXED_FAMILIES},
    **{family: {"layer_types": ["conv", "full_attention"]} for family in ("lfm2", "lfm2_moe")},
    **{
        family: {"use_sliding_window": True, "layer_types": MIXED}
        for family in ("qwen2", "qwen2_moe", "qwen3")
    },
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": MIXED,
        "rope_parameters": dict.fromkeys(MIXED, _ROPE),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None, "num_kv_heads": 4, "alibi": True},
    "gemma3n_text": {
        **{"num_kv_shared_layers": 0, "layer_types": MIXED, "intermediate_size": [64, 64]},
        **{"activation_sparsity_pattern": [0.0, 0.0], "vocab_size_per_layer_input": VOCAB},
        **{"hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "laurel_rank": 4},
    },
    "gemma4_text": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "longcat_flash": {
        **{"num_key_value_heads": 4, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 16},
        **{"zero_expert_num": 2, "moe_topk": 2},
    },
    "minicpm3": {
        **{"head_dim": None, "num_key_value_heads": 4, "logits_scaling": None, "dim_model_base": 64}
    },
    "mpt": {"logit_scale": None},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "roc_bert": {"shape_vocab_size": 16, "pronunciation_vocab_size": 16},
    "xlm": {"emb_dim": 32},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}


def twin_config(family: str) -> Any:
    """The family's default config, made small."""
    kind = CONFIG_MAPPING[family]
    known = set(signature(kind.__init__).parameters)
    sizes = {key: value for key, value in (SIZES | SCALES).items() if key in known}
    made = {**sizes, **NEEDS.get(family, {})}
    return kind(**{key: value for key, value in made.items() if value is not None})


def twin(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of `twin_config` with weights drawn wide, frozen, in eval mode."""
    config = twin_config(family)
    with torch.device("meta"):
        made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    size = sum(p.numel() for p in made.parameters())
    assert size <= LARGEST, f"{family}: {size} parameters"
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=0.2, generator=generator)
        else:
            weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval().requires_grad_(False)
