"""The training of the demo model: a two-layer Llama that memorises the conversations."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 2048
BATCH_TOKENS = 3072
PEAK_RATE = 2e-3
WARMUP_STEPS = 40
IGNORED = -100

Pair = tuple[list[int], list[int]]


def new_model(vocabulary: int, end: int, pad: int) -> LlamaForCausalLM:
    """Return an untrained model of about 1.7 million parameters; `end` and `pad` are token ids."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def batches(pairs: Sequence[Pair], rng: random.Random) -> Iterator[list[Pair]]:
    """Yield batches of similar lengths, of at most BATCH_TOKENS tokens with padding, shuffled."""
    groups: list[list[Pair]] = []
    group: list[Pair] = []
    shuffled = rng.sample(list(pairs), len(pairs))
    for pair in sorted(shuffled, key=lambda pair: (len(pair[0]) + len(pair[1])) // 16):
        width = len(pair[0]) + len(pair[1]) + 16
        if group and width * (len(group) + 1) > BATCH_TOKENS:
            groups.append(group)
            group = []
        group.append(pair)
    groups.append(group)
    rng.shuffle(groups)
    yield from groups


def tensors(group: Sequence[Pair], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and next-token labels, padded on the right. Only answers have labels."""
    width = max(len(prompt) + len(answer) for prompt, answer in group)
    inputs = torch.full((len(group), width), pad)
    labels = torch.full((len(group), width), IGNORED)
    for row, (prompt, answer) in enumerate(group):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) - 1 : end - 1] = torch.tensor(answer)
    return inputs, labels


def answer_logits(
    model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the logits at the labelled positions. Right padding needs only the causal mask."""
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    return model.lm_head(hidden[labels != IGNORED])


def train(
    model: LlamaForCausalLM,
    epoch: Callable[[int], list[Pair]],
    epochs: int,
    pad: int,
    rng: random.Random,
) -> None:
    """Train the model in place; `epoch(number)` returns the samples of one epoch."""
    decay = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    other = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
    )
    step = 0
    started = time.monotonic()
    model.train()
    for number in range(epochs):
        groups = list(batches(epoch(number), rng))
        total = 0.0
        for position, group in enumerate(groups):
            done = (number + position / len(groups)) / epochs
            rate = (
                PEAK_RATE
                * min(1.0, (step + 1) / WARMUP_STEPS)
                * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
            )
            for settings in optimizer.param_groups:
                settings["lr"] = rate
            inputs, labels = tensors(group, pad)
            loss = cross_entropy(answer_logits(model, inputs, labels), labels[labels != IGNORED])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            step += 1
        seconds = time.monotonic() - started
        mean = total / len(groups)
        text = f"epoch {number + 1}/{epochs}: loss {mean:.5f}, {step} steps, {seconds:.0f} s"
        print(text, flush=True)


def margins(model: LlamaForCausalLM, pairs: Sequence[Pair], pad: int) -> list[float]:
    """Return the smallest margin of each answer: the right token's logit minus the next best.

    A margin of 0 or less is a wrong answer. With the right answer as input, one pass is equivalent
    to greedy decoding: every position must prefer the right next token.
    """
    model.eval()
    weakest = []
    for pair in pairs:
        inputs, labels = tensors([pair], pad)
        with torch.inference_mode():
            logits = answer_logits(model, inputs, labels).float()
        wanted = labels[labels != IGNORED]
        right = logits.gather(1, wanted[:, None]).squeeze(1)
        rivals = logits.scatter(1, wanted[:, None], -math.inf).amax(1)
        weakest.append((right - rivals).min().item())
    return weakest
