"""The whole model as one stage in this process, without messages: for benchmarks."""

from collections.abc import Callable
from typing import Any

from common.config import Config
from common.topology import partition


def open_stage(config: Config, blocks: int, wrap: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A runner of what `wrap` makes of the model, with KV for `blocks`; and the copies of plans that have none."""
    from worker.copier import ThreadCopies  # noqa: PLC0415 - a command line that measures nothing needs no torch
    from worker.device import HostShare, place  # noqa: PLC0415
    from worker.kv_cache import KvCache  # noqa: PLC0415
    from worker.link import LocalLink  # noqa: PLC0415
    from worker.loop import Model  # noqa: PLC0415
    from worker.runner import Runner  # noqa: PLC0415

    model = Model.open(config)
    placement, (stage,) = place(config, model.spec, HostShare()), partition(model.spec, 1)
    cache = KvCache(
        model.spec,
        num_layers=len(stage.layers),
        block_tokens=config.block_tokens,
        num_device_blocks=blocks,
        num_host_blocks=0,
        device=placement.device,
        dtype=placement.kv_dtype,
    )
    wrapped = wrap(model.load(stage, placement, lambda done, total: None))
    link, hidden_size = LocalLink(None, None, 0.0), model.spec.hidden_size
    runner = Runner(wrapped, stage, cache, link, hidden_size=hidden_size, dtype=placement.dtype, timeout_s=60.0)
    return runner, ThreadCopies(None)
