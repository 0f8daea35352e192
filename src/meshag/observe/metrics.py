"""What Prometheus reads on every `/metrics`. Labels are bounded: never a session id, never what was said."""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

OWNED = Gauge("meshag_sessions_owned", "Sessions that this worker owns.", ["stage"])
CAPACITY = Gauge("meshag_sessions_capacity", "Sessions that this worker takes.", ["stage"])
CLAIMS = Counter("meshag_claims_total", "Claims answered, by result.", ["stage", "result"])
TAKEOVERS = Counter("meshag_takeovers_total", "Sessions taken over from a former owner.", ["stage"])
TAKEOVER_SECONDS = Histogram("meshag_takeover_seconds", "From the claim to work going on.", ["stage"], buckets=SECONDS)
TURNS = Counter("meshag_turns_total", "Turns that a stage has finished, by result.", ["stage", "provider", "result"])
FAILURES = Counter("meshag_failures_total", "Turns that a stage could not do, by error code.", ["stage", "code"])
PROVIDER_FAILURES = Counter(
    "meshag_provider_failures_total", "Provider calls that failed, by error code.", ["stage", "provider", "code"]
)
FIRST_ITEM_SECONDS = Histogram(
    "meshag_first_item_seconds", "From a provider call to its first item.", ["stage", "provider"], buckets=SECONDS
)
INTERRUPTIONS = Counter("meshag_interruptions_total", "Replies that the caller interrupted.")
FRAMES = Counter(
    "meshag_frames_total",
    "Frames that did not come straight: healed from the journal, lost, or stale ones of a replaced owner that were "
    "dropped. Counted when their session is let go.",
    ["stage", "fate"],
)
WORKERS_GONE = Counter(
    "meshag_workers_gone_total",
    "Workers that this one has seen go: their connection closed, they were silent, or they left in order.",
    ["stage", "how"],
)
BUS_RECONNECTS = Counter("meshag_bus_reconnects_total", "Times that the connection to NATS was lost and came back.")
STORE_SECONDS = Histogram("meshag_store_seconds", "Valkey's answers.", buckets=SECONDS)
STORE_FAILURES = Counter("meshag_store_failures_total", "Calls that Valkey did not answer, or refused.")
CALLS = Gauge("meshag_calls", "Callers connected to this transport worker.")
VOICE_TO_VOICE_SECONDS = Histogram(
    "meshag_voice_to_voice_seconds",
    "From the end of the caller's speech to the first agent audio leaving.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
)

BREAKER = Gauge("meshag_provider_breaker", "0: in use, 1: open, it failed, 2: switched off.", ["stage", "provider"])
BREAKERS_OPENED = Counter(
    "meshag_provider_breaker_opened_total",
    "Breakers that this worker opened, by error code.",
    ["stage", "provider", "code"],
)
PROBES = Counter(
    "meshag_provider_probes_total", "Probes of open providers, by result.", ["stage", "provider", "result"]
)
TOKENS = Counter("meshag_llm_tokens_total", "Tokens that models read (in) and wrote (out).", ["provider", "direction"])
DRAFTS = Counter(
    "meshag_drafts_total",
    "Answers begun before the caller had certainly finished: used, or dropped because the caller went on.",
    ["result"],
)
TOOL_CALLS = Counter("meshag_tool_calls_total", "Functions that models called, by result.", ["result"])
WEBHOOKS = Counter(
    "meshag_webhooks_total",
    "Events that are done with: delivered, refused by the receiver, or expired undelivered.",
    ["result"],
)
WEBHOOK_FAILURES = Counter(
    "meshag_webhook_failures_total", "Deliveries that failed, by HTTP status or `unreachable`.", ["status"]
)
