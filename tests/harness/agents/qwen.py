"""Qwen Code, with the configuration of docs/clients.md."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agents.agent import KEY, Invocation
from harness.tools.environments import npm_command

SETTINGS: dict[str, Any] = {
    "general": {"enableAutoUpdate": False},
    "privacy": {"usageStatisticsEnabled": False},
    "telemetry": {"enabled": False},
    "security": {"auth": {"selectedType": "openai"}},
    # Otherwise a second call follows each turn.
    "memory": {
        "enableManagedAutoMemory": False,
        "enableManagedAutoDream": False,
        "enableAutoSkill": False,
    },
    # The package's program for searching cannot be executed after an installation without scripts.
    "tools": {"useRipgrep": False},
}
# This timer counts only parsed events, so comments do not reset it.
TIMERS = {"streamIdleTimeoutMs": 0}


@dataclass(frozen=True)
class Qwen:
    """See `Agent`."""

    def command(self) -> list[str]:
        return npm_command(".node-qwen", "@qwen-code/qwen-code/cli-entry.js")

    def invocation(
        self, home: Path, base_url: str, prompt: str, silence: float | None
    ) -> Invocation:
        timers = TIMERS if silence is None else TIMERS | {"timeout": round(silence * 1000)}
        folder = home / ".qwen"
        folder.mkdir(exist_ok=True)
        settings = SETTINGS | {"model": {"generationConfig": timers}}
        (folder / "settings.json").write_text(json.dumps(settings))
        variables = {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": base_url,
            "OPENAI_MODEL": "scripted",
            "QWEN_CODE_SUPPRESS_YOLO_WARNING": "1",
        }
        return Invocation([*self.command(), "--yolo", prompt], variables)
