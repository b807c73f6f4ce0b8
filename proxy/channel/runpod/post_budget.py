"""The memory for the posts of Runpod workers while they are read.

A post is never refused because of load: it waits for its turn. No worker may hold more than a
quarter of the memory, and small posts have memory of their own, so a worker with large posts on a
slow connection delays neither the posts of others nor its own small ones.
"""

from proxy.access.limits import Budget, Share
from proxy.wire.frames import OUTPUT_MAX_BYTES, STREAM_WINDOW

# The maximum size of a posted body: the output and its surrounding JSON.
POST_BYTES = OUTPUT_MAX_BYTES + STREAM_WINDOW
# Most results, and nearly all elements of streams, are smaller.
SMALL_POST_BYTES = 256 * 1024
WORKER_SHARES = 4
# The share of a worker is one of the largest posts.
LARGE_POSTS_MAX_BYTES = WORKER_SHARES * POST_BYTES
# The share of a worker is 32 of the largest of these.
SMALL_POSTS_MAX_BYTES = 32 * 1024 * 1024


class PostBudget:
    """The memory for large and for small posts."""

    def __init__(self) -> None:
        self._large = Budget(LARGE_POSTS_MAX_BYTES, LARGE_POSTS_MAX_BYTES // WORKER_SHARES)
        self._small = Budget(SMALL_POSTS_MAX_BYTES, SMALL_POSTS_MAX_BYTES // WORKER_SHARES)

    @property
    def used(self) -> int:
        """The bytes that are reserved."""
        return self._large.used + self._small.used

    def share(self, worker: str, size: int) -> Share:
        """Return a share for a post of this size, of which nothing is reserved yet."""
        budget = self._small if size <= SMALL_POST_BYTES else self._large
        return budget.share(worker)
