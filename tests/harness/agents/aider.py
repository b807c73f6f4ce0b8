"""aider, with the configuration of docs/clients.md."""

import json
from dataclasses import dataclass
from pathlib import Path

from harness.agents.agent import KEY, Invocation
from harness.tools.environments import tool

# Without it, aider downloads a list of models.
METADATA = {
    "openai/scripted": {
        "max_input_tokens": 100_000,
        "max_output_tokens": 8_000,
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
        "litellm_provider": "openai",
        "mode": "chat",
    }
}
FLAGS = (
    *("--model", "openai/scripted", "--edit-format", "whole", "--map-tokens", "0"),
    *("--analytics-disable", "--no-check-update", "--no-show-release-notes"),
    *("--no-show-model-warnings", "--disable-playwright", "--no-detect-urls"),
    *("--no-git", "--no-pretty", "--no-fancy-input", "--no-suggest-shell-commands"),
    "--yes-always",
)


@dataclass(frozen=True)
class Aider:
    """See `Agent`."""

    def command(self) -> list[str]:
        return [tool(".venv-aider", "aider")]

    def invocation(
        self, home: Path, base_url: str, prompt: str, silence: float | None
    ) -> Invocation:
        metadata = home / "models.json"
        metadata.write_text(json.dumps(METADATA))
        flags = [*FLAGS, "--model-metadata-file", str(metadata)]
        if silence is not None:
            flags += ["--timeout", f"{silence:g}"]
        variables = {
            "OPENAI_API_KEY": KEY,
            "OPENAI_API_BASE": base_url,
            # Otherwise LiteLLM downloads a list of prices.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        return Invocation([*self.command(), *flags, "--message", prompt], variables)
