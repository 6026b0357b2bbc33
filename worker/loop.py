"""A worker's life: load a stage, report, take orders from the gateway until it says stop. Decides nothing itself."""

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.channel import IDLE_PAUSE_S, Channel, growing_pauses, receive
from common.config import Config, ConfigError
from common.model_files import ModelError, locate
from common.model_spec import ModelSpec
from common.records import Fault, LinkDown, Order, Plan, Progress, Ready, Report, Setup, Up, decode_order, encode
from common.spec_reader import read_spec
from common.topology import GATEWAY_RANK, Stage, partition
from worker.device import HostShare, Placement, gpu_id, kv_budget, place
from worker.epoch import Epoch
from worker.fingerprint import fingerprint
from worker.kv_cache import KvCache, block_bytes
from worker.link import Connect, DistributedLink, Link, LinkLost, LocalLink, host_store
from worker.models.load import load_stage
from worker.models.stage_model import StageModel
from worker.runner import Runner

logger = logging.getLogger(__name__)

_PROGRESS_PAUSE_S = 0.25
_CLOSE_TIMEOUT_S = 5.0
_IDLE_LOOK_S = 60.0

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that stages can be loaded from."""

    spec: ModelSpec
    load: Callable[[Stage, Placement, ProgressCallback], StageModel]

    @classmethod
    def open(cls, config: Config) -> "Model":
        """The model that the configuration names. Raises ModelError."""
        files = locate(config.model)
        spec = read_spec(files)

        def load(stage: Stage, placement: Placement, progress: ProgressCallback) -> StageModel:
            return load_stage(
                files,
                spec,
                stage,
                device=placement.device,
                dtype=placement.dtype,
                stored=placement.stored,
                progress=progress,
            )

        return cls(spec, load)


def serve_stage(
    channel: Channel,
    config: Config,
    index: int | None,
    *,
    share: HostShare | None = None,
    open_model: Callable[[Config], Model] = Model.open,
    connect: Connect | None = None,
) -> int:
    """Serve stage `index` (None: a spare, which loads when a Setup names its rank) until Stop. Returns an exit status.

    `share` is this worker's part of its host, by default all of it. `connect` opens links, by default through
    torch.distributed. What makes going on impossible is told to the gateway as a Fault; the status is then 2 for a
    mistake in model or configuration, 1 for anything else.
    """
    worker = None
    try:
        worker = Worker(channel, config, open_model(config), share or HostShare(), connect)
        worker.serve(index)
    except (ModelError, ConfigError) as error:  # the operator's to mend, who reads it from the gateway
        channel.send([GATEWAY_RANK], encode(Fault(str(error), is_mistake=True)))
        return 2
    except Exception as error:
        logger.exception("this stage cannot go on")
        channel.send([GATEWAY_RANK], encode(Fault(f"{type(error).__name__}: {error}")))
        return 1
    finally:
        if worker is not None:
            worker.close()  # After the fault is told: neighbours that notice tell of a lost link only.
        channel.close(_CLOSE_TIMEOUT_S)
    return 0


class Worker:
    """One rank that computes. Its weights outlive epochs; links and waiting plans do not."""

    def __init__(
        self, channel: Channel, config: Config, model: Model, share: HostShare, connect: Connect | None
    ) -> None:
        self._channel = channel
        self._config = config
        self._model = model
        self._share = share
        self._placement = place(config, model.spec, share)
        self._stages = partition(model.spec, config.pipeline_parallel)
        meets_others = connect is None and config.pipeline_parallel > 1
        self._store = host_store(only_local=share.only_host) if meets_others else None
        self._connect = connect or self._connect_distributed
        self._loaded: tuple[Stage, StageModel] | None = None
        self._cache: KvCache | None = None
        self._epoch: Epoch | None = None
        self._link_lost = False
        self._stopping = False

    def serve(self, index: int | None) -> None:
        """Work until Stop. Raises what makes going on impossible."""
        if index is not None:
            self._load(self._stages[index])
            self._report(self._ready(self._stages[index]))
        while self._take_orders():
            self._advance()

    def close(self) -> None:
        """Leave the neighbours, in order or not: nothing comes after it."""
        try:
            self._leave_epoch()
        except Exception:
            logger.exception("the other stages could not be left in order")

    # ------------------------------------------------------------------------ orders

    def _take_orders(self) -> bool:
        """Take in all that has arrived, waiting while there is nothing to compute; False when it is time to leave."""
        while True:
            busy = self._epoch is not None and self._epoch.has_work
            if self._stopping and not busy:
                return False
            message = self._channel.poll() if busy else self._wait()
            if message is None:
                return True
            self._obey(decode_order(message[1]))

    def _wait(self) -> tuple[int, bytes]:
        """The next message. An idle stage waits as long as its gateway lives; one without neighbours gives up."""
        timeout_s = self._config.start_timeout if self._link_lost else _IDLE_LOOK_S
        while (message := receive(self._channel, timeout_s, growing_pauses(IDLE_PAUSE_S))) is None:
            if self._link_lost:
                raise TimeoutError(f"no new setup within {timeout_s} s after the link was lost")
        return message

    def _obey(self, order: Order) -> None:
        if isinstance(order, Setup):
            self._set_up(order)
        elif isinstance(order, Plan):
            if self._epoch is not None and self._epoch.number == order.epoch:
                self._epoch.take(order)
            else:
                logger.debug("plan %d is of epoch %d, which is over", order.seq, order.epoch)
        else:
            self._stopping = True

    def _advance(self) -> None:
        assert self._epoch is not None
        try:
            result = self._epoch.advance()
        except LinkLost as error:
            self._lose_link(error)
            return
        if result is not None:
            self._report(result)

    def _report(self, report: Report) -> None:
        self._channel.send([GATEWAY_RANK], encode(report))

    # ------------------------------------------------------------------------ loading

    def _load(self, stage: Stage) -> StageModel:
        """The stage's weights; loaded once, unless this rank takes another stage."""
        if self._loaded is None or self._loaded[0] != stage:
            self._loaded = self._cache = None  # The old must go before the new comes.
            self._loaded = stage, self._model.load(stage, self._placement, self._progress())
            logger.info("stage %d of %d is loaded, %s", stage.index, stage.num_stages, self._placement.name)
        return self._loaded[1]

    def _progress(self) -> ProgressCallback:
        """Reports how far loading is, a few times per second."""
        next_report = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal next_report
            if (now := time.monotonic()) >= next_report or done == total:
                next_report = now + _PROGRESS_PAUSE_S
                self._report(Progress(done, total))

        return progress

    def _ready(self, stage: Stage) -> Ready:
        bytes_per_block = self._block_bytes(stage)
        device_bytes, host_bytes = kv_budget(self._config, self._placement, self._share, bytes_per_block)
        return Ready(
            hostname=socket.gethostname(),
            device=self._placement.name,
            dtype=self._placement.dtype_name,
            fingerprint=fingerprint(),
            block_bytes=bytes_per_block,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
            store_port=self._store.port if self._store is not None else 0,
            gpu=gpu_id(self._placement.device),
        )

    def _block_bytes(self, stage: Stage) -> int:
        return block_bytes(self._model.spec, len(stage.layers), self._config.block_tokens, self._placement.kv_dtype)

    # ------------------------------------------------------------------------ epochs

    def _set_up(self, setup: Setup) -> None:
        """Join a new epoch, or sit it out; its plans come once the gateway has every stage's Up."""
        self._leave_epoch()
        self._link_lost = False
        if self._channel.rank not in setup.stages:
            return
        stage = self._stages[setup.stages.index(self._channel.rank)]
        model = self._load(stage)
        cache = self._allocate(setup, stage)
        try:
            link = self._connect(setup, stage.index) if len(setup.stages) > 1 else LocalLink(None, None, 0.0)
        except LinkLost as error:
            self._lose_link(error)
            return
        runner = Runner(
            model,
            stage,
            cache,
            link,
            hidden_size=self._model.spec.hidden_size,
            dtype=self._placement.dtype,
            timeout_s=self._config.iteration_timeout,
            graph_jobs=self._config.on(str(self._placement.device)).batch_jobs if self._config.cuda_graphs else 0,
        )
        runner.warm_up()
        self._epoch = Epoch(setup.epoch, runner, cache, link)
        self._report(Up(setup.epoch))

    def _allocate(self, setup: Setup, stage: Stage) -> KvCache:
        """The pools; those of the last epoch where they fit, as pinned memory is slow to get."""
        wanted = (setup.num_device_blocks, setup.num_host_blocks)
        if self._cache is None or self._cache.num_blocks != wanted:
            self._cache = None  # The old must go before the new comes.
            self._cache = KvCache(
                self._model.spec,
                num_layers=len(stage.layers),
                block_tokens=self._config.block_tokens,
                num_device_blocks=setup.num_device_blocks,
                num_host_blocks=setup.num_host_blocks,
                device=self._placement.device,
                dtype=self._placement.kv_dtype,
            )
        return self._cache

    def _connect_distributed(self, setup: Setup, index: int) -> Link:
        return DistributedLink(
            setup,
            index,
            hidden_size=self._model.spec.hidden_size,
            dtype=self._placement.dtype,
            device=self._placement.device,
            connect_timeout_s=self._config.start_timeout,
            timeout_s=self._config.iteration_timeout,
        )

    def _lose_link(self, error: LinkLost) -> None:
        """Say so, leave the epoch, so that the neighbours notice as well, and wait for another."""
        logger.warning("%s; waiting for a new setup", error)
        self._report(LinkDown(str(error)))
        self._leave_epoch()
        self._link_lost = True

    def _leave_epoch(self) -> None:
        if self._epoch is not None:
            self._epoch.close()
            self._epoch = None
