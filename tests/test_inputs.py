import pytest
import torch
from fakes_worker import GREEDY

from common.records import Entry, pack_blocks
from worker.inputs import build_inputs

CPU = torch.device("cpu")


def test_prompts_chunks_and_decoding_jobs_lie_end_to_end() -> None:
    prompt = Entry(1, 0, [10, 11, 12, 13, 14], pack_blocks([7, 3]), GREEDY)
    chunk = Entry(2, 3, [20, 21], pack_blocks([5, 6]), None)
    decode = Entry(3, 8, [30], pack_blocks([0, 1, 9]), GREEDY)
    inputs = build_inputs([prompt, chunk, decode], 4, CPU)
    assert inputs.tokens.tolist() == [10, 11, 12, 13, 14, 20, 21, 30]
    assert inputs.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 8]
    assert inputs.slots.tolist() == [28, 29, 30, 31, 12, 23, 24, 36]
    assert inputs.sampled.tolist() == [4, 7]
    assert [(s.first, s.start, s.count, s.end) for s in inputs.segments] == [(0, 0, 5, 5), (5, 3, 2, 5), (7, 8, 1, 9)]


def test_a_batch_that_wants_no_token_samples_no_row() -> None:
    assert build_inputs([Entry(1, 0, [1], pack_blocks([0]), None)], 4, CPU).sampled.tolist() == []


def test_too_few_blocks_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="job 9 has 1 blocks, needs 2"):
        build_inputs([Entry(9, 3, [1, 2], pack_blocks([0]), GREEDY)], 4, CPU)


def test_an_entry_without_tokens_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="job 9 has no tokens"):
        build_inputs([Entry(9, 3, [], pack_blocks([0]), GREEDY)], 4, CPU)
