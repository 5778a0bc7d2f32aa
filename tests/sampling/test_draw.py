import pytest

from erasure.core.errors import NotApplicableError, OptionError
from erasure.sampling.draw import SamplingOptions, check_classes, draw, path_of
from tests.conftest import tiny

QUICK = SamplingOptions(num_images=3, num_inference_steps=2, sample_batch_size=2)


def test_samples_lie_where_a_person_would_look(ddpm, tmp_path):
    samples = draw(ddpm, [3, 7], QUICK, 0, tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == [
        f"{name}/{i:05d}.png" for name in ("seven", "three") for i in range(3)
    ]
    assert samples.images.shape == (6, 8, 8, 1) and samples.labels.tolist() == [3, 3, 3, 7, 7, 7]


def test_only_missing_images_are_drawn_and_they_are_the_same(ddpm, tmp_path):
    whole = draw(ddpm, [3, 7], QUICK, 0, tmp_path / "a")
    kept = path_of(ddpm, tmp_path / "a", 3, 0)
    age = kept.stat().st_mtime_ns
    path_of(ddpm, tmp_path / "a", 3, 1).unlink()
    again = draw(ddpm, [3, 7], QUICK, 0, tmp_path / "a")
    assert (again.images == whole.images).all() and kept.stat().st_mtime_ns == age
    kept.unlink()
    assert (draw(ddpm, [3, 7], QUICK, 0, tmp_path / "a").images == whole.images).all()
    alone = draw(ddpm, [7], SamplingOptions(num_images=2, num_inference_steps=2), 0, tmp_path / "b")
    assert abs(alone.images.astype(int) - whole.images[3:5]).max() <= 1
    other = draw(ddpm, [7], QUICK, 1, tmp_path / "c")
    assert (other.images != whole.images[3:]).any()


def test_an_unconditional_model_draws_without_classes(tmp_path):
    model = tiny("ddpm-unconditional")
    samples = draw(model, [0, 1], QUICK, 0, tmp_path)
    assert samples.labels.tolist() == [-1, -1, -1]
    assert len(list((tmp_path / "unconditional").glob("*.png"))) == 3
    with pytest.raises(NotApplicableError, match="takes no `classes`"):
        check_classes(model, [1])


@pytest.mark.parametrize(
    "bad", [{"num_images": -1}, {"num_inference_steps": 0}, {"num_inference_steps": 5000}, {"sample_batch_size": -1}]
)
def test_settings_outside_their_range_are_refused(ddpm, tmp_path, bad):
    with pytest.raises(OptionError):
        draw(ddpm, [0], SamplingOptions(**bad), 0, tmp_path)
