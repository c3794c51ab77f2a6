"""Versions are added whole, never written over, and one of them is named as the served one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf import text_format

from wbc_keras.errors import RunError
from wbc_keras.serving.model_folder import add_version, list_versions, serve_version


def write(name):
    return lambda folder: (folder / "model").write_text(name) and None


def served(folder):
    """Return what TensorFlow Serving reads in the folder's configuration."""
    messages = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    text = (folder / "models.config").read_text()
    (config,) = text_format.Parse(text, messages.ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path) == ("wbc", "/models/wbc")
    assert config.model_platform == "tensorflow"
    return list(config.model_version_policy.specific.versions)


def test_versions_count_up_and_the_newest_is_served(tmp_path):
    folder = tmp_path / "new" / "models"
    assert list_versions(folder) == []
    assert add_version(folder, write("a")) == folder / "1"
    assert add_version(folder, write("b")) == folder / "2"
    assert served(folder) == [2]
    (folder / "9").mkdir()
    assert add_version(folder, write("c")) == folder / "10"
    assert list_versions(folder) == [1, 2, 9, 10]
    assert (folder / "1" / "model").read_text() == "a"
    # Others may read it too: a server is another user.
    assert (folder / "10").stat().st_mode & 0o055


def test_an_earlier_version_is_served_until_the_next_export(tmp_path):
    for name in "ab":
        add_version(tmp_path, write(name))
    serve_version(tmp_path, 1)
    assert served(tmp_path) == [1]
    add_version(tmp_path, write("c"))
    assert served(tmp_path) == [3]


def test_a_version_that_is_not_there_cannot_be_served(tmp_path):
    with pytest.raises(RunError, match="holds no version 1 to serve; there are: none"):
        serve_version(tmp_path / "nowhere", 1)
    add_version(tmp_path, write("a"))
    with pytest.raises(RunError, match="holds no version 4 to serve; there are: 1"):
        serve_version(tmp_path, 4)
    assert served(tmp_path) == [1]
    assert not (tmp_path / "nowhere").exists()


def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path):
    add_version(tmp_path, write("a"))

    def fail(folder):
        (folder / "half").write_text("half")
        assert list_versions(tmp_path) == [1]  # not to be seen meanwhile
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        add_version(tmp_path, fail)
    assert served(tmp_path) == [1]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "models.config", ".lock"}


def test_a_version_that_appears_meanwhile_is_not_written_over(tmp_path):
    def write_beside(folder):
        (folder / "model").write_text("mine")
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "model").write_text("theirs")

    assert add_version(tmp_path, write_beside) == tmp_path / "2"
    assert (tmp_path / "1" / "model").read_text() == "theirs"


def test_what_a_kill_left_is_cleared(tmp_path):
    (tmp_path / ".export.abcdefgh").mkdir()
    add_version(tmp_path, write("a"))
    assert not list(tmp_path.glob(".export.*"))


def test_exports_at_the_same_time_get_each_their_version(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda name: add_version(tmp_path, write(name)), "abcd"))
    assert sorted(path.name for path in made) == ["1", "2", "3", "4"]
    assert [(path / "model").read_text() for path in made] == list("abcd")
    assert served(tmp_path) == [4]


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(RunError, match="is not a model folder, it holds notes"):
        add_version(tmp_path, write("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        add_version(tmp_path / "file", write("a"))
