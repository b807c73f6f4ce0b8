"""OpenAI's Codex, with the configuration of docs/clients.md."""

from dataclasses import dataclass
from pathlib import Path

from harness.agents.agent import KEY, Invocation
from harness.tools.environments import codex_command

# `plugins` and `check_for_update_on_startup` are off because both contact hosts of others.
CONFIG = """\
model = "scripted"
model_provider = "vllm-serverless"
check_for_update_on_startup = false

[analytics]
enabled = false

[feedback]
enabled = false

[features]
plugins = false

[model_providers.vllm-serverless]
name = "vllm-serverless"
base_url = "{base_url}"
env_key = "VLLM_SERVERLESS_KEY"
wire_api = "responses"
{more}"""


@dataclass(frozen=True)
class Codex:
    """See `Agent`. `more` are further settings of the model provider."""

    more: str = ""

    def command(self) -> list[str]:
        return codex_command()

    def invocation(
        self, home: Path, base_url: str, prompt: str, silence: float | None
    ) -> Invocation:
        more = self.more
        if silence is not None:
            more += f"stream_idle_timeout_ms = {silence * 1000:.0f}\n"
        folder = home / ".codex"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(CONFIG.format(base_url=base_url, more=more))
        flags = ("exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access")
        variables = {"CODEX_HOME": str(folder), "VLLM_SERVERLESS_KEY": KEY}
        return Invocation([*self.command(), *flags, prompt], variables)
