"""What a turn gives a job."""

from gateway.generation import Generation
from gateway.scheduling.job import Job
from gateway.scheduling.turn import Share, Turn


def turn(*, tokens: int = 100, prompt_tokens: int = 100) -> Turn:
    return Turn(8, tokens, prompt_tokens, 100, cold_open=True)


def job(prompt: int, output: int = 0) -> Job:
    """All of its tokens but the last output are computed, if there is one."""
    made = Job(1, Generation(prompt=[7] * prompt, max_tokens=9), arrival=0.0, output=[8] * output)
    made.computed = prompt + output - 1 if output else 0
    return made


def test_a_job_that_decodes_gets_its_token() -> None:
    assert turn(prompt_tokens=0).share(job(5, output=2)) == Share(1, prefills=False, gives=True)


def test_a_prompt_that_fits_is_computed_whole_and_gives_a_token() -> None:
    assert turn().share(job(5)) == Share(5, prefills=True, gives=True)


def test_a_part_of_a_prompt_gives_none() -> None:
    assert turn(prompt_tokens=3).share(job(5)) == Share(3, prefills=True, gives=False)
    assert turn(tokens=4).share(job(5)) == Share(4, prefills=True, gives=False)


def test_the_last_part_gives_one() -> None:
    begun = job(5)
    begun.computed = 3
    assert turn(prompt_tokens=3).share(begun) == Share(2, prefills=True, gives=True)


def test_a_prompt_of_one_token_is_a_prompt() -> None:
    assert turn().share(job(1)) == Share(1, prefills=True, gives=True)


def test_nothing_is_left_where_the_budget_is_spent() -> None:
    assert turn(tokens=0).share(job(5, output=2)).tokens == 0
    assert turn(prompt_tokens=0).share(job(5)).tokens == 0


def test_what_is_taken_is_missing_from_the_budget() -> None:
    one, cold, warm = turn(tokens=10, prompt_tokens=6), job(4), job(5, output=2)
    one.take(cold, one.share(cold), 2)
    one.take(warm, one.share(warm), 1)
    assert (one.jobs_left, one.tokens_left, one.prompt_tokens_left, one.blocks_left) == (6, 5, 2, 97)
    assert [(share.tokens, share.prefills) for share in one.batch.values()] == [(4, True), (1, False)]
