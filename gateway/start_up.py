"""From loaded stages to a pipeline that can be scheduled: pools agreed on, links connected, costs known."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.config import Config
from common.model_files import ModelFiles
from common.model_spec import ModelSpec
from common.records import Ready, Setup
from gateway.pipeline import Pipeline
from gateway.pools import Pools, agree_on_pools
from gateway.profiling import Profiler, load_profile, profile_path, save_profile
from gateway.scheduling.cost import Profile

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]  # what is going on, and the share of it that is done


@dataclass(frozen=True, slots=True)
class Cluster:
    """What start-up learned of the stages."""

    config: Config  # with what depends on their devices settled
    offers: list[Ready]
    pools: Pools
    max_context: int  # tokens that prompt and output may have together
    profile: Profile
    profile_path: Path  # where it is kept
    profile_was_cached: bool
    plans_used: int  # plan numbers that measuring took


def start_up(pipeline: Pipeline, config: Config, files: ModelFiles, spec: ModelSpec, progress: Progress) -> Cluster:
    """Bring the stages up and measure them, or remember earlier measurements. Raises StageLost, ConfigError."""
    offers = pipeline.wait_until_loaded(config.start_timeout, lambda share: progress("loading", share))
    config = config.on(*(offer.device for offer in offers))
    pools = agree_on_pools(offers, config)
    # The first stage hosts the store where the others meet: an epoch without it would be over anyway.
    meeting = (offers[0].hostname, offers[0].store_port)
    setup = Setup(0, pipeline.stages, pools.num_device_blocks, pools.num_host_blocks, *meeting)
    pipeline.set_up(setup, config.start_timeout)
    limits = [spec.context_length, pools.num_device_blocks * config.block_tokens]
    max_context = min(limits + ([config.max_context] if config.max_context else []))
    profiler = Profiler(pipeline, config, pools, spec.vocab_size, max_context)
    path = profile_path(files, config, offers, profiler.measured)
    if config.profile == "cached" and (found := load_profile(path)):
        return Cluster(config, offers, pools, max_context, found, path, True, 0)
    profile = profiler.measure(lambda share: progress("profiling", share))
    try:
        save_profile(path, profile)
    except OSError as error:
        log.warning("the profile could not be kept in %s: %s", path, error)
    return Cluster(config, offers, pools, max_context, profile, path, False, profiler.num_plans)
