"""`python -m meshag` is the `meshag` command."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports below ends us without a traceback

if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
    del sys.path[0]  # a stray inspect.py in the user's directory must not stand in for Python's own

from meshag.cli import main

if __name__ == "__main__":
    main()
