"""A TCP proxy in front of a server, that spoils the connections through it when it is told to."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
_READ_BYTES = 16 * 1024


@dataclass
class Spoil:
    """What happens to bytes on their way, in both directions. As it is made: nothing."""

    delay_s: float = 0.0
    """Each piece arrives this much later."""

    bytes_per_s: int = 0
    """No more than this a second; 0: as many as there are."""

    swallow: bool = False
    """Nothing arrives any more and nobody is told: a half-open connection. It stays so when this is mended."""

    refuse: bool = False
    """New connections are closed at once."""


class Proxy:
    """Listens on a port of its own, in a thread of its own. `start`, then set `spoil` as you like, then `stop`."""

    def __init__(self, port: int) -> None:
        """`port`: of the server behind it, on this machine."""
        self._target = port
        self.port = 0
        self.spoil = Spoil()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self.passed_bytes = 0

    def start(self) -> "Proxy":
        """Listen."""
        self._thread.start()
        self._do(self._listen())
        return self

    def stop(self) -> None:
        """Close everything."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> int:
        """Break every connection with an RST. Returns how many there were."""
        return self._do(self._reset())

    def mend(self) -> None:
        """Spoil nothing from now on; what was swallowed stays lost, and its connections are broken."""
        silent = self.spoil.swallow
        self.spoil = Spoil()
        if silent:
            self.reset()

    # -- in its thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _reset(self) -> int:
        pairs = list(self._open.items())
        for task, writers in pairs:
            for writer in writers:
                writer.transport.abort()
            task.cancel()
        return len(pairs)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._open)
        await self._reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.spoil.refuse:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(HOST, self._target)
            self._open[task] = (writer, there)
            ways = [asyncio.create_task(self._pass(reader, there)), asyncio.create_task(self._pass(back, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.pop(task, None)
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way of a connection, piece after piece, each as late as it has to be."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        sending = asyncio.create_task(self._send(queue, writer))
        try:
            while not sending.done() and (piece := await reader.read(_READ_BYTES)):
                if not self.spoil.swallow:
                    await queue.put((self._loop.time() + self.spoil.delay_s, piece))
            while not queue.empty() and not sending.done():
                await asyncio.sleep(0.005)
        except OSError:
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due_s, piece = await queue.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while piece:
                rate = self.spoil.bytes_per_s
                now, piece = (piece[: max(1, rate // 50)], piece[max(1, rate // 50) :]) if rate else (piece, b"")
                writer.write(now)
                self.passed_bytes += len(now)
                await writer.drain()
                if rate:
                    await asyncio.sleep(len(now) / rate)
