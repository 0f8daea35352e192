"""Opens ONNX models in onnxruntime, which is imported when the first one is opened."""

import tempfile
from pathlib import Path
from typing import Any

from meshag.errors import ModelError

_INSIDE = {"model": {7: "graph"}, "graph": {1: "node"}, "node": {5: "attribute"}, "attribute": {6: "body"}}
_INSIDE["body"] = _INSIDE["graph"]
"""Which fields of an ONNX protobuf lead to the graphs that stand inside nodes (the branches of an `If`)."""

_NAME_FIELD = 2
_BODY_NAME = b"\x12\x04body"
"""The field `name` with the value `body`."""


def open_session(file: Path, threads: int = 1) -> Any:
    """An InferenceSession on the CPU, for a `.onnx` or `.ort` file. Raises ModelError.

    Its threads sleep while they wait: a spinning one would take the core from the process of the next stage.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError("onnxruntime is not installed: run `pip install 'meshag[local]'`") from error
    if not file.is_file():
        raise ModelError(f"there is no {file.name} in the model's directory")
    options = _options(onnxruntime, threads)
    providers = ["CPUExecutionProvider"]
    try:
        if file.suffix == ".ort":
            return onnxruntime.InferenceSession(_as_onnx(onnxruntime, file, providers), options, providers=providers)
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # onnxruntime raises classes of its own, without a common base
        raise ModelError(f"{file.name} cannot be loaded: it is damaged, or no such model") from error


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _as_onnx(onnxruntime: Any, file: Path, providers: list[str]) -> bytes:
    """The model of an ORT file as ONNX.

    onnxruntime optimises an ONNX model when it opens it, but takes an ORT file as it stands. In Moonshine's, the
    weights are then unpacked to floats anew for every token: opened as ONNX, the base model is four times as fast.
    """
    options = _options(onnxruntime, 1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ONNX")
    with tempfile.TemporaryDirectory() as directory:
        saved = Path(directory) / "model.onnx"
        options.optimized_model_filepath = str(saved)
        onnxruntime.InferenceSession(str(file), options, providers=providers)
        return name_bodies(saved.read_bytes())


def name_bodies(model: bytes) -> bytes:
    """An ONNX model whose inner graphs have names: onnxruntime saves them without and then refuses to open them."""
    return b"".join(_named(memoryview(model), "model"))


def _named(message: memoryview, kind: str) -> list[bytes | memoryview]:
    out: list[bytes | memoryview] = []
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            length, at = _varint(message, at)
            at += length
            if inside := _INSIDE[kind].get(field):
                pieces = _named(message[at - length : at], inside)
                out += [_encoded(key), _encoded(sum(map(len, pieces))), *pieces]
                continue
            if kind == "body" and field == _NAME_FIELD:
                continue
        else:
            raise ValueError("not an ONNX model")
        out.append(message[start:at])
    if kind == "body":
        out.append(_BODY_NAME)
    return out


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
