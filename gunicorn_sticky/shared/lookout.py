"""Whether it pays to look at a queue once more."""

from __future__ import annotations

#: The most looks that are left out in a row.
MOST = 15


class Lookout:
    """Tells whether to look once more at a queue whose last element may just have been taken.

    A look that finds nothing costs a system call and an exception. So after each of those more looks are left out,
    until one has found something. Whoever leaves one out is told of what is there by epoll, which is level-triggered.
    """

    __slots__ = ("_left", "_pause")

    def __init__(self) -> None:
        self._pause = 0
        #: How many looks are still to be left out.
        self._left = 0

    def pays(self) -> bool:
        """Tell whether to look now; if so, `found` is to be called."""
        if self._left:
            self._left -= 1
            return False
        return True

    def found(self, something: bool) -> None:
        """Note what a look has found."""
        self._left = self._pause = 0 if something else min(2 * self._pause + 1, MOST)
