"""Runs vLLM's real parser in a process of its own.

It reads test cases as JSON on stdin, and writes the results as JSON to stdout.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Parse cases, which are dictionaries of variables.

    The result of each is its difference from vLLM's defaults, or the error.
    """
    from worker_vllm.engine.arguments import parse, strict  # noqa: PLC0415 - the purpose of this module
    from worker_vllm.engine.base import EngineError  # noqa: PLC0415
    from worker_vllm.engine.flags import variables_of  # noqa: PLC0415
    from worker_vllm.engine.vllm import _vllm_names  # noqa: PLC0415

    seam = _vllm_names()
    parser = seam.make_arg_parser(strict(seam.FlexibleArgumentParser)(prog="vllm"))
    answers: list[dict[str, Any] | str] = []
    for variables in json.load(sys.stdin):
        try:
            found = vars(parse(parser, variables, []))
        except EngineError as error:
            answers.append(str(error))
        else:
            answers.append(
                {name: value for name, value in found.items() if value != parser.get_default(name)}
            )
    options = [action.option_strings for action in parser._actions]
    print(
        json.dumps(
            {"options": options, "variables": [*variables_of(parser._actions)], "answers": answers},
            default=str,
        )
    )


if __name__ == "__main__":
    main()
