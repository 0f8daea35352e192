"""What Daily's REST API takes: every field that its reference names, and nothing else.

Bodies and `properties` are closed there (`additionalProperties: false`): an unknown field is an error of the caller's.
"""

import re
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

RecordingKind = Literal["cloud", "cloud-audio-only", "local", "raw-tracks"]
Admin = Literal["participants", "streaming", "transcription"]
Media = Literal[
    "audio", "video", "screenAudio", "screenVideo", "camera", "microphone", "customAudio", "customVideo"
]  # fmt: skip
Flag = bool | UnsetType
Number = int | float | UnsetType | None
Text = str | UnsetType | None

NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Permissions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a participant may do."""

    hasPresence: Flag = UNSET  # noqa: N815
    canSend: bool | list[Media] | UnsetType = UNSET  # noqa: N815
    canReceive: dict[str, Any] | UnsetType = UNSET  # noqa: N815
    canAdmin: bool | list[Admin] | UnsetType = UNSET  # noqa: N815


class RoomProperties(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`properties` of a room."""

    nbf: Number = UNSET
    exp: Number = UNSET
    max_participants: Number = UNSET
    eject_at_room_exp: Flag = UNSET
    eject_after_elapsed: Number = UNSET
    enable_recording: RecordingKind | list[RecordingKind] | UnsetType | None = UNSET
    enable_raw_tracks_transcoded_audio: Flag = UNSET
    recordings_bucket: dict[str, Any] | UnsetType | None = UNSET
    recordings_template: Text = UNSET
    auto_transcription_settings: dict[str, Any] | UnsetType = UNSET
    enable_transcription_storage: Flag = UNSET
    transcription_bucket: dict[str, Any] | UnsetType | None = UNSET
    transcription_template: Text = UNSET
    enable_knocking: Flag = UNSET
    enable_screenshare: Flag = UNSET
    enable_chat: Flag = UNSET
    enable_shared_chat_history: Flag = UNSET
    enable_advanced_chat: Flag = UNSET
    enable_prejoin_ui: Flag = UNSET
    enable_people_ui: Flag = UNSET
    enable_pip_ui: Flag = UNSET
    enable_emoji_reactions: Flag = UNSET
    enable_hand_raising: Flag = UNSET
    enable_live_captions_ui: Flag = UNSET
    enable_network_ui: Flag = UNSET
    enable_noise_cancellation_ui: Flag = UNSET
    enable_breakout_rooms: Flag = UNSET
    enable_video_processing_ui: Flag = UNSET
    start_video_off: Flag = UNSET
    start_audio_off: Flag = UNSET
    owner_only_broadcast: Flag = UNSET
    enable_dialout: Flag = UNSET
    dialout_config: dict[str, Any] | UnsetType = UNSET
    sip: dict[str, Any] | UnsetType = UNSET
    geo: Text = UNSET
    rtmp_geo: Text = UNSET
    disable_rtmp_geo_fallback: Flag = UNSET
    permissions: Permissions | UnsetType = UNSET
    enable_hidden_participants: Flag = UNSET
    enforce_unique_user_ids: Flag = UNSET
    experimental_optimize_large_calls: Flag = UNSET
    meeting_join_hook: Text = UNSET
    streaming_endpoints: list[Any] | UnsetType | None = UNSET
    enable_adaptive_simulcast: Flag = UNSET
    enable_multiparty_adaptive_simulcast: Flag = UNSET
    sfu_switchover: float | UnsetType = UNSET
    enable_mesh_sfu: Flag = UNSET
    enable_terse_logging: Flag = UNSET
    lang: Text = UNSET


class RoomBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms` and `POST /rooms/:name`."""

    name: str | UnsetType = UNSET
    privacy: Literal["public", "private"] | UnsetType = UNSET
    properties: RoomProperties = msgspec.field(default_factory=RoomProperties)


class TokenProperties(msgspec.Struct, forbid_unknown_fields=True):
    """`properties` of a meeting token."""

    room_name: str | UnsetType = UNSET
    exp: int | UnsetType = UNSET
    nbf: int | UnsetType = UNSET
    eject_at_token_exp: Flag = UNSET
    eject_after_elapsed: int | UnsetType = UNSET
    is_owner: Flag = UNSET
    user_name: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    enable_screenshare: Flag = UNSET
    start_video_off: Flag = UNSET
    start_audio_off: Flag = UNSET
    enable_recording: RecordingKind | list[RecordingKind] | UnsetType = UNSET
    enable_prejoin_ui: Flag = UNSET
    enable_live_captions_ui: Flag = UNSET
    enable_recording_ui: Flag = UNSET
    enable_terse_logging: Flag = UNSET
    knocking: Flag = UNSET
    start_cloud_recording: Flag = UNSET
    start_cloud_recording_opts: dict[str, Any] | UnsetType = UNSET
    auto_start_transcription: Flag = UNSET
    close_tab_on_exit: Flag = UNSET
    redirect_on_meeting_exit: str | UnsetType = UNSET
    lang: str | UnsetType = UNSET
    permissions: Permissions | UnsetType = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.user_id, str) and len(self.user_id) > 36:
            raise ValueError("user_id is longer than 36 characters")


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /meeting-tokens`."""

    properties: TokenProperties = msgspec.field(default_factory=TokenProperties)


SHORT = {
    "room_name": "r", "exp": "exp", "nbf": "nbf", "eject_at_token_exp": "ejt", "eject_after_elapsed": "eje",
    "is_owner": "o", "user_name": "u", "user_id": "ud", "enable_screenshare": "ss", "start_video_off": "vo",
    "start_audio_off": "ao", "enable_recording": "er", "enable_prejoin_ui": "epui", "enable_live_captions_ui": "elcui",
    "enable_recording_ui": "erui", "enable_terse_logging": "etl", "knocking": "k", "start_cloud_recording": "sr",
    "start_cloud_recording_opts": "sro", "auto_start_transcription": "ast", "close_tab_on_exit": "ctoe",
    "redirect_on_meeting_exit": "rome", "lang": "uil", "permissions": "p",
}  # fmt: skip
"""The names of a token's properties inside of the JWT. Those with more than three letters but `erui`, `ctoe` and `rome`
are guesses."""


class EjectBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/eject`."""

    ids: list[str] = []
    user_ids: list[str] = []
    ban: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) > 100 or len(self.user_ids) > 100:
            raise ValueError("at most 100 ids")


class RecordingBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/recordings/start`."""

    type: Literal["cloud", "cloud-audio-only", "raw-tracks"] = "cloud"
    width: int | UnsetType = UNSET
    height: int | UnsetType = UNSET
    fps: int | UnsetType = UNSET
    videoBitrate: int | UnsetType = UNSET  # noqa: N815
    audioBitrate: int | UnsetType = UNSET  # noqa: N815
    minIdleTimeOut: int | UnsetType = UNSET  # noqa: N815
    maxDuration: int | UnsetType = UNSET  # noqa: N815
    instanceId: str | UnsetType = UNSET  # noqa: N815
    layout: dict[str, Any] | UnsetType = UNSET
    dataOutputs: list[str] | UnsetType = UNSET  # noqa: N815


class TranscriptionBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/transcription/start`."""

    language: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    profanity_filter: Flag = UNSET
    punctuate: Flag = UNSET
    endpointing: bool | int | UnsetType = UNSET
    redact: bool | list[str] | UnsetType = UNSET
    extra: dict[str, Any] | UnsetType = UNSET
    includeRawResponse: Flag = UNSET  # noqa: N815
    instanceId: str | UnsetType = UNSET  # noqa: N815
    participants: list[str] | UnsetType = UNSET
    transcription_geo: Literal["global", "eu"] | UnsetType = UNSET


class StopBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of the two that stop."""

    instanceId: str | UnsetType = UNSET  # noqa: N815


class DialOutBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/dialOut/start`."""

    sipUri: str | UnsetType = UNSET  # noqa: N815
    phoneNumber: str | UnsetType = UNSET  # noqa: N815
    extension: str | UnsetType = UNSET
    waitBeforeExtensionDialSec: int | UnsetType = UNSET  # noqa: N815
    displayName: str | UnsetType = UNSET  # noqa: N815
    userId: str | UnsetType = UNSET  # noqa: N815
    callerId: str | UnsetType = UNSET  # noqa: N815
    video: Flag = UNSET
    videoSettings: dict[str, int] | UnsetType = UNSET  # noqa: N815
    codecs: dict[Literal["audio", "video"], list[str]] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if isinstance(self.sipUri, str) == isinstance(self.phoneNumber, str):
            raise ValueError("either sipUri or phoneNumber")
        if isinstance(self.sipUri, str) and not self.sipUri.startswith("sip:"):
            raise ValueError("sipUri must start with sip:")
        if isinstance(self.phoneNumber, str) and not self.phoneNumber.startswith("+"):
            raise ValueError("phoneNumber must start with the country code")


class DialOutStopBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/dialOut/stop`."""

    sessionId: str  # noqa: N815


class AppMessageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /rooms/:name/send-app-message`."""

    data: dict[str, Any]
    recipient: str = "*"

    def __post_init__(self) -> None:
        if len(msgspec.json.encode(self.data)) > 4096:
            raise ValueError("data is larger than 4 KB")


class WebhookBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /webhooks`."""

    url: str
    hmac: str = ""
    basicAuth: str = ""  # noqa: N815
    retryType: Literal["circuit-breaker", "exponential"] = "circuit-breaker"  # noqa: N815
    eventTypes: list[str] = []  # noqa: N815
