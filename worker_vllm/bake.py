"""`python -m worker_vllm.bake MODEL`: bring a model from the hub into a container image while that is being built.

What it brought is written to the file that a worker reads at its start (`WORKER_BAKED_MODEL`). A gated model needs
HF_TOKEN, which the hub's own library reads; it is written nowhere.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

NOTE = Path("/local_model_args.json")
FOLDER = Path("/baked")
NOT_NEEDED = (
    "original/*",
)  # a second copy of the weights in some models, which vLLM does not load either


def main(arguments: Sequence[str]) -> None:
    """Bring the model, and its tokenizer if that is another one's; an empty argument is as good as none."""
    parser = argparse.ArgumentParser(
        prog="worker_vllm.bake", description="Bring a model into a container image."
    )
    parser.add_argument("model", help="the model's hub id")
    for name in ("revision", "tokenizer", "tokenizer-revision", "quantization"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder for the files")
    parser.add_argument("--note", type=Path, default=NOTE, help="the file that a worker reads")
    told = parser.parse_args(arguments)
    model = tokenizer = _bring(told.model, told.revision, told.into / "model")
    if told.tokenizer:
        tokenizer = _bring(told.tokenizer, told.tokenizer_revision, told.into / "tokenizer")
    note = {"MODEL_NAME": model, "TOKENIZER_NAME": tokenizer, "QUANTIZATION": told.quantization}
    told.note.write_text(json.dumps({name: value for name, value in note.items() if value}))


def _bring(name: str, revision: str, folder: Path) -> str:
    hub = importlib.import_module("huggingface_hub")  # comes with vLLM
    return str(
        hub.snapshot_download(
            name, revision=revision or None, local_dir=folder, ignore_patterns=NOT_NEEDED
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
