"""Compression of large buffers on their way between machines (``distributed.comm.compression``).

It is off unless both ends are configured for it and have a codec in common (`in_common`): where the network is as fast
as a codec it costs more than it saves. A buffer is compressed only if samples of it say that this pays, so random
numbers travel as they are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Bytes = bytes | bytearray | memoryview

#: Buffers of fewer bytes go as they are, and so do larger ones than every codec can take.
SMALLEST, LARGEST = 10_000, 1 << 30
#: So many samples of so many bytes decide.
SAMPLES, SAMPLE = 5, 10_000
#: Compressed to more than this share it is not worth it.
WORTH = 0.9


@dataclass(frozen=True)
class Codec:
    """How one library compresses, and how it restores so many bytes."""

    module: str
    compress: Callable[[Any, Bytes], bytes]
    restore: Callable[[Any, Bytes, int], Bytes]


#: The preferred ones first. Their names are what is configured, and what peers tell each other.
CODECS = {
    "lz4": Codec(
        "lz4.block",
        lambda lz4, data: lz4.compress(data, store_size=False),
        lambda lz4, data, size: lz4.decompress(data, uncompressed_size=size, return_bytearray=True),
    ),
    "zstd": Codec(
        "zstandard",
        lambda zstd, data: zstd.ZstdCompressor().compress(data),
        lambda zstd, data, size: zstd.ZstdDecompressor().decompress(data, max_output_size=size),
    ),
    "snappy": Codec(
        "snappy",
        lambda snappy, data: snappy.compress(data),
        lambda snappy, data, size: snappy.uncompress(bytes(data)),
    ),
    "zlib": Codec(
        "zlib",
        lambda zlib, data: zlib.compress(data, 1),
        lambda zlib, data, size: zlib.decompressobj().decompress(data, size),
    ),
}


def _installed(codec: Codec) -> bool:
    from importlib.util import find_spec

    return find_spec(codec.module.partition(".")[0]) is not None


def offered(setting: Any) -> tuple[str, ...]:
    """The codecs that this end may use by its configuration: a name, ``"auto"`` for the fast ones there are, or none.

    Raises
    ------
    ValueError
        There is no codec of that name, or its library is not installed.
    """
    if setting in (None, False, "", "none", "None"):
        return ()
    if setting == "auto":
        return tuple(name for name, codec in CODECS.items() if name != "zlib" and _installed(codec))
    if setting not in CODECS:
        raise ValueError(f"distributed.comm.compression {setting!r}: expected auto, {', '.join(CODECS)} or false")
    if not _installed(CODECS[setting]):
        raise ValueError(f"distributed.comm.compression {setting!r}: {CODECS[setting].module} is not installed here")
    return (str(setting),)


def in_common(ours: Sequence[str], theirs: Any) -> str | None:
    """The codec that both ends offer, the one that comes first here."""
    return next((name for name in ours if isinstance(theirs, (tuple, list)) and name in theirs), None)


def compress(name: str, data: memoryview) -> bytes | None:
    """`data`, shorter; None where that does not pay."""
    if not SMALLEST <= len(data) <= LARGEST:
        return None
    codec = CODECS[name]
    library = importlib.import_module(codec.module)
    if len(data) > SAMPLES * SAMPLE:
        step = (len(data) - SAMPLE) // (SAMPLES - 1)
        sample = b"".join(data[at : at + SAMPLE] for at in range(0, SAMPLES * step, step))
        if len(codec.compress(library, sample)) > WORTH * len(sample):
            return None
    shorter = codec.compress(library, data)
    return shorter if len(shorter) <= WORTH * len(data) else None


def restore(name: str, data: Bytes, size: int) -> memoryview:
    """What was compressed; it had `size` bytes. The memory is writable.

    Raises
    ------
    ValueError
        It had not, or is none of that codec's.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise ValueError(f"unknown compression {name!r}")
    try:
        restored = codec.restore(importlib.import_module(codec.module), data, size)
    except Exception as error:
        raise ValueError(f"data that {name} cannot restore: {error}") from None
    if len(restored) != size:
        raise ValueError(f"{name} restores {len(restored):,} bytes instead of {size:,}")
    return memoryview(restored if isinstance(restored, bytearray) else bytearray(restored))
