"""Tell every caller who is connected something, after what the agent is saying to them.

    python examples/announce.py "This line closes in ten minutes."

The mesh is the one at MESHAG_URL (default http://localhost:8084); where it needs an API key, set MESHAG_API_KEY.
"""

import sys

import meshag
from meshag.client import Conflict, InvalidRequest, NotFound


def announce(mesh: meshag.Client, text: str) -> int:
    """Say it to everybody; how many were told."""
    told = 0
    for session in mesh.list(status="live"):
        try:
            mesh.say(session.session_id, text, interrupt=False)
            told += 1
        except (Conflict, NotFound):
            pass  # has hung up meanwhile
        except InvalidRequest:
            print(f"{session.session_id} has no voice", file=sys.stderr)
    return told


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit('usage: python examples/announce.py "what is to be said"')
    print(f"told {announce(meshag.Client(), sys.argv[1])} callers")
