"""The table of a model's structure against torch's own counts."""

import pytest

from stages.rlhf.model.roles import Roles
from stages.rlhf.report.structure import parts, summary
from tests.model_fixtures import LORA, tiny_gemma2, tiny_llama


def test_parts_add_up_with_and_without_adapters() -> None:
    model = tiny_llama(64)
    whole = sum(parameter.numel() for parameter in model.parameters())
    plain = parts(model)
    assert sum(part.parameters for part in plain) == whole
    names = [part.name for part in plain]
    assert names[:2] == ["model.embed_tokens", "model.layers.*.self_attn.q_proj"]
    assert names[-1] == "model.norm"
    query = plain[1]
    assert (query.shape, query.times, query.parameters) == ("32 × 32", 2, 2 * 32 * 32)
    roles = Roles(model, LORA)
    roles.add("policy")
    assert parts(roles.model) == plain


@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
def test_summary(make: object) -> None:
    roles = Roles(make(64), LORA)  # type: ignore[operator]
    roles.add("reward0")
    roles.add("policy")
    found = summary(roles, "policy")
    adapter = sum(p.numel() for n, p in roles.model.named_parameters() if ".policy." in n)
    assert adapter > 0
    assert found["trained_parameters"] == adapter
    assert found["parameters"] == sum(
        p.numel() for n, p in roles.model.named_parameters() if "lora_" not in n
    )
    assert found["trained_share"] == adapter / (found["parameters"] + adapter)
    assert (found["layers"], found["lora_rank"], found["vocabulary"]) == (2, 4, 64)
