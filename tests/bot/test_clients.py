"""Exports in the hands of other programs: served over HTTP, and by the rules of those not here.

vLLM 0.33.0 and llama.cpp (llama-cpp-python 0.3.36) are not installed; what their own code asks of a
folder is written down here. Their code itself was run on such folders by
`tests/benchmarks/vllm_checks.sh` and `tests/benchmarks/llama_cpp.sh`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from openai import OpenAI
from safetensors import safe_open
from tokenizers import Tokenizer

from stages.rlhf.bot import export, served
from stages.rlhf.ingest.tokenizer import train_tokenizer
from tests.bot_fixtures import PLAIN_TWIN, TWINS, Make, exported, opened, write_run
from tests.conftest import naming
from tests.model_fixtures import shipped
from tests.tokenizer_fixtures import LLAMA3_SPLIT, QUESTIONS, SENTENCES, SIXTY_FOUR

LIMIT = 32  # models.micro.max_answer_tokens


class Export(NamedTuple):
    folder: Path
    texts: list[str]  # our greedy answers to SIXTY_FOUR


def readable(tokenizer: Any, make: Make) -> Make:
    """A twin that says whole characters only: a stream gives no half of one, our text does."""

    def made(size: int) -> Any:
        model = make(size)
        halves = [i for i in range(size) if "\ufffd" in tokenizer.decode([i])]
        with torch.no_grad():
            model.get_input_embeddings().weight[halves] = 0  # tied to the LM head
        return model

    return made


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """`transformers serve`, by its address; it loads the folders that requests name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with served.server() as url:
            yield url


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """A merged export of each family's twin."""
    found = {}
    for family, (make_tokenizer, make_model) in TWINS.items():
        folder, tokenizer = tmp_path_factory.mktemp(family), make_tokenizer()
        with pytest.MonkeyPatch.context() as patch:
            data = write_run(folder, patch, twin=(tokenizer, readable(tokenizer, make_model)))
            exported(data, folder / "out", questions=QUESTIONS[:1])
            bot = opened(data, names=("ppo",), scored=False)
            answers = bot.greedy("ppo", [bot.prompt(question) for question in SIXTY_FOUR])
            found[family] = Export(folder / "out", [bot.codec.text(ids) for ids in answers])
    return found


@pytest.fixture(scope="module")
def client(server: str) -> OpenAI:
    """OpenAI's own client."""
    return OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def chat(folder: Path, question: str) -> dict[str, Any]:
    """What a client sends for our greedy answer; the server takes a limit below 1024 from it."""
    message = {"role": "user", "content": question}
    return {"model": str(folder), "messages": [message], "temperature": 0, "max_tokens": LIMIT}


@pytest.mark.parametrize("family", TWINS)
def test_what_is_served_is_what_we_answer(
    client: OpenAI, exports: dict[str, Export], family: str
) -> None:
    folder, texts = exports[family]
    assert len({text for text in texts if text}) > 4
    for question, expected in zip(SIXTY_FOUR, texts, strict=True):
        chunks = client.chat.completions.create(**chat(folder, question), stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(pieces).strip() == expected, question


@pytest.mark.parametrize("family", TWINS)
def test_what_is_served_whole_ends_where_ours_ends(
    client: OpenAI, exports: dict[str, Export], family: str
) -> None:
    folder, texts = exports[family]
    config = json.loads((folder / "config.json").read_text())
    for at in (0, 9, 34):
        found = client.chat.completions.create(**chat(folder, SIXTY_FOUR[at]))
        assert (found.choices[0].message.content or "").strip() == texts[at]
        assert found.usage is not None
        ended = found.usage.completion_tokens < LIMIT
        assert found.choices[0].finish_reason == ("stop" if ended else "length")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        bos = tokenizer.id_to_token(config["bos_token_id"])
        prompt = f"{bos}질문: {SIXTY_FOUR[at]}\n답변:\n"
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        assert ids.count(config["bos_token_id"]) == 1
        assert found.usage.prompt_tokens == len(ids)


def test_an_export_that_is_served_otherwise_is_not_written(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "server", lambda: nullcontext(server))
    tokenizer = PLAIN_TWIN[0]()
    data = write_run(tmp_path, monkeypatch, twin=(tokenizer, readable(tokenizer, PLAIN_TWIN[1])))
    bot = opened(data, names=("ppo",), scored=False)
    limits = bot, "ppo", data, "float32", QUESTIONS, True
    found = export.in_draft(tmp_path / "out", export.export_merged(*limits), "card")
    assert found.endswith("tokens; 8 of 8 served answers equal")

    write_model = export.write_model

    def served_otherwise(model: Any, codec: Any, dtype: str, most: int, folder: Path) -> None:
        write_model(model, codec, dtype, most, folder)
        file = folder / "chat_template.jinja"
        file.write_text(file.read_text().replace("질문", "물음"))

    monkeypatch.setattr(export, "write_model", served_otherwise)
    monkeypatch.setattr(export, "same_tokens", lambda *_: "unchecked")
    with pytest.raises(ValueError, match=naming("the model says", "served", "--no-served")):
        export.in_draft(tmp_path / "other", export.export_merged(*limits), "card")
    assert not list(tmp_path.glob("other*"))


def test_a_server_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PROGRAM", Path("/bin/false"))
    with pytest.raises(ValueError, match=r"/bin/false serve .* does not answer"), served.server():
        pass


@pytest.mark.parametrize("family", TWINS)
def test_configs_are_as_vllm_reads_them(exports: dict[str, Export], family: str) -> None:
    """vllm/model_executor/models/registry.py, vllm/config/model.py, diff_sampling_param."""
    folder = exports[family].folder
    config, generation = (
        json.loads((folder / name).read_text())
        for name in ("config.json", "generation_config.json")
    )
    kind = ("gemma2", "Gemma2") if family == "gemma2" else ("llama", "Llama")
    assert (config["model_type"], config["architectures"]) == (kind[0], [f"{kind[1]}ForCausalLM"])
    assert config["max_position_embeddings"] >= 64 + LIMIT
    assert "rope_type" in config["rope_parameters"]
    assert config["dtype"] == "float32"  # vLLM casts it to bfloat16 without --dtype float32
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= config["vocab_size"]
    ends = {"eos_token_id": config["eos_token_id"], "max_new_tokens": LIMIT, "do_sample": False}
    assert generation.items() >= ends.items()  # its default max_tokens, and where it stops
    sampling = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
    assert not sampling & generation.keys()


def test_adapters_are_within_vllms_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm/lora/peft_helper.py, and the names that vllm/lora/lora_model.py expects."""
    data = write_run(tmp_path, monkeypatch, twin=(PLAIN_TWIN[0](), PLAIN_TWIN[1]))
    bot = opened(data, names=("ppo",), scored=False)
    export.in_draft(tmp_path / "out", export.export_adapter(bot, "ppo", data), "card")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    needed = {"r": 4, "lora_alpha": 8, "bias": "none", "init_lora_weights": True}
    assert config.items() >= needed.items()
    refused = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "use_rslora")
    refused += ("layer_replication", "use_bdlora", "use_qalora", "rank_pattern", "alpha_pattern")
    assert not [key for key in refused if config.get(key)]
    layer = r"base_model\.model\.model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * len(config["target_modules"])
    assert [n for n in names if not re.fullmatch(rf"{layer}\.lora_[AB]\.weight", n)] == []


def test_shipped_adapters_have_vllms_default_rank() -> None:
    assert {entry.lora.r for entry in shipped().models.values()} <= set(range(1, 17))


def test_our_own_tokenizer_splits_as_llama_cpps_llama_bpe() -> None:
    """Its converter knows tokenizers by their ids, so that ours has to be called by its name."""
    made = json.loads(train_tokenizer(SENTENCES, 280, []).to_str())
    split, to_bytes = made["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": LLAMA3_SPLIT}
    assert (split["behavior"], split["invert"]) == ("Isolated", False)
    assert (to_bytes["type"], to_bytes["use_regex"]) == ("ByteLevel", False)
    assert (made["normalizer"], made["model"]["type"]) == (None, "BPE")


@pytest.mark.parametrize("adapter", [False, True])
def test_sentencepieces_file_comes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    data = write_run(tmp_path, monkeypatch, twin=(PLAIN_TWIN[0](), PLAIN_TWIN[1]))
    bot = opened(data, names=("ppo",), scored=False)
    bot.greedy("ppo", [bot.prompt(QUESTIONS[0])])  # loaded before there is one more file
    pieces = Path(bot.codec.tokenizer.name_or_path) / "tokenizer.model"
    assert pieces.parent.is_relative_to(tmp_path / "cache")
    pieces.write_bytes(b"pieces")
    write = (
        export.export_adapter(bot, "ppo", data)
        if adapter
        else export.export_merged(bot, "ppo", data, "float32", QUESTIONS)
    )
    export.in_draft(tmp_path / "out", write, "card")
    assert (tmp_path / "out" / pieces.name).read_bytes() == b"pieces"
