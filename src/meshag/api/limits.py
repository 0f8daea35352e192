"""How often a caller of the API may ask, as one process counts it."""

from collections import OrderedDict

from meshag import clock


class RateLimit:
    """So much at once, then so much a second, for each of `most` names; the one unheard of for longest is forgotten."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._spent_s: OrderedDict[str, float] = OrderedDict()
        """Until when what the name may do is spent, on this process's clock."""

    def wait_s(self, name: str, per_s: float, burst: float, *, spend: bool = True) -> float:
        """Spend one of `name`'s turns. More than 0: it has none left, and has one again after so many seconds.

        `spend`: False only looks.
        """
        now_s = clock.monotonic_s()
        spent_s = max(self._spent_s.get(name, 0.0), now_s)
        wait_s = spent_s + (1 - burst) / per_s - now_s
        if wait_s > 1e-9:
            return wait_s
        if spend:
            self._spent_s[name] = spent_s + 1 / per_s
            self._spent_s.move_to_end(name)
            if len(self._spent_s) > self._most:
                self._spent_s.popitem(last=False)
        return 0.0
