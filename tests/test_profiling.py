from dataclasses import replace as replaced
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.config import Config
from common.model_files import ModelFiles
from common.records import Plan, Ready, Result, unpack_blocks
from gateway.pools import Pools
from gateway.profiling import Measured, Point, Profiler, load_profile, profile_path, save_profile
from gateway.scheduling.cost import Profile

MEASURED = Measured([Point(1, 0, 16)], [1, 64])
OFFER = Ready("here", "cpu, 2 threads", "fp32", "f00d", 100, 2000, 2000)


class TimedPipeline:
    """Takes as long as its plans ask for, on a clock of its own."""

    def __init__(self, disturbed: int = 0) -> None:
        self.now = 0.0
        self.plans: list[Plan] = []
        self._disturbed = disturbed  # every n-th plan takes ten times as long

    def run(self, plan: Plan) -> Result:
        self.plans.append(plan)
        seconds = 0.01 + 0.001 * sum(len(entry.tokens) for entry in plan.entries)
        seconds += 1e-6 * sum(entry.start for entry in plan.entries) + 2e-4 * len(plan.offloads)
        if self._disturbed and len(self.plans) % self._disturbed == 0:
            seconds *= 10
        self.now += seconds
        return Result(plan.seq, [1] * len(plan.entries), 0.0, 0.0)


def measure(pipeline: TimedPipeline, num_blocks: int = 1000, max_context: int = 512) -> Profile:
    profiler = Profiler(pipeline, Config(), Pools(num_blocks, 100, 1), vocab_size=50, max_context=max_context)  # type: ignore[arg-type]
    profile = profiler.measure(lambda share: None, clock=lambda: pipeline.now)
    assert profiler.num_plans == len(pipeline.plans) == pipeline.plans[-1].seq
    return profile


def test_it_measures_prompts_that_fit_and_batches_up_to_the_limit() -> None:
    profile = measure(TimedPipeline())
    assert [tokens for tokens, _ in profile.prefill] == [16, 64, 256, 512]
    assert [jobs for jobs, _ in profile.decode] == [1, 4, 8, 16]
    assert profile.prefill_s(64) == pytest.approx(0.074)
    assert profile.decode_s(4) == pytest.approx(0.014 + 4 * 256e-6)


def test_it_measures_what_contexts_and_copies_cost() -> None:
    profile = measure(TimedPipeline())
    assert profile.context_s == pytest.approx(1e-6)
    assert profile.copy_s == pytest.approx(2e-4)
    assert (profile.decode_context, profile.block_tokens, profile.block_bytes) == (256, 16, 1)
    assert profile.iteration_s(0, 4, 4 * 500) == pytest.approx(0.014 + 4 * 500e-6)


def test_its_plans_are_ones_that_stages_can_run() -> None:
    pipeline = TimedPipeline()
    measure(pipeline, num_blocks=40)
    for plan in pipeline.plans:
        blocks = [block for entry in plan.entries for block in unpack_blocks(entry.blocks)]
        assert len(blocks) == len(set(blocks))
        assert all(block < 40 for block in blocks)
        assert all(device < 40 and host < 100 for device, host in plan.offloads)
        assert all(0 <= token < 50 for entry in plan.entries for token in entry.tokens)
        assert all(16 * len(unpack_blocks(entry.blocks)) >= entry.start + len(entry.tokens) for entry in plan.entries)


def test_a_busy_machine_does_not_spoil_the_profile() -> None:
    quiet, disturbed = measure(TimedPipeline()), measure(TimedPipeline(disturbed=3))
    assert [seconds for _, seconds in disturbed.prefill] == pytest.approx([seconds for _, seconds in quiet.prefill])
    assert [seconds for _, seconds in disturbed.decode] == pytest.approx([seconds for _, seconds in quiet.decode])


def test_full_batches_are_measured_in_small_pools_too_with_shorter_contexts() -> None:
    profile = measure(TimedPipeline(), num_blocks=48)
    assert [jobs for jobs, _ in profile.decode] == [1, 4, 8, 16]
    assert profile.decode_context == 47


def test_a_tiny_pool_is_measured_too() -> None:
    profile = measure(TimedPipeline(), num_blocks=2, max_context=32)
    assert [jobs for jobs, _ in profile.decode] == [1, 2]


def test_a_short_context_is_measured_with_a_prompt_that_fits() -> None:
    assert [tokens for tokens, _ in measure(TimedPipeline(), max_context=8).prefill] == [8]
    assert [tokens for tokens, _ in measure(TimedPipeline(), max_context=100).prefill] == [16, 64, 100]


def test_a_profile_is_kept_and_found_again(tmp_path: Path) -> None:
    profile = Profile([(16, 0.1)], [(1, 0.05)])
    path = tmp_path / "folder" / "profile.json"
    assert load_profile(path) is None
    save_profile(path, profile)
    assert load_profile(path) == profile
    path.write_text("{")
    assert load_profile(path) is None


def test_another_device_version_layout_or_model_has_another_profile(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"1")
    files = ModelFiles("gguf", model, "model")
    paths = {
        profile_path(files, Config(), [OFFER], MEASURED, tmp_path),
        profile_path(files, Config(), [replace(OFFER, device="cpu, 1 thread")], MEASURED, tmp_path),
        profile_path(files, Config(), [replace(OFFER, fingerprint="of a later version")], MEASURED, tmp_path),
        profile_path(files, Config(), [OFFER, OFFER], MEASURED, tmp_path),
        profile_path(files, Config(block_tokens=32), [OFFER], MEASURED, tmp_path),
        profile_path(files, Config(weights="int8"), [OFFER], MEASURED, tmp_path),
        profile_path(files, Config(cuda_graphs=False), [OFFER], MEASURED, tmp_path),
        profile_path(files, Config(), [OFFER], replaced(MEASURED, points=[]), tmp_path),
        profile_path(files, Config(), [OFFER], replaced(MEASURED, copies=[0]), tmp_path),
    }
    model.write_bytes(b"12")
    paths.add(profile_path(files, Config(), [OFFER], MEASURED, tmp_path))
    assert len(paths) == 10
    assert profile_path(files, Config(port=1234), [OFFER], MEASURED, tmp_path) in paths
