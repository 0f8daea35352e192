"""The error tree.

    MeshError(code, retryable)
    ├── ConfigError       what was asked for cannot be: names the field and the fix
    ├── AuthError         a token is missing, expired, forged or for another session
    ├── SessionError      no such session, or it has ended
    ├── OverloadError     no worker has room: try again later
    ├── LimitError        an API key asks for more than it may: not before `retry_after_s`
    ├── BusError          NATS is unreachable or refuses
    ├── StoreError        Valkey is unreachable, refuses or is unsafe for sessions
    ├── ConnectorError    a provider failed
    │   ├── ProviderTimeout      one of its deadlines passed
    │   ├── ProviderRejected     it answered that it will not (4xx): not retryable
    │   ├── ProviderUnavailable  it cannot at the moment (5xx, refused, closed)
    │   │   └── ProviderLimited      too many requests: not before `retry_after_s` (429)
    │   └── ProviderGarbage      it answered what its protocol does not allow
    ├── ModelError        a local model or its engine is missing or damaged
    └── WireError         bytes that are not a frame or not a message of the protocol

`str(error)` never holds what a caller said, nor a secret.
"""


class MeshError(Exception):
    """Every error MeshAG raises on purpose."""

    code = "internal"
    """A stable snake_case word for programs."""

    retryable = False
    """Whether the same call may succeed later."""

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class ConfigError(MeshError):
    """What was asked for cannot be. `path` is the field in dots (`config.pipeline.flow.1.to`), `fix` what to do."""

    code = "config_invalid"

    def __init__(self, message: str, *, path: str = "", fix: str = "", code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.path = path
        self.fix = fix


class AuthError(MeshError):
    """A token is missing, expired, forged or for another session."""

    code = "unauthorized"


class SessionError(MeshError):
    """There is no such session, or it has ended."""

    code = "session_not_found"


class OverloadError(MeshError):
    """No worker has room."""

    code = "no_capacity"
    retryable = True


class LimitError(MeshError):
    """An API key asks for more than it may. `retry_after_s`: when it may ask again, whole seconds, at least 1."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class BusError(MeshError):
    """NATS is unreachable or refuses."""

    code = "bus_unavailable"
    retryable = True


class StoreError(MeshError):
    """Valkey is unreachable, refuses, or is configured in a way that loses sessions."""

    code = "store_unavailable"
    retryable = True


class ConnectorError(MeshError):
    """A provider failed."""

    code = "provider_failed"
    retryable = True

    midway = False
    """Whether a part of the answer had come before."""


class ProviderTimeout(ConnectorError):  # noqa: N818 - reads as what happened
    """One of the provider's deadlines passed."""

    code = "provider_timeout"


class ProviderRejected(ConnectorError):  # noqa: N818
    """The provider will not do it, now or later."""

    code = "provider_rejected"
    retryable = False


class ProviderUnavailable(ConnectorError):  # noqa: N818
    """The provider cannot do it at the moment."""

    code = "provider_unavailable"


class ProviderLimited(ProviderUnavailable):
    """The provider gets too many requests. `retry_after_s`: when it wants to be asked again; None: it did not say."""

    code = "provider_limited"

    def __init__(self, message: str, *, retry_after_s: float | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class ProviderGarbage(ConnectorError):  # noqa: N818
    """The provider answered what its protocol does not allow."""

    code = "provider_garbage"


class ModelError(MeshError):
    """A local model or its engine is missing or damaged."""

    code = "model_unavailable"


class WireError(MeshError):
    """Bytes that are not a frame, or not a message of the protocol."""

    code = "wire_invalid"
