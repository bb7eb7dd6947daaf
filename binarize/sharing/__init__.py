"""Further tasks that share the bits of a converted network."""

from binarize.sharing.add_task import add_task
from binarize.sharing.report import TasksReport, report_tasks

__all__ = ["TasksReport", "add_task", "report_tasks"]
