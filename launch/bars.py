"""Progress bars on standard error for whatever is slow."""

import sys
from typing import NoReturn

from tqdm import tqdm


class Bars:
    """A bar for each thing that is going on; called with its name and the share that is done."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[NoReturn]] = {}

    def __call__(self, what: str, share: float) -> None:
        if what not in self._bars:
            layout = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}"
            self._bars[what] = tqdm(total=1.0, desc=f"{what:>9}", bar_format=layout, file=sys.stderr)
        bar = self._bars[what]
        bar.update(share - bar.n)
        if share >= 1.0:
            bar.close()
