"""A forward pass that waits at given places until it is told to go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from binarize.graph.watch import Stop

__all__ = ["Walk"]


_here = threading.local()


class Walk:
    """A function that runs in a thread of its own, and only while its owner waits for it.

    Layer-by-layer fitting has to see every image at one layer before any image can go on. So each
    batch has its own forward pass, which waits there.

    Args:
        run: The function, called with this object; it calls :meth:`pause`.
    """

    def __init__(self, run: Callable[[Walk], None]) -> None:
        self._run = run
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._shown: Any = None
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self._thread: threading.Thread | None = None

    @staticmethod
    def current() -> Walk | None:
        """Return the walk whose function is the caller, if there is one."""
        found: Walk | None = getattr(_here, "walk", None)
        return found

    def next(self) -> Any:
        """Go on to the next pause.

        Returns:
            What it paused with; ``None`` at the end.

        Raises:
            BaseException: Whatever the function raises.
        """
        if self._ended:
            return None
        self._shown = None
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._waits.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._shown

    def pause(self, shown: Any) -> None:
        """Wait, and show something meanwhile; called by the function."""
        self._shown = shown
        self._waits.release()
        self._go.acquire()
        if self._closed:
            raise Stop

    def close(self) -> None:
        """End the function where it waits."""
        self._closed = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()

    def _main(self) -> None:
        _here.walk = self
        try:
            with torch.no_grad():  # each thread has its own mode
                self._run(self)
        except Stop:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._waits.release()
