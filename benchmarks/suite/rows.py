"""The table of rows, in the order in which `make bench` measures them.

Each row names its load, its sides, what answers behind our proxy, and its goals.
"""

from dataclasses import replace

from .rows_proxy import A256, A_OPEN, OPEN, PEERS, SOAK, TEN, WORKERS, A, B, C
from .rows_queue import RUN, RUN_MILLION, RUNSYNC, STATUS
from .rows_worker import REAL, STOCK, UPSTREAM_A, UPSTREAM_C

ROWS = (
    *(A, C, TEN, B, A_OPEN, A256, OPEN, RUN, UPSTREAM_A, UPSTREAM_C),
    *(STATUS, RUNSYNC, WORKERS, STOCK, *REAL, SOAK, RUN_MILLION),
)
# Without LiteLLM, whose start takes too long.
QUICK = (replace(A, sides=PEERS), C, TEN)
