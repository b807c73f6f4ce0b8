"""The set-up of a checkout: uv, environments and packages, with the standard library only.

Old Pythons must be able to import this file, because it rejects them.
"""

import sys

if sys.version_info < (3, 11) or sys.version_info >= (3, 15):
    sys.stderr.write(
        "vllm-serverless needs Python 3.11 to 3.14; this is Python %d.%d (%s).\n"
        "Put a supported python3 first in PATH, or name one: make up PYTHON=python3.12\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(78)
