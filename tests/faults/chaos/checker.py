"""Reads a history and says what the product has broken of its promises. Pure: lines in, violations out.

lost          a question was not answered to its end, or a piece of an answer is missing
doubled       something was asked, written or said twice
order         pieces of an answer, or answers, out of their order
leak          a caller hears what is another's, or what nobody has said
history       what is remembered is not what was asked and heard
epoch         an owner that was replaced while it was frozen spoke when it woke
journal       something was heard that the journal never stored
left behind   a key, a frame, a session or a process is still there after the end
unseen        a fault that no metric shows
crash         the run itself went wrong
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from faults.chaos.providers import PARTS, PIECES, answer, parts, question

CUT = ("interrupt", "barge")
"""Acts after which the rest of the answer is not to be heard."""

SLACK_PIECES = 6
"""What may be on its way to the caller when the answer is cut."""

SEEN_FREEZE_MS = 1_500
"""A worker that is frozen for less may be back before anybody has noticed."""

SEEN_STORE_MS = 1_000
"""Valkey may be away for less without anybody asking it."""

UNREAD_MS = 5_000
"""What was heard so long before the last that was found on its subject has certainly been looked for."""

NATS_RESEND_MS = 10_000
"""After a connection was lost, what was not acknowledged is sent again, whoever said it."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    rule: str
    session: str
    what: str
    at_ms: float = 0.0


@dataclass
class Asked:
    """A question."""

    number: int
    act: str
    at_ms: float


@dataclass
class Session:
    """What one session's caller did and heard."""

    id: str
    asked: list[Asked] = field(default_factory=list)
    heard: list[Line] = field(default_factory=list)
    events: list[Line] = field(default_factory=list)
    stored: Line | None = None
    frames: list[Line] = field(default_factory=list)
    unanswered: list[Line] = field(default_factory=list)


def sessions_of(history: Iterable[Line]) -> dict[str, Session]:
    """The sessions of a history, by id."""
    found: dict[str, Session] = {}
    for line in history:
        if line["what"] == "fault" or "session" not in line:
            continue
        session = found.setdefault(line["session"], Session(line["session"]))
        match line["what"]:
            case "asked":
                session.asked.append(Asked(line["number"], line["act"], line["at_ms"]))
            case "heard":
                session.heard.append(line)
            case "event":
                session.events.append(line)
            case "stored":
                session.stored = line
            case "frame":
                session.frames.append(line)
            case "unanswered":
                session.unanswered.append(line)
    return found


def check(history: Iterable[Line]) -> list[Violation]:
    """Every broken promise in a history."""
    lines = list(history)
    found: list[Violation] = []
    faults = [line for line in lines if line["what"] == "fault"]
    for session in sessions_of(lines).values():
        found += _unanswered(session)
        found += _heard(session)
        found += _questions(session)
        found += _replies(session)
        found += _remembered(session)
        found += _stored(session)
        found += _epochs(session, faults)
    found += _left(lines)
    found += _unseen(lines, faults)
    found += [Violation("crash", "", line["error"], line["at_ms"]) for line in lines if line["what"] == "crash"]
    return found


# -- what was heard ---------------------------------------------------------------------------------------------------


def _unanswered(session: Session) -> list[Violation]:
    return [
        Violation("lost", session.id, f"question {line['number']}: {line['error'][:120]}", line["at_ms"])
        for line in session.unanswered
    ]


def _heard(session: Session) -> list[Violation]:
    """Each answer's pieces: its own, each once, in order, all of them unless it was cut."""
    found: list[Violation] = []
    own = {asked.number: asked for asked in session.asked}
    pieces: dict[int, list[tuple[int, int]]] = defaultdict(list)
    newest = 0
    for line in session.heard:
        number = line["number"]
        if number == 0:
            continue  # it bridged a wait
        if number not in own:
            what = "noise" if number < 0 else f"piece of answer {number}"
            found.append(Violation("leak", session.id, what, line["at_ms"]))
            continue
        if number < newest:
            found.append(Violation("order", session.id, f"answer {number} after {newest}", line["at_ms"]))
        newest = max(newest, number)
        pieces[number] += [(line["part"], line["first"] + i) for i in range(line["count"])]
    for asked in session.asked:
        found += _pieces(session, asked, pieces[asked.number])
    return found


def _pieces(session: Session, asked: Asked, heard: list[tuple[int, int]]) -> list[Violation]:
    whole = [(part, piece) for part in range(PARTS) for piece in range(PIECES)]
    name = f"answer {asked.number} ({asked.act})"
    if heard == whole or (asked.act in CUT and heard and heard == whole[: len(heard)]):
        return []
    twice = [piece for piece, times in Counter(heard).items() if times > 1]
    if twice:
        return [Violation("doubled", session.id, f"{name}: {len(twice)} pieces from {min(twice)}", asked.at_ms)]
    if heard != sorted(heard):
        return [Violation("order", session.id, f"{name}: pieces out of order", asked.at_ms)]
    return [Violation("lost", session.id, f"{name}: {len(heard)} of {len(whole)} pieces", asked.at_ms)]


# -- what was written -------------------------------------------------------------------------------------------------


def _questions(session: Session) -> list[Violation]:
    """Each spoken question was understood once, in its order."""
    ended = [event["text"] for event in session.events if event["type"] == "turn_ended" and event["text"]]
    spoken = [question(asked.number) for asked in session.asked if asked.act != "typed"]
    times = Counter(ended)
    found = []
    for text in spoken:
        if times[text] > 1:
            found.append(Violation("doubled", session.id, f"turn_ended {times[text]} times: {text}"))
        elif not times[text]:
            found.append(Violation("lost", session.id, f"no turn_ended: {text}"))
    found += [Violation("leak", session.id, f"nobody asked: {text}") for text in times if text not in set(spoken)]
    if not found and ended != spoken:
        found.append(Violation("order", session.id, "questions out of order"))
    return found


def _replies(session: Session) -> list[Violation]:
    """Each turn's chunks, each once, are the answer to one question of this caller, whole unless it was cut."""
    found = []
    texts: dict[int, str] = defaultdict(str)
    next_n: dict[int, int] = defaultdict(int)
    for event in session.events:
        if event["type"] != "reply":
            continue
        turn, n = event["turn"], event["n"]
        if n < next_n[turn]:
            found.append(Violation("doubled", session.id, f"turn {turn}: chunk {n} again", event["at_ms"]))
        elif n > next_n[turn]:
            found.append(Violation("lost", session.id, f"turn {turn}: chunk {next_n[turn]} missing", event["at_ms"]))
        next_n[turn] = n + 1
        if not event["filler"]:
            texts[turn] += event["text"]
    answers = {answer(asked.number).strip(): asked for asked in session.asked}
    seen: Counter[int] = Counter()
    for turn, text in texts.items():
        text = text.strip()
        fits = [asked for whole, asked in answers.items() if text and whole.startswith(text)]
        if not fits:
            rule = "doubled" if any(whole in text or text.startswith(whole[:40]) for whole in answers) else "leak"
            found.append(Violation(rule, session.id, f"turn {turn} is no answer: {text[:160]}"))
            continue
        seen[fits[0].number] += 1
        if fits[0].act not in CUT and text not in answers:
            found.append(Violation("lost", session.id, f"turn {turn} stops after: {text[-40:]}"))
    found += [Violation("doubled", session.id, f"{n} answered {times} times") for n, times in seen.items() if times > 1]
    return found


def _remembered(session: Session) -> list[Violation]:
    """The history holds each question once, with what was heard of its answer."""
    if session.stored is None or not session.asked:
        return []
    at_ms = session.stored["at_ms"]
    if not isinstance(session.stored["turns"], list):
        return [Violation("history", session.id, f"cannot be read: {session.stored['turns']}", at_ms)]
    found = []
    turns = session.stored["turns"]
    users = [turn["user"] for turn in turns if turn["user"]]
    wanted = [question(asked.number) for asked in session.asked]
    if users != wanted:
        missing, more = Counter(wanted) - Counter(users), Counter(users) - Counter(wanted)
        found.append(Violation("history", session.id, f"missing {dict(missing)}, too many {dict(more)}", at_ms))
    heard: Counter[int] = Counter()
    for line in session.heard:
        heard[line["number"]] += line["count"]
    by_user = {turn["user"]: turn["reply"] for turn in turns}
    for asked in session.asked:
        reply = by_user.get(question(asked.number))
        if reply is None:
            continue
        least, most = _text_bounds(asked.number, heard[asked.number])
        if not answer(asked.number).startswith(reply) or not least <= len(reply.rstrip()) <= most:
            what = f"answer {asked.number}: {heard[asked.number]} pieces heard, {len(reply)} characters kept"
            found.append(Violation("history", session.id, f"{what}, not {least} to {most}", at_ms))
    return found


def _text_bounds(number: int, pieces: int) -> tuple[int, int]:
    """How many characters of the answer have been heard: at least, at most.

    At most: the whole part that was being heard. How long a part will be is not known while its voice still speaks.
    """
    texts = parts(number)

    def chars(pieces: int) -> int:
        done, rest = divmod(max(0, pieces), PIECES)
        whole = "".join(texts[:done])
        if done >= len(texts):
            return len(whole.rstrip())
        part = texts[done][: len(texts[done]) * rest // PIECES]
        return len(whole) + part.rfind(" ") if " " in part else len(whole.rstrip())

    most = -(-min(pieces + SLACK_PIECES, PARTS * PIECES) // PIECES)
    return chars(pieces - SLACK_PIECES), len("".join(texts[:most]).rstrip())


# -- what was stored --------------------------------------------------------------------------------------------------


def _stored(session: Session) -> list[Violation]:
    """All that was heard on the turn plane is in the journal."""
    read_ms: dict[str, float] = defaultdict(float)
    for frame in session.frames:
        if frame["stored"]:
            read_ms[frame["subject"]] = max(read_ms[frame["subject"]], frame["stored_ms"] - UNREAD_MS)
    return [
        Violation("journal", session.id, f"{frame['kind']} on {frame['subject']} was not stored", frame["stored_ms"])
        for frame in session.frames
        if not frame["stored"] and frame["subject"] != "tts.output" and frame["stored_ms"] < read_ms[frame["subject"]]
    ]


def _epochs(session: Session, faults: list[Line]) -> list[Violation]:
    """Who was replaced while frozen says nothing after it."""
    found = []
    nats = [fault for fault in faults if fault["kind"].startswith("nats")]
    for fault in faults:
        at_ms, until_ms, stage = fault["at_ms"], fault["until_ms"], fault["stage"]
        if fault["kind"] != "frozen" or session.id not in fault["sessions"]:
            continue
        if any(other["at_ms"] < until_ms + NATS_RESEND_MS and other["until_ms"] > at_ms for other in nats):
            continue
        epochs = [
            event["epoch"]
            for event in session.events
            if event["type"] == "owner_changed" and event["stage"] == stage and at_ms < event["t_ms"] < until_ms
        ]
        for frame in session.frames if epochs else ():
            late = frame["stored_ms"] > until_ms and frame["epoch"] < min(epochs)
            if frame["subject"] == f"{stage}.output" and late:
                what = f"{stage} of epoch {frame['epoch']} spoke after it was replaced: {frame['kind']}"
                found.append(Violation("epoch", session.id, what, frame["stored_ms"]))
    return found


# -- after it, and from outside ---------------------------------------------------------------------------------------


def _left(lines: list[Line]) -> list[Violation]:
    found = []
    for line in lines:
        if line["what"] != "left":
            continue
        for what in ("keys", "frames", "processes"):
            found += [Violation("left behind", "", f"{what}: {one}", line["at_ms"]) for one in line.get(what, ())]
        owned = line.get("owned", {})
        found += [Violation("left behind", "", f"{name} owns {n}", line["at_ms"]) for name, n in owned.items() if n]
    return found


def _unseen(lines: list[Line], faults: list[Line]) -> list[Violation]:
    """What the transport service counted: it is never killed, so that its counters are all there."""
    metrics = [line for line in lines if line["what"] == "metrics" and line["service"] == "transport"]
    if not metrics:
        return [Violation("unseen", "", "no metrics at all")] if faults else []
    first, last = metrics[0]["values"], {}
    for line in metrics:
        last.update(line["values"])

    def grown(name: str, label: str = "") -> float:
        return sum(v - first.get(k, 0) for k, v in last.items() if k.startswith(name) and label in k)

    found = []
    for stage in ("stt", "llm", "tts"):
        hit = [f for f in faults if f["stage"] == stage]
        due = [f for f in hit if f["kind"] != "frozen" or f["until_ms"] - f["at_ms"] > SEEN_FREEZE_MS]
        gone = grown("meshag_workers_gone_total", f'stage="{stage}"')
        if gone < len(due):
            found.append(Violation("unseen", "", f"{len(due)} {stage} workers went, {gone:.0f} were counted"))
    lost = [f for f in faults if f["kind"] == "nats killed"]
    if grown("meshag_bus_reconnects_total") < len(lost):
        found.append(Violation("unseen", "", f"NATS went {len(lost)} times, fewer reconnects were counted"))
    for fault in faults:
        if fault["kind"] not in ("valkey killed", "valkey frozen", "valkey half-open", "valkey slow"):
            continue
        if fault["until_ms"] - fault["at_ms"] > SEEN_STORE_MS and not _store_suffered(metrics, fault):
            found.append(Violation("unseen", "", f"{fault['kind']}: no metric of Valkey's moved", fault["at_ms"]))
    return found


def _store_suffered(metrics: list[Line], fault: Line) -> bool:
    """Whether calls failed, or together waited for a tenth of a second or more, from the fault until 5 s after it."""
    before: dict[str, float] = {}
    grown: Counter[str] = Counter()
    for line in metrics:
        within = fault["at_ms"] < line["at_ms"] < fault["until_ms"] + 5_000
        for name, value in line["values"].items():
            if within and name.startswith("meshag_store_"):
                grown[name] += value - before.get(name, 0)
            before[name] = value
    return grown["meshag_store_failures_total"] > 0 or grown["meshag_store_seconds_sum"] > 0.1
