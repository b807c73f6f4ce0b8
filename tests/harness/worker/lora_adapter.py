"""A LoRA adapter for the demo model with random weights.

Its output is nonsense, but differs from that of the base model.
"""

import json
from pathlib import Path

RANK = 8
HIDDEN, OUT = 256, {"q_proj": 256, "v_proj": 128}
LAYERS = 2


def write_adapter(folder: Path) -> Path:
    """Write the adapter in PEFT's format."""
    import numpy as np  # noqa: PLC0415 - both come with vLLM, which not every machine has
    from safetensors.numpy import save_file  # noqa: PLC0415

    chance = np.random.default_rng(seed=1)
    weights = {}
    for layer in range(LAYERS):
        for name, out in OUT.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{place}.lora_A.weight"] = chance.normal(0, 0.5, (RANK, HIDDEN)).astype(
                np.float32
            )
            weights[f"{place}.lora_B.weight"] = chance.normal(0, 0.5, (out, RANK)).astype(
                np.float32
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 16,
        "target_modules": [*OUT],
    }
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"bias": "none", "base_model_name_or_path": "demo"})
    )
    return folder
