"""Faults in a real mesh that carries scripted calls, and a checker of what came of them. See docs/faults.md.

    python -m faults.chaos run --seconds 60 --seed 7
    python -m faults.chaos mutants

providers   what the callers hear says who they are, which answer it is and where in it
caller      asks numbered questions and writes down all that comes back
proxy       a TCP proxy that is slow, silent, narrow or broken when told to
nemesis     breaks things, with a seed
run         all of it together: leaves a history (JSON lines) and a recording of each session
checker     reads a history, knows nothing of the rest
mutants     the product with one rule broken: the checker has to notice
"""
