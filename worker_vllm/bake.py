"""`python -m worker_vllm.bake MODEL`: download a model into a container image during its build.

The result is described in the file that a worker reads at its start (`WORKER_BAKED_MODEL`). A gated
model needs HF_TOKEN, which the hub's own library reads; the token is not written to any file.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

BAKED_MODEL_FILE = Path("/local_model_args.json")
MODEL_FOLDER = Path("/baked")
# A second copy of the weights in some models, which vLLM does not load.
IGNORED_FILES = ("original/*",)


def main(arguments: Sequence[str]) -> None:
    """Download the model, and the tokenizer of another model if one is named.

    An empty argument counts as absent.
    """
    parser = argparse.ArgumentParser(
        prog="worker_vllm.bake", description="Download a model into a container image."
    )
    parser.add_argument("model", help="the model's hub id")
    for name in ("revision", "tokenizer", "tokenizer-revision", "quantization"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--into", type=Path, default=MODEL_FOLDER, help="folder for the files")
    parser.add_argument(
        "--note", type=Path, default=BAKED_MODEL_FILE, help="the file that a worker reads"
    )
    options = parser.parse_args(arguments)
    model = _download(options.model, options.revision, options.into / "model")
    tokenizer = model
    if options.tokenizer:
        tokenizer = _download(
            options.tokenizer, options.tokenizer_revision, options.into / "tokenizer"
        )
    note = {"MODEL_NAME": model, "TOKENIZER_NAME": tokenizer, "QUANTIZATION": options.quantization}
    options.note.write_text(json.dumps({name: value for name, value in note.items() if value}))


def _download(name: str, revision: str, folder: Path) -> str:
    # This library is a dependency of vLLM.
    hub = importlib.import_module("huggingface_hub")
    return str(
        hub.snapshot_download(
            name, revision=revision or None, local_dir=folder, ignore_patterns=IGNORED_FILES
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
