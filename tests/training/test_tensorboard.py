"""TensorBoard's events: the numbers of metrics.jsonl, pictures, and each step once after a restart."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

import purify_jax as pj
from purify_jax import networks
from purify_jax.checks import InputError
from purify_jax.training import ScoreSettings, metrics

event_pb2 = pytest.importorskip(
    "tensorboardX.proto.event_pb2", reason="tensorboardX is not installed"
)


def events(folder):
    """What TensorBoard shows of a folder, {(name, step): value}: later files' marks drop later steps."""
    shown = {}
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
            place += 12 + size + 4
            if event.HasField("session_log"):
                shown = {key: v for key, v in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in shown, "a point twice"
                is_number = value.HasField("simple_value")
                found = value.simple_value if is_number else value.image.encoded_image_string
                shown[value.tag, event.step] = found
    return shown


def train(workdir, steps=8, tensorboard=True):
    settings = ScoreSettings(
        steps, batch_size=16, schedule="constant", steps_per_dispatch=2, checkpoint_every=4,
        sigmas=[0.1, 0.4], tensorboard=tensorboard,
    )  # fmt: skip
    return pj.train_score_model(
        networks.build({"name": "MLP", "features": [4]}),
        pj.load_split("digits", "train[:100]"),
        settings,
        execution=pj.Execution(workdir=workdir),
    )


@pytest.mark.ci
def test_events_are_the_metrics_and_a_restart_doubles_none(tmp_path, monkeypatch):
    died = []

    def write(self, step, values, picture, before=metrics.Metrics.write):
        before(self, step, values, picture)
        if step == 6 and not died:  # after the save at step 4, and a point at step 6
            died.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics.Metrics, "write", write)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert ("loss", 6) in events(tmp_path / "tensorboard")
    train(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    shown = events(tmp_path / "tensorboard")
    for line in lines:
        for name in ("loss", "gradient_norm"):
            assert shown[name, line["step"]] == np.float32(line[name])
    pictures = {key: value for key, value in shown.items() if isinstance(value, bytes)}
    assert len(shown) == 2 * 4 + len(pictures)
    # One sheet a save: three rows of eight images, 8 pixels enlarged to 32.
    assert sorted(step for _, step in pictures) == [4, 8]
    sheet = np.asarray(Image.open(io.BytesIO(next(iter(pictures.values())))).convert("L"))
    assert sheet.shape == (3 * 32, 8 * 32)
    first = pj.load_split("digits", "train[:1]").images[0, ..., 0]
    np.testing.assert_allclose(sheet[:32:4, :32:4] / 255, first, atol=1 / 255)


def test_a_sheet_shows_what_the_network_makes_of_noise():
    class State:
        ema_params = np.float32(0.25)

    data = pj.data.Dataset("grey", "train", np.full((9, 32, 32, 3), 0.5, np.float32), np.zeros(9, int), 1)  # fmt: skip
    # A "denoiser" that takes the mean of the noisy image to its parameter.
    moved = lambda params, x, sigma: params - x + 0 * sigma[:, None, None, None]
    sheet = metrics.DenoisedSheet(data, moved, sigma=0.1)(State())
    assert sheet.shape == (96, 256, 3)
    assert np.all(sheet[:32] == 0.5)
    assert 0.08 < sheet[32:64].std() < 0.12
    np.testing.assert_allclose(sheet[64:], 0.25, atol=1e-6)

    class Elsewhere:
        is_fully_addressable = is_fully_replicated = False

    State.ema_params = Elsewhere()  # split over other processes: no sheet, and nobody waits
    assert metrics.DenoisedSheet(data, moved, sigma=0.1)(State()) is None


def test_without_the_package_or_a_folder_it_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="tensorboard: got it without a workdir"):
        train(None)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="tensorboard: needs the package tensorboardX"):
        train(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.rglob("*tfevents*"))
    train(tmp_path, tensorboard=False)
    assert not (tmp_path / "tensorboard").exists()
