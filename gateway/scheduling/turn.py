"""The throw-away budget of one turn: what a plan may still take, and what was decided so far."""

from dataclasses import dataclass, field

import msgspec

from gateway.scheduling.job import Job, Residence

# Jobs without KV that may be passed over for memory in one turn before the turn stops looking at more of them.
LOOKAHEAD = 16
# Turns that a job can be passed over before nobody behind it may start: smaller jobs must not starve it.
PATIENCE = 64


class Share(msgspec.Struct, frozen=True):
    """What a plan computes of a job."""

    tokens: int
    prefills: bool
    gives: bool  # the job's next token


_DECODE = Share(1, prefills=False, gives=True)
_NOTHING = Share(0, prefills=False, gives=False)


@dataclass(slots=True)
class Turn:
    """Filled by the scheduler's walk in policy order; nothing here changes a job or a block."""

    jobs_left: int
    tokens_left: int
    prompt_tokens_left: int  # of those, for jobs that prefill
    blocks_left: int
    cold_open: bool  # jobs without KV may still be taken
    batch: dict[Job, Share] = field(default_factory=dict)
    blocked: list[Job] = field(default_factory=list)  # would run, but for missing device blocks; in policy order
    shortage: int = 0  # the blocks that the first of them was short of
    _passed: int = 0

    def share(self, job: Job) -> Share:
        """What the job may compute: all its tokens, or the first chunk of them. None are left where it has none."""
        if not job.prefills:
            return _DECODE if self.tokens_left else _NOTHING
        pending = job.pending
        tokens = min(pending, self.prompt_tokens_left, self.tokens_left)
        return Share(tokens, prefills=True, gives=tokens == pending)

    def take(self, job: Job, share: Share, blocks: int) -> None:
        self.batch[job] = share
        self.jobs_left -= 1
        self.tokens_left -= share.tokens
        self.prompt_tokens_left -= share.tokens if share.prefills else 0
        self.blocks_left -= blocks

    def block(self, job: Job, blocks: int) -> None:
        """`job` needs more blocks than are left."""
        if not self.blocked:
            self.shortage = blocks - self.blocks_left
        self.blocked.append(job)
        self.pass_over(job)

    def pass_over(self, job: Job) -> None:
        """`job` does not fit. Those behind it may, but not without bound."""
        job.passed_over += 1
        self._passed += 1
        if job.residence is Residence.NOWHERE and (self._passed > LOOKAHEAD or job.passed_over > PATIENCE):
            self.cold_open = False
