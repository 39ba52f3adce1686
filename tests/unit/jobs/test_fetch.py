"""Where a URL in a frame may lead."""

import pytest

from components.jobs.fetch import Fetcher, FetchError, ForbiddenUrlError


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8789/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "ftp://queue.example/",
        "http://user:password@queue.example/",
        "http://",
        "http://[",
        "http://a:b/",
        "",
    ],
)
async def test_private_addresses_are_not_visited(url: str) -> None:
    """Nor anything that is not plain HTTP."""
    async with Fetcher("http://127.0.0.1:8788", "token") as fetcher:
        for work in (fetcher.get(url), fetcher.put(url, b"")):
            with pytest.raises(ForbiddenUrlError):
                await work


@pytest.mark.parametrize("name", ["localhost", "localhost.localdomain"])
async def test_names_of_private_addresses_are_not_visited(name: str) -> None:
    """They are checked when they are resolved, so that a name cannot change its mind."""
    async with Fetcher("http://127.0.0.1:8788", "token") as fetcher:
        with pytest.raises(FetchError):
            await fetcher.get(f"http://{name}:8788/")
