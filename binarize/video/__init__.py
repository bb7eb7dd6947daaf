"""Packed networks on the frames of a video."""

from binarize.video.report import StreamReport, StreamRow
from binarize.video.stream import Stream

__all__ = ["Stream", "StreamReport", "StreamRow"]
