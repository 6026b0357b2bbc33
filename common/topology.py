"""Who does what in a world of ranks, and which layers a stage holds."""

from dataclasses import dataclass
from typing import Literal

from common.config import ConfigError
from common.model_spec import ModelSpec

Role = Literal["gateway", "worker", "spare"]

GATEWAY_RANK = 0
# Time in which the head works as much as its weight says. In the rest prompts are computed: of them it sees the last
# token only. By throughput with 32 clients on a CPU without AMX; with it, it was not tried: docs/performance.md.
_HEAD_SHARE = 0.5


def role(rank: int, size: int, num_stages: int) -> Role:
    """Rank 0 is the gateway, the next `num_stages` are workers, the rest spares. Raises ConfigError if too few."""
    if size < num_stages + 1:
        raise ConfigError(
            f"this MPI world has {size} rank{'s' if size != 1 else ''}, but --pipeline-parallel {num_stages} needs "
            f"{num_stages + 1}: one gateway and {num_stages} stage{'s' if num_stages != 1 else ''}; "
            f"start it with -n {num_stages + 1} (more ranks become spares)"
        )
    if rank == GATEWAY_RANK:
        return "gateway"
    return "worker" if rank <= num_stages else "spare"


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of consecutive layers. The first stage embeds, the last one has the head and samples."""

    index: int
    num_stages: int
    layers: range

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1


def partition(spec: ModelSpec, num_stages: int) -> list[Stage]:
    """Split the layers so that the busiest stage is least busy.

    The head counts as a share of the layers it weighs. With a small model that is no small part: in SmolLM2-135M it
    weighs eight layers.
    """
    if num_stages > spec.num_layers:
        raise ConfigError(f"--pipeline-parallel {num_stages} is more than the model's {spec.num_layers} layers")
    head = _HEAD_SHARE * spec.vocab_size * spec.hidden_size / spec.layer_parameters()
    last = max(1, min(spec.num_layers, round((spec.num_layers + head) / num_stages - head)))
    if num_stages == 1:
        counts = [spec.num_layers]
    else:
        last = min(last, spec.num_layers - (num_stages - 1))
        rest, extra = divmod(spec.num_layers - last, num_stages - 1)
        counts = [rest + (i < extra) for i in range(num_stages - 1)] + [last]
    starts = [sum(counts[:i]) for i in range(num_stages)]
    return [Stage(i, num_stages, range(s, s + c)) for i, (s, c) in enumerate(zip(starts, counts, strict=True))]
