"""The JetStream streams, declared in one place and again after every reconnect.

Two classes, by what losing a message would cost:
    media   caller and agent audio: memory, the last minute, published without waiting
    turn    transcripts, reply chunks, control: file, acknowledged, deduplicated by message id

And two of their own kind: what is known of the providers, the newest message of each subject alone, for as long as
nobody says otherwise; and what happens to sessions, for those who watch.
"""

import asyncio
import random

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from meshag import subjects
from meshag.errors import BusError

MEDIA_AGE_S = 60
"""Media frames are kept this long: the longest utterance that a takeover can hear again."""

TURN_AGE_S = 3600
"""Turn messages are kept this long; a session's own are purged when it ends."""

MEDIA_PER_SUBJECT = 4_000
TURN_PER_SUBJECT = 10_000
MEDIA_BYTES = 128 * 1024 * 1024

EVENT_AGE_S = 3600
"""Session events are kept this long, what was said in them included, also after the session's end."""

EVENT_BYTES = 256 * 1024 * 1024
"""And no more of them than this. Only ever the oldest go, so that a hole in their numbers is a loss."""

OURS = ("subjects", "storage", "max_age", "max_msgs_per_subject", "max_bytes", "num_replicas", "allow_direct")
"""The parts of a stream's configuration that must be ours; a server adds others of its own."""

ATTEMPTS = 10


def _config(name: str, replicas: int) -> StreamConfig:
    if name == subjects.PROVIDERS:
        return StreamConfig(
            name=name,
            subjects=[subjects.STREAMS[name]],
            storage=StorageType.FILE,
            max_age=0,
            max_msgs_per_subject=1,
            max_bytes=-1,
            discard=DiscardPolicy.OLD,
            num_replicas=replicas,
            allow_direct=True,
        )
    if name == subjects.EVENTS:
        return StreamConfig(
            name=name,
            subjects=[subjects.STREAMS[name]],
            storage=StorageType.FILE,
            max_age=EVENT_AGE_S,
            max_msgs_per_subject=-1,
            max_bytes=EVENT_BYTES,
            discard=DiscardPolicy.OLD,
            duplicate_window=120,
            num_replicas=replicas,
            allow_direct=True,
        )
    media = name in subjects.MEDIA
    return StreamConfig(
        name=name,
        subjects=[subjects.STREAMS[name]],
        storage=StorageType.MEMORY if media else StorageType.FILE,
        max_age=MEDIA_AGE_S if media else TURN_AGE_S,
        max_msgs_per_subject=MEDIA_PER_SUBJECT if media else TURN_PER_SUBJECT,
        max_bytes=MEDIA_BYTES if media else -1,
        discard=DiscardPolicy.OLD,
        duplicate_window=MEDIA_AGE_S if media else 120,
        num_replicas=1 if media else replicas,
        allow_direct=True,
    )


async def declare(client: Client, replicas: int = 1) -> None:
    """Make every stream that is missing; bring the others to this configuration. Raises BusError.

    Safe to call from every process at once. A stream that has more replicas keeps them.
    """
    jetstream = client.jetstream(timeout=5)
    for name in subjects.STREAMS:
        try:
            await _declare(jetstream, _config(name, replicas))
        except nats.js.errors.ServiceUnavailableError as error:
            raise BusError("JetStream is not enabled on this NATS server: start nats-server with -js") from error
        except (nats.errors.Error, OSError) as error:
            raise BusError(f"NATS does not make the stream {name}: {error}") from error


async def _declare(jetstream: JetStreamContext, config: StreamConfig) -> None:
    for attempt in range(ATTEMPTS):
        try:
            try:
                there = (await jetstream.stream_info(config.name or "")).config
                config.num_replicas = max(config.num_replicas or 1, there.num_replicas or 1)
            except nats.js.errors.NotFoundError:
                await jetstream.add_stream(config)
            else:
                if any(getattr(there, part) != getattr(config, part) for part in OURS):
                    await jetstream.update_stream(config)
            return
        except nats.js.errors.APIError as error:
            # Two that declare at once reserve its memory twice for a moment (10028), or find it made meanwhile (10058).
            if error.err_code not in (10028, 10058) or attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.2))


async def purge(client: Client, subject: str) -> None:
    """Delete what the journal holds for one subject."""
    try:
        await client.jetstream(timeout=5).purge_stream(subjects.stream_of(subject), subject=subject)
    except (nats.errors.Error, OSError) as error:
        raise BusError(f"NATS does not purge {subject}: {type(error).__name__}") from error
