"""A checkpoint that cannot be read: surely damaged, or good and only out of reach here."""

import errno
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_plugins.trainers.checkpoints import CheckpointError, DamagedCheckpointError, load_checkpoint

CONTENT = {
    "network_weights": {"weight": torch.arange(6.0)},
    "init_args": {"plans": {"configurations": {}}, "configuration": "3d_fullres", "dataset_json": {}},
    "trainer_name": "nnUNetTrainer",
}


def written() -> bytes:
    file = io.BytesIO()
    torch.save(CONTENT, file)
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_latest.pth"
    path.write_bytes(written())
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_cut_and_almost_every_flipped_byte_is_damage(path, data):
    whole = written()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(whole[:place] if cut else whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    try:
        found = load_checkpoint(path, trusted=True)
    except DamagedCheckpointError:
        return
    except CheckpointError:  # the names of the parts have no checksum: what torch looks for is not there
        assert not cut
        return
    assert torch.equal(found["network_weights"]["weight"], CONTENT["network_weights"]["weight"])


@pytest.mark.parametrize("content", [b"", bytes(1000), b"something else", b"\0\x80\2"])
def test_what_does_not_begin_like_a_checkpoint_is_damage(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(path, trusted=True)


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'numpy._core'"), MemoryError(), RuntimeError("can't allocate memory")],
)
def test_what_this_environment_lacks_is_no_damage(path, monkeypatch, error):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match=f"cannot be read: {type(error).__name__}") as found:
        load_checkpoint(path, trusted=True)
    assert not isinstance(found.value, DamagedCheckpointError)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("where", ["open", "testzip"])
def test_what_the_disk_does_not_give_is_no_damage(path, monkeypatch, code, where):
    def fail(*_: object) -> None:
        raise OSError(code, "not now")

    monkeypatch.setattr(*{"open": (Path, "open"), "testzip": (zipfile.ZipFile, "testzip")}[where], fail)
    with pytest.raises(OSError, match="not now"):
        load_checkpoint(path, trusted=True)


def test_names_in_numpys_type_are_text(tmp_path):
    """As nnU-Net's splits name cases; a network fitted to images keeps them."""
    file, plans = tmp_path / "checkpoint_final.pth", {"configurations": {"2d": {}}}
    arguments = {"plans": plans, "configuration": "2d", "dataset_json": {}}
    content = {
        "network_weights": {},
        "init_args": arguments,
        "trainer_name": "nnUNetTrainerNISF",
        "cases": [np.str_("é")],
    }
    torch.save(content, file)
    assert load_checkpoint(file)["cases"] == ["é"]
