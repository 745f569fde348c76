"""How long a worker waits, for what neither setting nor client decides."""

from __future__ import annotations

#: Seconds to wait, and between two tries, if the channel to the dispatcher is full.
HAND_OVER = 30.0
RETRY = 0.005
#: After so many looks at a head that arrives in pieces, seconds between two of them.
LOOKS = 16
SLOW = 0.1
