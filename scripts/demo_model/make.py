"""Make the demo model: python scripts/demo_model/make.py [--out worker_vllm/demo].

Input: conversations.toml and chat_template.jinja in this folder. Output: a model directory for vLLM
and transformers. Requires torch, transformers and tokenizers (they are in the environment of the
worker), two cores and some minutes.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataset import Sample, checks, epoch, late, load
from tokenizer import build, encode, prompt_text
from train import CONTEXT, Pair, margins, new_model, train

HERE = Path(__file__).parent
SEED = 20
EPOCHS = 22


def main() -> int:
    """Build, train, save and check the model; return 1 if too many answers are not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "worker_vllm" / "demo", help="model directory"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the conversations")
    parser.add_argument(
        "--check-only", action="store_true", help="check the existing model, without training"
    )
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True)
    if not args.check_only:
        make(args.out, args.epochs)
    return check(args.out)


def make(out: Path, epochs: int) -> None:
    """Build the tokenizer and train the model; save both to `out` with template and README."""
    data = load(HERE / "conversations.toml")
    # This tokenizer has no merges, but it renders the template.
    blank = build([], CONTEXT)
    corpus = [
        prompt_text(blank, sample) + sample.answer for sample in epoch(data, random.Random(SEED))
    ]
    tokenizer = build(corpus, CONTEXT)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = new_model(len(tokenizer), end, pad)

    def samples(number: int) -> list[Pair]:
        return [
            encode(tokenizer, sample) for sample in epoch(data, random.Random(SEED * 1000 + number))
        ]

    train(model, samples, epochs, pad, random.Random(SEED))
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    # transformers 5 has renamed the class, and accepts the old name; older releases know only that
    # one.
    settings = out / "tokenizer_config.json"
    settings.write_text(
        settings.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"),
        encoding="utf-8",
    )
    # vLLM reads its default temperature from this file, and transformers refuses to save a
    # temperature of 0.
    greedy = {"do_sample": False, "temperature": 0.0, "eos_token_id": end, "pad_token_id": pad}
    (out / "generation_config.json").write_text(
        json.dumps(greedy, indent=2) + "\n", encoding="utf-8"
    )
    shutil.copyfile(HERE / "MODEL_CARD.md", out / "README.md")


def check(out: Path) -> int:
    """Load the saved model in bf16, as vLLM does, and print its wrong answers (greedy decoding).

    Return 0 if all answers to a first question and 99 % of those after another question are exact.
    """
    data = load(HERE / "conversations.toml")
    wrong = count_wrong("alone or with a system prompt", out, checks(data))
    questions = late(data)
    wrong_late = count_wrong("after another question", out, questions)
    print(f"{sum(file.stat().st_size for file in out.iterdir()):,} bytes")
    return 1 if wrong or wrong_late * 100 > len(questions) else 0


def count_wrong(title: str, out: Path, wanted: list[Sample]) -> int:
    """Print the samples that the model in `out` does not answer exactly; return their number."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    found = margins(model, [encode(tokenizer, sample) for sample in wanted], tokenizer.pad_token_id)
    wrong = 0
    for sample, margin in zip(wanted, found, strict=True):
        if margin <= 0:
            wrong += 1
            prompt = sample.messages or sample.text
            print(f"not exact (by {-margin:.2f}): {prompt!r} -> {sample.answer[:80]!r}")
    exact = len(wanted) - wrong
    print(f"{title}: {exact} of {len(wanted)} answers exact, smallest margin {min(found):.2f}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
