"""The demo model's tokenizer: byte-level BPE, with ChatML, think and tool-call tokens."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataset import THINK_END, THINK_START, Sample

VOCABULARY = 896
PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# These tokens are not "special", because vLLM's tool and reasoning parsers search for them in the
# text.
MARKERS = (THINK_START, THINK_END, "<tool_call>", "</tool_call>", "<tools>", "</tools>")
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def build(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts`. Digits are single tokens, so that counting is easy to learn."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    specials = [PAD, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(marker, normalized=False, special=False) for marker in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def prompt_text(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    """Return the prompt of a sample as text, rendered by the chat template if it has messages."""
    if sample.text:
        return sample.text
    rendered = tokenizer.apply_chat_template(
        list(sample.messages),
        tools=list(sample.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
    )
    return str(rendered)


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> tuple[list[int], list[int]]:
    """Return the token ids of prompt and answer; TURN_END ends the answer unless it is open."""
    prompt = tokenizer.encode(prompt_text(tokenizer, sample), add_special_tokens=False)
    answer = tokenizer.encode(
        sample.answer + ("" if sample.is_open else TURN_END), add_special_tokens=False
    )
    return prompt, answer
