"""How much KV the stages of a pipeline hold. Pure."""

from collections import Counter
from dataclasses import dataclass

from common.config import Config, ConfigError
from common.records import Ready

_MOST_HOST_POOLS = 2  # pools of a GPU that its host keeps by default


@dataclass(frozen=True, slots=True)
class Pools:
    """What the stages agreed to hold: the same number of blocks everywhere, of a different size in each stage."""

    num_device_blocks: int
    num_host_blocks: int
    block_bytes: int  # of one block, summed over the stages


def agree_on_pools(offers: list[Ready], config: Config) -> Pools:
    """As many blocks as the smallest stage can hold, or as many as were asked for. Raises ConfigError for none at all.

    Stages on one GPU divide it, unless each was given a size.
    """
    stages_of = Counter(offer.gpu for offer in offers if offer.gpu and config.kv_device_memory is None)
    device_blocks, host_blocks = config.kv_device_blocks, config.kv_host_blocks
    if device_blocks is None:
        device_blocks = min(offer.device_bytes // max(1, stages_of[offer.gpu]) // offer.block_bytes for offer in offers)
    if device_blocks < 1:
        largest = max(offer.block_bytes for offer in offers)
        raise ConfigError(f"no room for KV: one block takes {largest} bytes; raise --kv-device-memory")
    if host_blocks is None:
        host_blocks = min(offer.host_bytes // offer.block_bytes for offer in offers)
        if config.kv_host_memory is None and any(offer.gpu for offer in offers):
            # All of it is pinned at once: that takes time, and memory from others.
            host_blocks = min(host_blocks, _MOST_HOST_POOLS * device_blocks)
    return Pools(device_blocks, host_blocks, sum(offer.block_bytes for offer in offers))
