"""`labkit measure`: sources of every kind, floors and conclusions, copies of reals, the report in both languages."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from labkit.cli import main
from labkit.density import PseudoDensity
from labkit.errors import LabkitWarning
from labkit.images import ImageError
from labkit.measuring import measure, measurement_html, read_source
from labkit.measuring.report import measurement_lines, texts
from labkit.metrics import GaussianStats, ImagePipeline, frechet_distance
from labkit.metrics.checks import exact_copies
from labkit.metrics.extractors import Extractor
from labkit.models import load_clip


def features(n: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator) * torch.tensor([3, 2, 1, 1, 0.5, 0.1]) + shift


def means(x: torch.Tensor) -> torch.Tensor:
    """A network: mean, spread and halves of each channel, [N, 9]."""
    halves = x[..., :2].mean(dim=(2, 3)), x[..., 2:].mean(dim=(2, 3))
    return torch.cat([x.std(dim=(2, 3)), *halves], dim=1)


EYE = Extractor("eye", means, ImagePipeline("tiny-4", 4))


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for name, seed in (("real", 0), ("fake", 1)):
        (root / name).mkdir()
        for i, levels in enumerate(pictures(40, seed)):
            Image.fromarray(levels).save(root / name / f"{i:02d}.png")
    return root


# ---- conclusions ----------------------------------------------------------------------------------------------------


def test_equal_laws_show_no_difference_and_shifted_ones_do():
    everything = {"metrics": ("fid", "kid", "prdc", "density", "vendi"), "rounds": 19}
    same = measure(real=features(60), fake=features(60, seed=1), **everything)
    other = measure(real=features(60), fake=features(60, shift=2.0, seed=1), **everything)
    assert {same[m].conclusion for m in ("fid", "kid")} == {"no difference"}
    assert {other[m].conclusion for m in ("fid", "kid")} == {"different"} and other["fid"].p_value == 0.05
    assert same["fid"].value == frechet_distance(real=features(60), fake=features(60, seed=1)).value
    assert 0.3 < same["fid"].value / same["fid"].floor < 3  # the floor is what it reads without a difference
    assert other["fid"].value > 5 * other["fid"].floor and other["fid"].spread > 0
    assert same["precision"].floor is not None and other["precision"].value < same["precision"].value
    assert other["rare share"].value > 0.5 > same["rare share"].value and same["pseudo density"].n_fake == 60
    assert (same["vendi"].n_real, same["vendi"].conclusion) == (60, "reference")
    assert not same.copies.suspicious and same["kid"].floor == 0


def test_a_generator_that_copies_its_reals_is_noticed():
    real = features(80)
    fake = features(80, seed=1)
    fake[:30] = real[10:40] + 1e-3
    copies = measure(real=real, fake=fake, metrics=("kid",)).copies
    assert copies.suspicious and copies.low > 0.2 and copies.exact == 0
    assert {j - i for i, j, _ in copies.pairs} == {10}
    fake[0] = real[7]
    assert measure(real=real, fake=fake, metrics=("kid",)).copies.exact == 1


def test_from_few_reals_nothing_follows_but_what_is_exact():
    few = measure(real=features(3), fake=features(22, seed=1), metrics=("prdc",), k=2)
    assert few.copies.low > 0.1 and not few.copies.suspicious  # the nearest of 3 reals says little about 5% of reals
    assert (few["recall"].floor, few["recall"].conclusion) == (None, "unknown")
    said = measurement_lines(measure(real=features(3), fake=features(3), metrics=("kid",)))
    assert "Exact copies: 3" in said[-4] and said[-1].strip() == "fake #2, nearest real #2: 0 of the usual distance"


def test_exact_copies_among_the_reals_are_counted_and_warned_of():
    real = torch.cat([features(40), features(40)[:3], features(40)[:1]])
    assert exact_copies(real) == 4 and exact_copies(features(40)) == 0
    assert exact_copies(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]).half()) == 1
    result = measure(real=real, fake=features(40, seed=1), metrics=("kid",))
    assert ("duplicates", {"side": "real", "n": 4, "of": 44}) in result.warnings
    assert ("counts", {"n": 44, "m": 40}) in result.warnings
    with pytest.warns(LabkitWarning, match="4 of the 44 reals are exact copies"):
        PseudoDensity(k=3).fit(real)


# ---- sources --------------------------------------------------------------------------------------------------------


def test_folders_batches_lists_and_loaders_read_the_same(folders):
    fakes = pictures(40, 1)
    tensor = torch.from_numpy(fakes).permute(0, 3, 1, 2)
    loader = DataLoader(TensorDataset(tensor, torch.zeros(40)), batch_size=16)
    floats = DataLoader([{"image": x, "label": 0} for x in tensor.float() / 255], batch_size=16)
    want = measure(real=folders / "real", fake=folders / "fake", metrics=("kid",), extractor=EYE)["kid"].value
    for fake in (tensor, fakes, list(fakes), [(Image.fromarray(x), 3) for x in fakes], loader):
        assert measure(real=folders / "real", fake=fake, metrics=("kid",), extractor=EYE)["kid"].value == want
    unit = measure(real=folders / "real", fake=floats, metrics=("kid",), extractor=EYE, value_range=(0, 1))
    assert unit["kid"].value == want
    with pytest.raises(ImageError, match=r"\[0, 1\] or part of \[-1, 1\]"):
        measure(real=folders / "real", fake=floats, metrics=("kid",), extractor=EYE)


def test_statistics_of_other_programs_are_read(tmp_path, folders):
    real, fake = features(50), features(40, shift=2.0, seed=1)
    stats = GaussianStats.from_features(real)
    np.savez(tmp_path / "pytorch-fid.npz", mu=stats.mean.numpy(), sigma=stats.covariance.numpy())
    np.savez(tmp_path / "clean-fid.npz", feats=real.numpy())
    np.savez(tmp_path / "samples.npz", arr_0=pictures(5, 3))
    stats.save(tmp_path / "ours.safetensors")
    want = frechet_distance(real=real, fake=fake).value
    theirs = measure(real=tmp_path / "pytorch-fid.npz", fake=fake)
    assert theirs["fid"].value == pytest.approx(want, rel=1e-9)
    assert (theirs["fid"].n_real, theirs["fid"].floor, theirs["fid"].conclusion) == (None, None, "unknown")
    assert [key for key, _ in theirs.warnings] == ["statistics only"] and theirs.copies is None
    assert measure(real=tmp_path / "clean-fid.npz", fake=fake)["fid"].value == want
    ours = measure(real=tmp_path / "ours.safetensors", fake=fake)["fid"]
    assert (ours.n_real, ours.conclusion) == (50, "different") and ours.floor is not None
    assert read_source(tmp_path / "samples.npz").pictures.shape == (5, 4, 4, 3)
    np.save(tmp_path / "table.npy", real.numpy())
    np.savez(tmp_path / "table.npz", real.numpy())  # numpy calls it arr_0
    (tmp_path / "table.npz").rename(tmp_path / "TABLE.NPZ")
    np.savez(tmp_path / "counted.npz", mu=stats.mean.numpy(), sigma=stats.covariance.numpy(), n=np.array([50]))
    for name in ("table.npy", "TABLE.NPZ"):
        assert torch.equal(read_source(tmp_path / name).features, torch.as_tensor(real.numpy()))
    assert read_source(tmp_path / "counted.npz").stats.n == 50
    np.savez(tmp_path / "odd.npz", x=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=np.zeros(1))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "clean-fid.npz").read_bytes()[:200])
    for name in ("odd.npz", "pickle.npz", "cut.npz"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")) as error:
            read_source(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="kid cannot be computed from means"):
        measure(real=tmp_path / "ours.safetensors", fake=fake, metrics=("fid", "kid"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"metrics": ("fid", "is")}, "unknown metric 'is'"),
        ({"rounds": 18}, "18 permutations can never give p <= 0.05"),
        ({"fake": features(20)[:, :3]}, "features"),
        ({"fake": pictures(9, 1)[:, :, 0]}, "expected pictures"),
        ({"fake": 3}, "no set of pictures"),
        ({"metrics": ("prdc",), "k": np.int64(20)}, "lower k"),
        ({"fake": pictures(9, 1), "extractor": "vgg"}, "unknown extractor"),
        ({"rounds": -1}, "-1 permutations"),
        ({"weights": "x.safetensors"}, "weights is a setting of the extractor .inception., not of .reader."),
        ({"layer": "logits"}, "layer is a setting of the extractor"),
        ({"value_range": (1, 0)}, "low < high"),
        ({"fake": "stats.pth"}, "is a pickle, which labkit never opens"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, match):
    with pytest.raises(ValueError, match=match) as error:
        measure(**{"real": features(20), "fake": features(20, seed=1)} | arguments)
    assert "\n" not in str(error.value)


def test_whoever_measures_with_the_clip_of_the_course_is_told_so(folders):
    sides = {"real": folders / "real", "fake": folders / "fake"}

    def told(**options):
        return ("portrait clip", {}) in measure(**sides, **options).warnings

    assert told(metrics=("kid",), extractor="clip") and told(metrics=("cmmd",), extractor=EYE)
    assert not told(metrics=("kid",), extractor=EYE)
    own = load_clip("cpu")  # somebody's: it was given
    assert not told(metrics=("kid", "cmmd"), extractor="clip", clip=own)


# ---- command and report ---------------------------------------------------------------------------------------------


def test_the_command_measures_two_folders_and_names_the_broken_file(folders, tmp_path, capsys):
    (folders / "fake" / "broken.png").write_bytes(b"no picture")
    arguments = ["measure", str(folders / "real"), str(folders / "fake"), "--kid", "--prdc"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "broken.png cannot be read" in said and "--skip leaves out" in said
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    try:
        more = ["--skip", "--k", "3", "--html", str(page), "--json", str(numbers), "--lang", "ja"]
        assert main([*arguments, *more]) == 0
    finally:
        (folders / "fake" / "broken.png").unlink()
    assert "broken.png" in capsys.readouterr().out
    read = json.loads(numbers.read_text("utf-8"))
    assert [r["name"] for r in read["readings"]] == ["kid", "precision", "recall", "density", "coverage"]
    html = page.read_text("utf-8")
    assert 'lang="ja"' in html and "ノイズフロア" in html and html.count("<figure>") == 8
    assert main(["measure", str(folders / "real"), str(folders / "nowhere")]) == 2


def test_the_locale_chooses_the_language_of_the_report_and_lang_overrules_it(tmp_path, monkeypatch, capsys):
    from labkit import cli

    for name in ("real", "fake"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = np.random.default_rng(i + len(name)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    words = ["measure", str(tmp_path / "real"), str(tmp_path / "fake"), "--kid", "--html", str(tmp_path / "r.html")]
    for locale, more, lang in (("ja_JP.UTF-8", [], "ja"), ("C", [], "en"), ("C", ["--lang", "ja"], "ja")):
        monkeypatch.setenv("LC_ALL", locale)
        assert cli.main([*words, *more]) == 0
        assert f'lang="{lang}"' in (tmp_path / "r.html").read_text(encoding="utf-8")
    capsys.readouterr()


def test_the_command_says_before_the_work_what_it_could_not_do_after_it(folders, tmp_path, capsys, monkeypatch):
    late = lambda **_: pytest.fail("it worked first")  # noqa: E731
    monkeypatch.setattr(sys.modules["labkit.measuring.measure"], "measure", late)
    (tmp_path / "file").write_text("x")
    for option, path in (("--html", tmp_path), ("--json", tmp_path), ("--html", tmp_path / "file" / "report.html")):
        assert main(["measure", str(folders / "real"), str(folders / "fake"), option, str(path)]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("labkit measure: ") and str(path.name) in said + str(path) and "\n" not in said


def test_pictures_of_many_sizes_are_counted_and_progress_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("labkit.measuring.command.PAUSE", 0.0)
    monkeypatch.setattr(sys.modules["labkit.measuring.measure"], "LONG", 1)  # the package has a function of that name
    rng = np.random.default_rng(0)
    for side, shapes in (("real", [(8, 8)] * 9), ("fake", [(8, 8)] * 5 + [(8, 12)] * 3 + [(6, 6)])):
        (tmp_path / side).mkdir()
        for i, shape in enumerate(shapes):
            Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / side / f"{i}.png")
    result = measure(real=tmp_path / "real", fake=tmp_path / "fake", metrics=("kid",), extractor=EYE)
    assert ("sizes", {"real": "8 x 8", "fake": "8 x 8 (+2)"}) in result.warnings
    assert ("squashed", {"side": "fake", "n": 3, "of": 9}) in result.warnings
    cropped = measure(real=tmp_path / "real", fake=tmp_path / "fake", metrics=("kid",), extractor=EYE, fit="crop")
    assert "squashed" not in dict(cropped.warnings)
    twice = measure(real=tmp_path / "real", fake=tmp_path / "real", metrics=("kid",), extractor=EYE)
    assert ("same", {"n": 9}) in twice.warnings and "same" not in dict(result.warnings)
    assert main(["measure", str(tmp_path / "real"), str(tmp_path / "fake"), "--fid", "--lang", "en"]) == 0
    told = capsys.readouterr().err
    assert "fake: 9 of 9 pictures read" in told and "39 rounds" in told


def test_every_text_of_the_report_exists_in_both_languages():
    assert set(texts("ja")) == set(texts("en"))
    result = measure(real=features(8), fake=features(7, seed=1), metrics=("fid", "kid", "density", "vendi"), rounds=19)
    for lang in ("ja", "en"):
        page = measurement_html(result, lang=lang)
        assert "{" not in page.split("</style>")[1]
        assert len(measurement_lines(result, lang)) >= len(result.readings) + 1
    with pytest.raises(ValueError, match="unknown language"):
        measurement_html(result, lang="fr")
