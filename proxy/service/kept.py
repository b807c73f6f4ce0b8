"""The bytes of an interactive job's answer that are kept for a retry of the call."""

from collections.abc import Callable

# An answer with more bytes is not kept.
KEPT_MAX_BYTES = 1024 * 1024
# The memory that a chunk takes in addition to its bytes.
CHUNK_OVERHEAD_BYTES = 64


class KeptAnswer:
    """All bytes of an answer that its reader has consumed, from the first one.

    `reserve` takes a number of bytes from the memory that all kept answers share, and returns False
    if they are not free; `release` gives them back. `is_lost`: the answer is too large, no memory
    is free, or it was dropped, so that nothing of it is kept.
    """

    def __init__(
        self,
        reserve: Callable[[int], bool],
        release: Callable[[int], None],
        max_bytes: int = KEPT_MAX_BYTES,
    ) -> None:
        self._reserve = reserve
        self._release = release
        self._max_bytes = max_bytes
        # Each chunk, and True if it ends inside an event.
        self._chunks: list[tuple[bytes, bool]] = []
        # The next chunk for the reader; at the end, unless the reader has begun again.
        self._next = 0
        self._size = 0
        self._held = 0
        self.is_lost = False

    def hold(self, size: int) -> bool:
        """Reserve further bytes for the call, until `let_go` or `drop`; return False if they are
        not free.
        """
        if not self._reserve(size):
            return False
        self._held += size
        return True

    def let_go(self, size: int) -> None:
        """Give back bytes of `hold`."""
        if size:
            self._held -= size
            self._release(size)

    def add(self, data: bytes, *, is_mid_event: bool) -> None:
        """Keep bytes that the reader has consumed; see `Mailbox.is_mid_event`."""
        if self.is_lost:
            return
        cost = len(data) + CHUNK_OVERHEAD_BYTES
        if self._size + len(data) > self._max_bytes or not self.hold(cost):
            self.forget()
            self.is_lost = True
            return
        self._size += len(data)
        self._chunks.append((data, is_mid_event))
        self._next = len(self._chunks)

    def rewind(self) -> None:
        """Let the next reader begin with the first byte."""
        self._next = 0

    def consume(self, limit: float) -> tuple[bytes, bool] | None:
        """Return the next chunks of up to about `limit` bytes, and True if they end inside an
        event; None if the reader has all of them.
        """
        if self._next == len(self._chunks):
            return None
        first = self._next
        size = 0
        while size < limit and self._next < len(self._chunks):
            size += len(self._chunks[self._next][0])
            self._next += 1
        taken = self._chunks[first : self._next]
        return b"".join([data for data, _ in taken]), taken[-1][1]

    def forget(self) -> None:
        """Forget the bytes: another run begins, whose answer is another one."""
        if self._chunks:
            self.let_go(self._size + CHUNK_OVERHEAD_BYTES * len(self._chunks))
        self._chunks = []
        self._next = 0
        self._size = 0

    def drop(self) -> None:
        """Give all memory back; the answer is lost."""
        self.forget()
        self.let_go(self._held)
        self.is_lost = True
