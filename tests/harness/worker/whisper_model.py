"""A transcription model without a download: the smallest Whisper, with a byte tokenizer.

It has no weights: vLLM creates random ones (`--load-format dummy`), so its text has no meaning.
"""

import json
import wave
from io import BytesIO
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

FLAGS = ("--load-format", "dummy", "--enforce-eager", "--dtype", "bfloat16")
MOST_TOKENS = 64
# Audio samples per second.
RATE = 16_000
END, START = "<|endoftext|>", "<|startoftranscript|>"
SPECIAL = (
    END,
    START,
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startofprev|>",
    "<|notimestamps|>",
)


def make_whisper(folder: Path) -> None:
    """Write the files of the model, without weights."""
    tokenizer = _tokenizer()
    end, start = tokenizer.token_to_id(END), tokenizer.token_to_id(START)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": {
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "is_encoder_decoder": True,
            "d_model": 64,
            **{f"{part}_layers": 1 for part in ("encoder", "decoder", "num_hidden")},
            **{f"{part}_attention_heads": 1 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
            "num_mel_bins": 80,
            "max_source_positions": 1500,
            "max_target_positions": MOST_TOKENS,
            "vocab_size": tokenizer.get_vocab_size(),
            **{f"{which}_token_id": end for which in ("bos", "eos", "pad")},
            "decoder_start_token_id": start,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            **{f"{which}_token": END for which in ("unk", "bos", "eos", "pad")},
        },
        "preprocessor_config.json": {
            "processor_class": "WhisperProcessor",
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 80,
            "sampling_rate": RATE,
            "chunk_length": 30,
            "hop_length": 160,
            "n_fft": 400,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def noise(seconds: int) -> bytes:
    """Return a WAV file without speech."""
    written = BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(Random(0).randbytes(2 * RATE * seconds))
    return written.getvalue()
