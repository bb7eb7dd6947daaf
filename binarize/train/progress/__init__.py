"""What a run shows while it trains: displays, callbacks, and the files in its folder."""

from binarize.train.progress.callbacks import Callback, CSVLog, EarlyStopping
from binarize.train.progress.displays import (
    LineProgress,
    Progress,
    RichProgress,
    SilentProgress,
    open_progress,
    report_images,
    report_note,
)

__all__ = [
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "LineProgress",
    "Progress",
    "RichProgress",
    "SilentProgress",
    "open_progress",
    "report_images",
    "report_note",
]
