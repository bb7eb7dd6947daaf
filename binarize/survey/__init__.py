"""Survey: convert every network of a folder of files, and check it."""

from binarize.survey.case import Case, select, spread
from binarize.survey.document import write_document
from binarize.survey.pool import survey
from binarize.survey.records import Records
from binarize.survey.row import Row
from binarize.survey.summary import Summary, summarize
from binarize.survey.wild import build_wild, wild_cases

__all__ = [
    "Case",
    "Records",
    "Row",
    "Summary",
    "build_wild",
    "select",
    "spread",
    "summarize",
    "survey",
    "wild_cases",
    "write_document",
]
