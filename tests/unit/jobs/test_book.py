"""Who gets a job, when a lease ends, and whose fence token is good."""

from hypothesis import given
from hypothesis import strategies as st

from components.jobs.book import ANY, Book, Fences, Worker


def test_the_freest_worker_gets_the_job() -> None:
    """By the share of its capacity that is free; paused, draining and silent ones get none."""
    book = Book(lease_s=10)
    small, large = Worker("small", "c", 1), Worker("large", "c", 4)
    for worker in (small, large):
        book.join(worker)
    book.assign(large, "j1", "f1", 0)
    assert book.pick("c") is small
    small.paused = True
    assert book.pick("c") is large
    large.silent = True
    assert book.pick("c") is None
    assert book.free("c") == 0
    large.silent, large.draining = False, True
    assert book.pick("c") is None
    assert [worker.id for worker in book.serving("c")] == ["small"]


def test_configs_keep_jobs_apart() -> None:
    """Except for jobs without one, which go to anybody."""
    book = Book(lease_s=10)
    worker = Worker("w", "c", 1)
    book.join(worker)
    assert book.pick("other") is None
    assert book.pick("c") is book.pick(ANY) is worker


def test_leases_end_unless_renewed() -> None:
    """Each by its own time; the end of an assignment frees its slot, once."""
    book = Book(lease_s=10)
    worker = Worker("w", "c", 2)
    book.join(worker)
    one, other = book.assign(worker, "j1", "f1", 0), book.assign(worker, "j2", "f2", 0)
    book.renew(one, 5)
    assert book.expired(9.9) == []
    assert book.expired(10) == [other]
    book.end(other)
    book.end(other)
    assert (worker.free, book.expired(15)) == (1, [one])
    assert book.leave("w") == [one]
    assert book.leave("w") == []


def test_an_old_assignment_does_not_free_a_new_one() -> None:
    """The same job, given to the same worker again."""
    book = Book(lease_s=10)
    worker = Worker("w", "c", 1)
    book.join(worker)
    before = book.assign(worker, "j", "f1", 0)
    book.end(before)
    book.assign(worker, "j", "f2", 0)
    book.end(before)
    assert worker.free == 0


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 2**63), st.integers(1, 1000))
def test_a_fence_token_is_good_for_its_job_and_worker_only(job: str, worker: str, number: int, attempt: int) -> None:
    """And says which delivery it was made for; another key's tokens are strangers'."""
    fences = Fences(b"key")
    fence = fences.make(job, worker, number, attempt)
    assert fences.read(fence, job, worker) == (number, attempt)
    assert fences.read(fence, job + "x", worker) is None
    assert fences.read(fence, job, worker + "x") is None
    assert fences.read(fence + "0", job, worker) is None
    assert Fences(b"other").read(fence, job, worker) is None


@given(st.text())
def test_any_text_may_be_sent_as_a_fence_token(text: str) -> None:
    """It is not good, and that is all."""
    assert Fences(b"key").read(text, "job", "worker") is None
