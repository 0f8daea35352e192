"""What was said against what was heard."""

import re


def words(text: str) -> list[str]:
    """Lower case, without punctuation."""
    return re.sub(r"[^a-z' ]+", " ", text.lower()).split()


def errors(said: str, heard: str) -> int:
    """Words to change, add or take away to get from one to the other."""
    a, b = words(said), words(heard)
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
