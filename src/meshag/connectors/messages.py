"""What callers may write to a session, the same over every transport: JSON messages, see docs/websocket.md."""

import msgspec

from meshag import clock
from meshag.connectors.contracts import Caller, Conversation
from meshag.errors import MeshError
from meshag.sessions.strict_json import UNSTORABLE

TEXT_CHARS = 4_000
"""The longest typed input."""


class Message(msgspec.Struct):
    """A JSON message of a caller's."""

    type: str
    text: str = ""


async def type_in(caller: Caller, text: str, conversation: Conversation) -> None:
    """Pass on what a caller has typed, or tell the caller why not."""
    text = text.strip()
    if not text or len(text) > TEXT_CHARS or UNSTORABLE.search(text):
        refuse(caller, "text_invalid", f"text must have 1 to {TEXT_CHARS} characters, none of them NUL")
        return
    try:
        await conversation.read(text)
    except MeshError as error:
        refuse(caller, error.code, f"{error}. {getattr(error, 'fix', '')}".strip())


def refuse(caller: Caller, code: str, message: str) -> None:
    """Tell a caller what is wrong with what came."""
    caller.send_event({"type": "error", "t_ms": clock.wall_ns() // clock.MS, "code": code, "message": message})
