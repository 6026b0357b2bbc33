"""`skipjoin timeline`: a picture of what `skipjoin serve --record` or `skipjoin simulate --record` wrote down."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import tyro

from common.config import ConfigError
from gateway.recording import Change, read_recording
from launch.lab.plots import check_picture
from launch.lab.timeline import draw_timelines, lives


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Draw recorded runs: each job a line, in the colour of its level while it runs, thin while it waits."""

    recordings: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that --record wrote; one panel for each."""
    output: Path = Path("timeline.svg")
    """Picture to write; its ending says the format (svg, png, pdf)."""

    def run(self) -> int:
        """Raises ConfigError."""
        if not self.recordings:
            raise ConfigError("no recording is given: files that serve --record or simulate --record wrote")
        check_picture(self.output)
        # By their paths where two have one name, as those of a simulation in two folders do.
        stems = Counter(path.stem for path in self.recordings)
        names = {path: path.stem if stems[path.stem] == 1 else str(path) for path in self.recordings}
        draw_timelines({name: lives(_read(path)) for path, name in names.items()}, self.output)
        print(f"drawn in {self.output}")
        return 0


def _read(path: Path) -> list[Change]:
    try:
        changes = read_recording(path)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} is no recording: {error}") from None
    if not changes:
        raise ConfigError(f"{path} is empty")
    return changes
