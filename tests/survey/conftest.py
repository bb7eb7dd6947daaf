"""What the tests of the survey share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def told() -> Callable[[BaseException], str]:
    """Check that an error is one line; return it."""

    def check(error: BaseException) -> str:
        message = str(error)
        assert "\n" not in message
        assert "; " in message
        return message

    return check
