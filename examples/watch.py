"""Print what is said in every session, as it happens, until Ctrl-C. A lost connection goes on where it was.

    python examples/watch.py

The mesh is the one at MESHAG_URL (default http://localhost:8084); where it needs an API key, set MESHAG_API_KEY.
"""

import asyncio
from contextlib import aclosing, suppress

import meshag


async def watch() -> None:
    """Print it."""
    async with meshag.AsyncClient() as mesh, aclosing(mesh.events(types=["transcript", "reply"])) as events:
        async for event in events:
            who = "caller" if event.type == "transcript" else "agent"
            print(f"{event.at} {event.session_id} {who}: {event.data['text']}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(watch())
