"""An answer begun before it is certain that the caller has finished, for recognisers that say when that is likely.

Nobody hears it until the turn has ended with the same words; otherwise it is thrown away.
"""

from collections.abc import AsyncGenerator

from meshag.connectors.contracts import LlmConnector, LlmEvent
from meshag.connectors.failover import Candidate, Runner

AHEAD = 4_096
"""Events that wait for the turn's end; a model that writes on then waits for it, too."""


class Draft:
    """A model's answer to what the caller has probably said. It is made at once, in a task of its own."""

    def __init__(
        self,
        text: str,
        version: int,
        candidate: Candidate[LlmConnector],
        events: AsyncGenerator[LlmEvent, None],
    ) -> None:
        """`version`: of the configuration that it is made with."""
        self._words = _words(text)
        self._version = version
        self._candidate = candidate
        self._runner: Runner[LlmConnector, LlmEvent] = Runner(candidate, events, ahead=AHEAD)

    def answers(self, text: str) -> bool:
        """Whether it answers these words, whatever their points and capitals."""
        return _words(text) == self._words

    def suits(self, text: str, version: int, candidate: Candidate[LlmConnector] | None) -> bool:
        """Whether it is what would be asked for now."""
        return self.answers(text) and version == self._version and candidate == self._candidate

    async def events(self) -> AsyncGenerator[LlmEvent, None]:
        """What the model says, from the beginning. Raises as the model does."""
        try:
            while (event := await self._runner.items.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Throw it away. Idempotent."""
        await self._runner.close()


def _words(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
