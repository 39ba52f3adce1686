"""Records and long objects on a real NATS server."""

from pathlib import Path

import pytest

from components.bus.client import Bus, BusError, TooLongError
from components.bus.records import Keeping, Objects, Records
from components.wire.messages import Cancel
from components.wire.subjects import Subjects
from tests.support.answers import Answered
from tests.support.nats import RestartableNats, nats_server

KEEPING = Keeping(3600, 1024**3)


async def test_a_record_is_written_once(tmp_path: Path) -> None:
    """The first stays, until it is deleted; the newest are listed; NATS's own tools see a bucket."""
    async with nats_server(tmp_path) as nats:
        bus = await Bus.connect(nats, "test")
        records = await Records.open(bus, Subjects("g"), "things", Cancel, KEEPING)
        assert await records.get("a.b/c") is None
        assert await records.create("a.b/c", Cancel(["1"]))
        assert not await records.create("a.b/c", Cancel(["2"]))
        assert await records.get("a.b/c") == Cancel(["1"])
        for number in range(3):
            await records.create(f"n{number}", Cancel([str(number)]))
        assert await records.newest(2) == [Cancel(["2"]), Cancel(["1"])]
        bucket = await bus.client.jetstream().key_value("penstock_g_things")
        assert (await bucket.get("n1")).value
        assert await records.delete("a.b/c")
        assert not await records.delete("a.b/c")
        assert await records.create("a.b/c", Cancel(["3"]))
        others = await Records.open(bus, Subjects("g"), "things", Answered, KEEPING)
        with pytest.raises(BusError, match="cannot be read"):
            await others.get("n1")
        with pytest.raises(TooLongError):
            await records.create("long", Cancel(["x" * bus.max_payload_bytes]))
        await bus.close()


async def test_objects_may_be_longer_than_messages(tmp_path: Path) -> None:
    """Whatever their names; they survive their server."""
    async with RestartableNats(tmp_path) as nats:
        bus = await Bus.connect(nats.settings, "test")
        objects = await Objects.open(bus, Subjects("g"), "long", KEEPING)
        data = bytes(range(256)) * 50_000
        await objects.put("a/b c", data)
        assert await objects.has("a/b c")
        await bus.close()
        await nats.kill()
        await nats.start()
        bus = await Bus.connect(nats.settings, "test")
        objects = await Objects.open(bus, Subjects("g"), "long", Keeping(60, 1024**2))
        assert await objects.get("a/b c") == data
        await objects.delete("a/b c")
        await objects.delete("never was")
        assert await objects.get("a/b c") is None
        assert not await objects.has("a/b c")
        await bus.close()
