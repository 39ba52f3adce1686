"""What was predicted to be loaded is kept until it is known, and never too much of it."""

from components.router.predictions import Missing, Predictions


def test_less_than_predicted_tells_what_is_missing() -> None:
    """With the block before each; once."""
    predictions = Predictions()
    predictions.note("r", "w", "lmcache-0", [1, 2, 3, 4, 5], 4)
    assert predictions.check("r", "w", 1) == Missing("lmcache-0", [2, 3, 4], [1, 2, 3])
    assert predictions.check("r", "w", 1) is None
    predictions.note("r", "w", "lmcache-0", [1, 2, 3], 2)
    assert predictions.check("r", "w", 0) == Missing("lmcache-0", [1, 2], [None, 1])


def test_what_was_stored_since_is_not_missing() -> None:
    """The request that missed it has stored it, and its word came first; what was told before is missing all the same."""
    predictions = Predictions()
    predictions.note("other", "w", "lmcache-0", [9], 1)
    predictions.stored([2, 3])
    predictions.note("r", "w", "lmcache-0", [1, 2, 3], 3)
    predictions.stored([3, 4])
    assert predictions.check("r", "w", 0) == Missing("lmcache-0", [1, 2], [None, 1])


def test_as_much_or_more_is_right() -> None:
    """And nothing is kept."""
    predictions = Predictions()
    for cached in (2, 3):
        predictions.note("r", "w", "lmcache-0", [1, 2, 3], 2)
        assert predictions.check("r", "w", cached) is None
    assert len(predictions) == 0


def test_it_never_grows_beyond_its_bound() -> None:
    """The oldest make room; a request noted twice counts once; what has ended takes no room."""
    predictions = Predictions(max_blocks=30)
    for number in range(5):
        predictions.note(f"r{number}", "w", "lmcache-0", list(range(10)), 10)
        predictions.note(f"r{number}", "w", "lmcache-0", list(range(10)), 10)
    assert len(predictions) == 3
    assert predictions.check("r1", "w", 0) is None
    assert predictions.check("r2", "w", 0) is not None
    for number in range(5):
        predictions.forget(f"r{number}")
    predictions.note("long", "w", "lmcache-0", list(range(31)), 31)
    assert len(predictions) == 0
    predictions.note("r", "w", "lmcache-0", list(range(30)), 30)
    assert len(predictions) == 1
