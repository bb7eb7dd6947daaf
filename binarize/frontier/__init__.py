"""The frontier of accuracy, time and size: choose, train, measure."""

from binarize.frontier.build import frontier

__all__ = ["frontier"]
