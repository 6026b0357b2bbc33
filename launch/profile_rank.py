"""Rank 0 of `skipjoin profile`: measure, or recall, what iterations cost, and show it with the levels that follow."""

import logging
import sys

from common.channel import Channel
from common.config import Config, ConfigError
from common.model_files import ModelError, locate
from common.spec_reader import read_spec
from gateway.pipeline import Pipeline, StageLost
from gateway.scheduling.levels import Levels
from gateway.start_up import Cluster, start_up
from launch.bars import Bars
from launch.gateway_rank import EXIT_FAILED, EXIT_LOST, EXIT_USAGE, describe

log = logging.getLogger(__name__)


def run_profile(config: Config, channel: Channel) -> int:
    """Returns the exit status."""
    pipeline = Pipeline(channel, list(range(1, config.pipeline_parallel + 1)), config.iteration_timeout)
    try:
        files = locate(config.model)
        cluster = start_up(pipeline, config, files, read_spec(files), Bars())
    except (ModelError, ConfigError, StageLost) as error:
        print(f"skipjoin: {error}", file=sys.stderr)
        return EXIT_LOST if isinstance(error, StageLost) else EXIT_USAGE
    except Exception:
        log.exception("nothing could be measured")
        return EXIT_FAILED
    finally:
        pipeline.stop()
    print(describe(config, cluster))
    print(f"kept in {cluster.profile_path}")
    _show(config, cluster)
    return 0


def _show(config: Config, cluster: Cluster) -> None:
    profile = cluster.profile
    quantum_s = profile.decode_s(1) if config.quantum_ms is None else config.quantum_ms / 1000
    levels = Levels(config.num_levels, quantum_s, config.quantum_growth)
    print("\nprefill tokens   seconds   tokens/s   joins level")
    for tokens, seconds in profile.prefill:
        print(f"{tokens:14d} {seconds:9.4f} {tokens / seconds:10.0f} {levels.covering(seconds):13d}")
    print("\n   decode jobs   seconds   tokens/s")
    for jobs, seconds in profile.decode:
        print(f"{jobs:14d} {seconds:9.4f} {jobs / seconds:10.0f}")
