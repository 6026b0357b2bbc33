import numpy as np
import pytest
import torch
from fakes_worker import DEVICES

from worker.transfer import to_device_together, to_host


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_that_travel_together_arrive_aligned_and_in_their_shapes(device: str) -> None:
    numbers = [np.arange(3), np.empty((0, 5), dtype=np.int64), np.arange(6).reshape(2, 3), np.array([7])]
    arrived = to_device_together(numbers, torch.device(device))
    assert [part.tolist() for part in arrived] == [part.tolist() for part in numbers]
    assert {(part.data_ptr() - arrived[0].data_ptr()) % 16 for part in arrived} == {0}


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_fetched_is_what_was_computed_last(device: str) -> None:
    tensor = torch.zeros(1000, 1000, device=device)
    for _ in range(50):
        tensor += 1
    total, flags = to_host(tensor.sum(0), tensor[0] > 49)
    assert total.tolist() == [50_000.0] * 1000
    assert flags.all()
