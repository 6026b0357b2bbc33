"""`priority`: within a level lower runs first. It delays; it neither decides between levels nor shuts anybody out."""

from fakes import COST_FOR_MACHINES, Drive, scheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.scheduling.cost import LinearCost
from gateway.scheduling.job import Job

COST = LinearCost(decode=1.0, prefill_per_token=1.0)
Asked = tuple[int, int, int]  # iterations before the job comes, tokens of its prompt, of its output
ASKED = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=12)


def one_place(**options: float) -> Drive:
    return Drive(scheduler(COST, policy="skip-join", max_batch_jobs=1, **options), COST)


def test_among_jobs_of_a_level_the_lower_priority_runs_first() -> None:
    run = one_place()
    for job_id, priority in enumerate((2, 0, 1, 0)):
        run.submit(job_id, 1, 1, priority=priority)
    run.run()
    assert run.schedule == [[1], [3], [2], [0]]


def test_a_higher_level_comes_before_any_priority() -> None:
    run = one_place()
    run.submit(0, 8, 1, priority=0)  # joins level 3
    run.submit(1, 1, 1, priority=9)  # joins level 0
    run.run()
    assert run.schedule == [[1], [0]]


def test_a_demoted_job_stands_by_its_priority_in_the_level_below() -> None:
    run = one_place(aging=0.0)
    run.submit(0, 1, 2, priority=1)
    run.step()  # uses up level 0
    run.submit(1, 2, 1, priority=0)  # joins level 1
    run.run()
    assert run.schedule == [[0], [1], [0]]


def iterations_until_served(priority: int, aging: float) -> int | None:
    """Of a job that others, a new one in each iteration, always come before."""
    run = one_place(aging=aging)
    patient = run.submit(0, 1, 1, priority=priority)
    for job_id in range(1, 200):
        run.submit(job_id, 1, 1)
        run.step()
        if patient.finish_reason is not None:
            return job_id
    return None


def test_a_stream_of_others_delays_a_job_but_does_not_shut_it_out() -> None:
    assert iterations_until_served(priority=0, aging=8.0) == 1
    delayed = iterations_until_served(priority=1, aging=8.0)
    assert delayed is not None
    assert 8 < delayed < 40
    assert iterations_until_served(priority=2**31, aging=8.0) == delayed


def test_only_aging_promotes_past_a_priority() -> None:
    assert iterations_until_served(priority=1, aging=0.0) is None


def test_a_promoted_job_returns_to_its_level_and_priority() -> None:
    run = one_place(aging=2.0)
    patient = run.submit(0, 1, 40, priority=3)
    for job_id in range(1, 30):
        run.submit(job_id, 1, 1)
        run.step()
    assert patient.counts.promotions
    assert patient.rank[:2] in {(0.0, 3), (0.0, 0)}
    run.run()
    assert patient.finish_reason == "length"


def played(asked: list[Asked], priorities: list[int], **options: float) -> Drive:
    run = Drive(scheduler(COST_FOR_MACHINES, max_batch_jobs=2, **options), COST_FOR_MACHINES)
    for job_id, (iterations, prompt, output) in enumerate(asked):
        for _ in range(iterations):
            run.step()
        run.submit(job_id, prompt, output, priority=priorities[job_id % len(priorities)])
    run.run()
    return run


@given(ASKED, st.integers(1, 2**31))
@settings(max_examples=100, deadline=None)
def test_one_priority_for_all_changes_nothing(asked: list[Asked], priority: int) -> None:
    assert played(asked, [priority], aging=0.0).schedule == played(asked, [0], aging=0.0).schedule


@given(ASKED, st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_with_any_priorities_every_job_ends(asked: list[Asked], priorities: list[int]) -> None:
    run = played(asked, priorities)
    assert run.finished_at.keys() == set(range(len(asked)))


@given(ASKED, st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_nobody_waits_for_a_job_behind_him(asked: list[Asked], priorities: list[int]) -> None:
    """All memory is there: whoever runs stands before whoever waits, by level and priority."""
    run = Drive(scheduler(COST, max_batch_jobs=1, aging=0.0), COST)
    jobs: list[Job] = []
    for job_id, (_, prompt, output) in enumerate(asked):
        jobs.append(run.submit(job_id, prompt, output, priority=priorities[job_id % len(priorities)]))
    while any(job.finish_reason is None for job in jobs):
        places = {job: (job.level, job.generation.priority) for job in jobs if job.finish_reason is None}
        run.step()
        [served] = run.schedule[-1]
        assert places[jobs[served]] == min(places.values())
