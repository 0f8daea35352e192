"""`python -m bench [NAME]`: run a benchmark, print its JSON."""

import sys
from importlib import import_module

BENCHMARKS = {
    "calls": "added latency and CPU per call at several numbers of concurrent calls (the default)",
    "failover": "every fault at every stage: was the turn answered, and the silence it added",
    "tokens": "CPU per streamed token of our language-model connectors and of the vendors' SDKs",
}


def main() -> None:
    """Dispatch to `bench.<name>.main`."""
    words = sys.argv[1:]
    if words and words[0] in ("-h", "--help"):
        print("usage: python -m bench [NAME] [--help]\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:<8} {what}")
        return
    name = words.pop(0) if words and words[0] in BENCHMARKS else "calls"
    import_module(f"bench.{name}").main(words)


if __name__ == "__main__":
    main()
