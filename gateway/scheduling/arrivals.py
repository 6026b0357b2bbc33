"""How many blocks per turn new jobs have needed lately: what the reserve for arrivals follows from."""

# Weight of the newest turn in the moving average: about the last 30 turns count.
_NEWEST = 1 / 30


class ArrivalRate:
    """An exponential moving average over turns, so that it needs no clock."""

    def __init__(self) -> None:
        self._blocks_per_turn = 0.0
        self._this_turn = 0

    def arrived(self, blocks: int) -> None:
        self._this_turn += blocks

    def turn(self) -> None:
        self._blocks_per_turn += _NEWEST * (self._this_turn - self._blocks_per_turn)
        self._this_turn = 0

    def blocks_ahead(self, turns: int) -> float:
        """Blocks that jobs arriving in the next `turns` turns should need."""
        return self._blocks_per_turn * turns
