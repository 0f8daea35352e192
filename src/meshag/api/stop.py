"""When a service is to end: a signal asks for it, a second one presses, a third does not wait."""

import asyncio
import os
import signal

CLOSE_BOUND_S = 5.0
"""How long a service takes at most to close what it holds, after its drain; then it ends without."""


class Stop:
    """SIGTERM asks for a drain; SIGINT, SIGHUP or a second SIGTERM for the end without one; one more is the end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Work is to be handed over."""
        self.pressed = asyncio.Event()
        """Work is to be dropped."""

    def listen(self) -> None:
        """From now on signals come here. Those that are ignored stay so."""
        loop = asyncio.get_running_loop()
        for number, call in ((signal.SIGTERM, self.ask), (signal.SIGINT, self.press), (signal.SIGHUP, self.press)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, call)

    def ask(self) -> None:
        """Drain, then end."""
        if self.asked.is_set():
            self.press()
        self.asked.set()

    def press(self) -> None:
        """End now."""
        if self.pressed.is_set():
            os._exit(128 + signal.SIGINT)
        self.asked.set()
        self.pressed.set()
