"""Static batches: nobody joins until every job of the batch is done (FasterTransformer)."""

from gateway.scheduling.policies.fcfs import FirstComeFirstServed


class StaticBatches(FirstComeFirstServed):
    def opens(self, num_started: int) -> bool:
        return num_started == 0
