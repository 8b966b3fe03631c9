"""Decoding and cropping on the training device, tried with the CPU as the device: torchvision's decoder has one
interface for both. What nvJPEG itself does is tested where there is a GPU."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from adco.config.schema import ViewConfig
from adco.data import nvjpeg
from adco.data.images import index_folder
from adco.data.loader import ViewDataset, requests, resolve_backend
from adco.data.transforms import parameters
from adco.utils.errors import UserError
from benchmarks.speed.photographs import write_photographs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPECS = [ViewConfig(px=24, solarize_p=0.2), ViewConfig(px=16)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"), 24, classes=2, width=80, height=60)


def made(root, device=CPU, max_bad=24):
    index = index_folder(root)
    request = next(requests(0, len(index), 24, 0, 1))
    work = nvjpeg.DecodingTask(ViewDataset(index, SPECS, 0, max_bad, "nvjpeg"), request, device)
    return work.batch([work.rows(0, 10), work.rows(10, 24)])


def level_differences(a, b):
    return [(x.cpu().int() - y.cpu().int()).abs().float() for x, y in zip(a.pixels, b.pixels, strict=True)]


def test_crops_and_choices_are_those_of_the_device_backend(photographs):
    index = index_folder(photographs)
    dataset = ViewDataset(index, SPECS, 0, 0, "device")
    expected = dataset[next(requests(0, len(index), 24, 0, 1))]  # cropped by Pillow
    batch = made(photographs)
    for difference in level_differences(batch, expected):
        assert difference.mean() < 0.5 and difference.max() <= 3  # two implementations of one antialiased resize
    assert batch.choices and expected.choices
    for ours, theirs in zip(batch.choices, expected.choices, strict=True):
        assert torch.equal(ours.factors, theirs.factors) and torch.equal(ours.flip, theirs.flip)
    assert batch.to_views(CPU)[1].shape == (24, 3, 16, 16) and not batch.bad


def test_a_crop_is_resized_as_pillow_does_it():
    levels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for box in ((3, 5, 60, 40), (0, 0, 70, 50), (10, 10, 8, 8)):
        theirs = parameters.resized_crop(Image.fromarray(levels), 16, box).astype(int)
        ours = nvjpeg.resized_crop(torch.from_numpy(levels).permute(2, 0, 1), 16, box).numpy()
        assert np.abs(ours - theirs).max() <= 1


def test_other_formats_damage_and_what_the_decoder_refuses_go_through_pillow(photographs, tmp_path, monkeypatch):
    root = tmp_path / "mixed"
    shutil.copytree(photographs, root)
    files = sorted(root.rglob("*.jpg"))
    files[2].write_bytes(files[2].read_bytes()[:-300])  # its end is missing: nvJPEG would fill it with grey
    files[7].write_bytes(b"")
    Image.open(files[11]).convert("CMYK").save(files[11])
    Image.open(files[13]).save(files[13].with_suffix(".png"))
    files[13].unlink()
    damaged = bytearray(files[17].read_bytes())
    damaged[20:200] = bytes(180)  # its end is there, its tables are not
    files[17].write_bytes(damaged)
    cmyk, calls = files[11].read_bytes(), []

    def without_cmyk(contents, mode, device):  # as nvJPEG, which does not say which file it was
        calls.append(len(contents))
        if any(bytes(content.numpy()) == cmyk for content in contents):
            raise RuntimeError("unsupported")
        return decode_jpeg(contents, mode, device)

    monkeypatch.setattr(nvjpeg, "decode_jpeg", without_cmyk)
    batch = made(root)
    names = [path.relative_to(root).as_posix() for path in files]
    assert set(batch.bad) == {names[2], names[7], names[17]}
    assert calls[0] > 1 and set(calls[1:]) == {1}  # the batch at once, then one by one
    assert all((pixels.flatten(1).float().std(dim=1) > 0).all() for pixels in batch.pixels)


def test_decoded_images_are_kept_until_what_reads_them_has_ended(monkeypatch):
    """Calls in their order, on streams that only note them: nvJPEG's memory is a third stream's, and is given back when
    an event of the stream that crops has passed (record_stream)."""
    calls, inside = [], []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(f"{self.name} waits for {other.name}")

    class On:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            inside.append(self.stream.name)

        def __exit__(self, *_):
            inside.pop()

    class Image:
        def record_stream(self, stream):
            calls.append(f"kept for {stream.name}")

    def decode(files, mode, device):
        calls.append(f"decoded on {inside[-1]}")
        return [Image() for _ in files]

    decoding, cropping = Stream("decoding"), Stream("cropping")
    monkeypatch.setattr(nvjpeg, "_decoding_stream", lambda device: decoding)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cropping)
    monkeypatch.setattr(torch.cuda, "stream", On)
    monkeypatch.setattr(nvjpeg, "decode_jpeg", decode)
    assert len(nvjpeg.decoded([torch.zeros(1, dtype=torch.uint8)] * 2, CUDA)) == 2
    assert calls == ["decoded on decoding", "cropping waits for decoding", *["kept for cropping"] * 2]


def test_it_needs_a_gpu():
    with pytest.raises(UserError, match="data.backend=nvjpeg: needs an NVIDIA GPU"):
        resolve_backend("nvjpeg", CPU, 8)
    assert resolve_backend("nvjpeg", CUDA, 8) == "nvjpeg"
