"""The check of SQLite's write-ahead log (WAL) before SQLite opens it.

SQLite reads the log up to the first frame that is not valid and ignores the rest: after a crash,
that is the transaction whose commit was interrupted. It cannot distinguish this end of the log from
damage in its middle, which would silently lose all jobs after it. The difference: the next
transaction is written only after the commit of the previous one has reached the disk. So a frame
that is not valid is damaged if a commit at or behind it was continued.

A frame continues another one if its checksum does, because checksums are cumulative. Valid frames
at a later position do not prove damage: they can be the rest of a transaction that was rolled back
and partly overwritten, or that reached the disk out of order; and a log that was started again from
its beginning ends with frames of the earlier one, with other salts.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, TypeAlias

HEADER = struct.Struct(">6I")
HEADER_BYTES = 32
# Page, pages of the database after a commit (else 0), two salts, two checksums.
FRAME_HEADER = struct.Struct(">II8sII")
# The magic number of a log whose checksums are over words in little-endian order. The next number
# means big-endian order.
MAGIC = 0x377F0682
PAGE_SIZES = tuple(2**power for power in range(9, 17))

# The size of a page, in the header of a database file. The value 1 means 65536.
PAGE_SIZE_FIELD = struct.Struct(">16xH")

# Frames that are read at once. More would leave the cache of the processor.
BLOCK_FRAMES = 1024

WORD_MASK = 0xFFFFFFFF

Checksum: TypeAlias = tuple[int, int]


class Frame(NamedTuple):
    """The header of a frame, and the checksum that follows from the stored one before it."""

    page: int
    commit: int
    salts: bytes
    stored: Checksum
    computed: Checksum

    @property
    def is_sound(self) -> bool:
        """True if the frame continues the one before it. The number of a page is not 0."""
        return self.page > 0 and self.computed == self.stored


class LogHeader(NamedTuple):
    """The header of a log. `salts` are empty if the header is not valid."""

    page_size: int
    is_big_endian: bool
    salts: bytes
    checksum: Checksum


def find_damage(log: BinaryIO, database_head: bytes) -> str:
    """Return a description of the damage in a log; empty if there is none.

    `database_head`: the first bytes of the database file, which have the size of a page if the
    header of the log is damaged.
    """
    head = log.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        return ""
    header = _read_header(head, database_head)
    if header is None:
        return ""
    return _find_damaged_frame(log, header) if header.salts else _find_lost_frames(log, header)


def _read_header(head: bytes, database_head: bytes) -> LogHeader | None:
    """Return the header of a log, or None if the size of a page is unknown."""
    magic, _, page_size, *_ = HEADER.unpack_from(head)
    is_big_endian = magic == MAGIC + 1
    [*_, first, second] = struct.unpack(">8I", head)
    words = struct.unpack(">6I" if is_big_endian else "<6I", head[: HEADER.size])
    is_valid = magic in (MAGIC, MAGIC + 1) and _add(words, (0, 0)) == (first, second)
    if is_valid:
        salts = head[16:24]
    else:
        salts = b""
        [stored] = PAGE_SIZE_FIELD.unpack_from(database_head.ljust(PAGE_SIZE_FIELD.size, b"\0"))
        page_size = 65536 if stored == 1 else stored
    if page_size not in PAGE_SIZES:
        return None
    return LogHeader(page_size, is_big_endian, salts, (first, second))


def _find_damaged_frame(log: BinaryIO, header: LogHeader) -> str:
    bad = 0
    previous: Frame | None = None
    for number, frame in enumerate(_frames(log, header), 1):
        is_valid = frame.salts == header.salts and frame.is_sound
        if previous is not None and number == bad + 1 and frame.salts == header.salts:
            is_valid = is_valid or _continues_repaired(frame, previous, header.page_size)
        if not bad and not is_valid:
            bad = number
        elif bad and is_valid and previous is not None and previous.commit:
            return f"frame {bad} of its write-ahead log, before other jobs"
        previous = frame
    return ""


def _continues_repaired(frame: Frame, previous: Frame, page_size: int) -> bool:
    """Return True if a frame is valid after one in which only the checksum is damaged."""
    # The checksum is linear: the difference before the frame becomes a difference behind it.
    difference = (previous.computed[0] - previous.stored[0]) & WORD_MASK
    other = (previous.computed[1] - previous.stored[1]) & WORD_MASK
    first, second = _add((0,) * (2 + page_size // 4), (difference, other))
    repaired = ((frame.computed[0] + first) & WORD_MASK, (frame.computed[1] + second) & WORD_MASK)
    return repaired == frame.stored


def _find_lost_frames(log: BinaryIO, header: LogHeader) -> str:
    """Look for valid frames behind a header that is not valid.

    The header is written, in one sector, before the frames, so it is damaged if there are any.
    """
    previous: Frame | None = None
    for frame in _frames(log, header):
        has_salts = previous is not None and frame.salts == previous.salts
        if has_salts and frame.is_sound:
            return "the header of its write-ahead log"
        previous = frame
    return ""


def _frames(log: BinaryIO, header: LogHeader) -> Iterator[Frame]:
    """Read all complete frames."""
    frame_size = FRAME_HEADER.size + header.page_size
    before = header.checksum
    while block := log.read(frame_size * BLOCK_FRAMES):
        number = len(block) // frame_size
        if not number:
            return
        block = block[: number * frame_size]
        fields = list(map(FRAME_HEADER.unpack, _heads(block, frame_size)))
        stored = [(first, second) for *_, first, second in fields]
        started = [before, *stored[:-1]]
        salts = {each[2] for each in fields}
        if header.salts and header.salts not in salts:
            # Frames of an earlier log: no checksum is needed.
            computed = started
        else:
            computed = _checksums(block, frame_size, started, is_big_endian=header.is_big_endian)
        for (page, commit, salt, *_), has, needs in zip(fields, stored, computed, strict=True):
            yield Frame(page, commit, salt, has, needs)
        before = stored[-1]


def _heads(block: bytes, frame_size: int) -> Iterator[bytes]:
    for start in range(0, len(block), frame_size):
        yield block[start : start + FRAME_HEADER.size]


def _checksums(
    block: bytes, frame_size: int, started: Sequence[Checksum], *, is_big_endian: bool
) -> list[Checksum]:
    """Return the checksum of each frame in a block, from the checksum before it.

    All frames are computed at the same time: a large integer has one lane of 64 bits for each
    frame, with a sum of 32 bits. This is ten times as fast as a loop over the words.
    """
    if is_big_endian:
        words = array("I", block)
        words.byteswap()
        block = words.tobytes()
    number = len(started)
    lanes = struct.Struct(f"<{number}Q")
    mask = int.from_bytes(lanes.pack(*[WORD_MASK] * number), "little")
    first = int.from_bytes(lanes.pack(*[each for each, _ in started]), "little")
    second = int.from_bytes(lanes.pack(*[each for _, each in started]), "little")
    pairs = memoryview(block).cast("Q")
    pairs_per_frame = frame_size // 8
    # The checksum covers the header without salts and checksums, and the page.
    for position in (0, *range(FRAME_HEADER.size // 8, pairs_per_frame)):
        pair = int.from_bytes(pairs[position::pairs_per_frame].tobytes(), "little")
        first = (first + (pair & mask) + second) & mask
        second = (second + (pair >> 32 & mask) + first) & mask
    return list(
        zip(
            lanes.unpack(first.to_bytes(lanes.size, "little")),
            lanes.unpack(second.to_bytes(lanes.size, "little")),
            strict=True,
        )
    )


def _add(words: Sequence[int], before: Checksum) -> Checksum:
    first, second = before
    for position in range(0, len(words), 2):
        first = (first + words[position] + second) & WORD_MASK
        second = (second + words[position + 1] + first) & WORD_MASK
    return first, second
