"""Which local models sessions may name."""

from pathlib import Path

import pytest

from meshag.connectors.llm.local import LocalLlm, LocalLlmOptions
from meshag.connectors.stt.local import LocalStt, LocalSttOptions
from meshag.errors import ConfigError
from meshag.models.catalogue import DEFAULT_LLM, DEFAULT_STT, SMALL_LLM
from meshag.models.offered import offered

pytestmark = pytest.mark.unit


def test_the_default_models_are_always_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHAG_LOCAL_MODELS", raising=False)
    assert offered("llm") == [DEFAULT_LLM]
    assert offered("stt") == [DEFAULT_STT]
    LocalLlm().accept(LocalLlmOptions())
    LocalStt().accept(LocalSttOptions())


def test_the_operator_offers_others_each_for_its_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHAG_LOCAL_MODELS", f"{SMALL_LLM}, /models/big.gguf,/models/whale,moonshine-tiny-en")
    assert offered("llm") == [SMALL_LLM, "/models/big.gguf"]
    assert offered("stt") == ["/models/whale", "moonshine-tiny-en"]
    LocalLlm().accept(LocalLlmOptions(model="/models/big.gguf"))


@pytest.mark.parametrize("model", [SMALL_LLM, "/etc/passwd", "../secret.gguf"])
def test_a_session_may_not_name_a_file_of_its_own_choice(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHAG_LOCAL_MODELS", raising=False)
    with pytest.raises(ConfigError) as caught:
        LocalLlm().accept(LocalLlmOptions(model=model))
    assert caught.value.code == "model_not_offered"
    assert "MESHAG_LOCAL_MODELS" in caught.value.fix
    with pytest.raises(ConfigError):
        LocalStt().accept(LocalSttOptions(model=model))


def test_the_first_offered_answers_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.gguf"
    monkeypatch.setenv("MESHAG_LOCAL_MODELS", str(own))
    connector = LocalLlm(tmp_path)
    assert connector.model(LocalLlmOptions()) == "own"
    assert not connector.availability().available
    assert str(own) in connector.availability().detail
    own.write_bytes(b"GGUF")
    assert connector.availability().available
