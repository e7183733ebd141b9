"""Compressing and decompressing one frame."""

from collections.abc import Sequence

import zstandard

from modelvault.bundle.index import refused

_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_SAMPLE = 32 << 10
_SAMPLES = 16
# Quantized weights come out of the sample at 97 % or more, half-precision ones at about 80 %.
_WORTH_IT = 0.95
_RAW_BLOCK = 128 << 10  # the longest block that zstd allows
# RFC 8878, 3.1.1.1: four bytes of content size, no dictionary, no checksum; a window of 128 KiB.
_RAW_DESCRIPTOR = b"\x80\x38"

Stored = Sequence[bytes | memoryview]
"""The bytes of a frame as they go to the drive, in parts; some are views of the content."""


def compress(content: bytearray) -> Stored:
    """Make one zstd frame with its content size in the header. Equal content and libzstd give equal bytes.

    What does not compress goes into raw blocks around the content itself. zstd's fast levels would give the same, but read and
    copy all of it first.
    """
    if _compressible(content):
        packer = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False
        )
        return (packer.compress(content),)
    return _raw(content)


def _raw(content: bytearray) -> Stored:
    """Frame content of 64 KiB to 4 GiB as raw blocks (RFC 8878, 3.1.1.2): size << 3 | type 0 << 1 | last."""
    view = memoryview(content)
    parts: list[bytes | memoryview] = [_MAGIC + _RAW_DESCRIPTOR + len(content).to_bytes(4, "little")]
    for start in range(0, len(content), _RAW_BLOCK):
        block = view[start : start + _RAW_BLOCK]
        last = start + len(block) == len(content)
        parts += ((len(block) << 3 | last).to_bytes(3, "little"), block)
    return parts


def _compressible(content: bytearray) -> bool:
    """Probe evenly spaced samples; short content is always worth the better level."""
    if len(content) <= _SAMPLE * _SAMPLES:
        return True
    view = memoryview(content)
    step = (len(content) - _SAMPLE) // (_SAMPLES - 1)
    sample = b"".join(view[start : start + _SAMPLE] for start in range(0, step * _SAMPLES, step))
    packed = zstandard.ZstdCompressor(level=1).compress(sample)
    return len(packed) < _WORTH_IT * len(sample)


def decompress(stored: bytes, length: int) -> bytes:
    """Give the content of exactly one zstd frame of exactly ``length`` bytes, or raise ``BundleRefused``.

    The size in the frame's header is held against ``length`` before anything is allocated, so a bomb costs nothing.
    """
    if stored[:4] != _MAGIC:
        raise refused("a frame is not a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(stored)
        if parameters.content_size != length:
            raise refused(f"a frame claims {parameters.content_size} bytes of content instead of {length}")
        if parameters.dict_id:
            raise refused("a frame asks for a dictionary")
        content: bytes = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise refused(f"a frame does not decompress: {error}") from error
    if len(content) != length:
        raise refused(f"a frame has {len(content)} bytes of content instead of {length}")
    return content
