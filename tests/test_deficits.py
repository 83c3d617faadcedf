"""Deficits: what each does to a batch, when the plugin does it, and the streams made of them."""

import math
from functools import partial

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from mas.benchmarks import DEFICITS, DeficitPlugin, Images, apply_deficit, deficit_then_clear, make_deficit, whole
from mas.benchmarks.deficits import blur, flip, label_permutation, missing_channel, noise, occlusion
from mas.strategies import Naive
from tests.building import built_strategy

X = torch.rand(6, 3, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 2, 1])
OPTIONS = {
    "blur": {"factor": 4},
    "flip": {},
    "label_permutation": {},
    "noise": {},
    "occlusion": {"place": "random"},
    "missing_channel": {"channel": 2},
}
TRAINING = {"epochs": 2, "batch_size": 40, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0, "momentum": 0}
TRAINING |= {"device": "cpu"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_deficit_is_tried_here():
    assert set(OPTIONS) == set(DEFICITS)


@pytest.mark.parametrize("name", DEFICITS)
def test_a_deficit_draws_from_its_generator_alone_and_leaves_the_batch(name):
    deficit = make_deficit({"name": name, **OPTIONS[name]}, classes=4, seed=5)
    before, labels, state = X.clone(), Y.clone(), torch.get_rng_state()
    first, second, other = (deficit(X, Y, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(X, before)
    assert torch.equal(Y, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0].shape == X.shape
    assert first[0].dtype == X.dtype
    assert first[1].dtype == Y.dtype
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    draws = name in ("noise", "occlusion")
    assert torch.equal(first[0], other[0]) != draws
    assert not (torch.equal(first[0], X) and torch.equal(first[1], Y))


class TestBlur:
    """Against explicit sums over pixels."""

    @staticmethod
    def along(x, down, up):
        """Resize the last axis by two matrices of weights."""
        return x @ down.T @ up.T

    @staticmethod
    def bilinear(size, to):
        """Weights (to, size) of bilinear interpolation, pixel centres at half steps, edges repeated."""
        weights = torch.zeros(to, size, dtype=torch.float64)
        for i in range(to):
            at = min(max((i + 0.5) * size / to - 0.5, 0), size - 1)
            low = min(math.floor(at), size - 1)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, size - 1)] += at - low
        return weights

    @staticmethod
    def triangle(size, to):
        """Weights (to, size) of a triangle as wide as the step: antialiased bilinear interpolation."""
        step = size / to
        weights = torch.zeros(to, size, dtype=torch.float64)
        for i in range(to):
            centre = (i + 0.5) * step
            for j in range(size):
                weights[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / step)
        return weights / weights.sum(1, keepdim=True)

    @staticmethod
    def mean(size, to):
        step = size // to
        return torch.eye(to, dtype=torch.float64).repeat_interleave(step, 1) / step

    @pytest.mark.parametrize(("down", "weights"), [("resize", "triangle"), ("pool", "mean")])
    @pytest.mark.parametrize("factor", [2, 4])
    def test_equals_sums_over_pixels(self, down, weights, factor):
        make = getattr(self, weights)
        rows = self.along(X.mT, make(8, 8 // factor), self.bilinear(8 // factor, 8)).mT
        expected = self.along(rows, make(12, 12 // factor), self.bilinear(12 // factor, 12))
        assert (blur(X, Y, generator(), factor=factor, down=down)[0] - expected).abs().max() < 1e-12

    def test_does_nothing_at_factor_1(self):
        assert (blur(X, Y, generator(), factor=1)[0] - X).abs().max() < 1e-12


def test_flip():
    assert torch.equal(flip(X, Y, generator())[0], X[:, :, list(range(7, -1, -1))])
    assert torch.equal(flip(X, Y, generator(), axis="horizontal")[0], X[..., list(range(11, -1, -1))])


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_label_permutation_is_one_cycle(classes):
    y = torch.arange(classes)
    images, shown = label_permutation(X, y, generator(), classes=classes, seed=3)
    assert images is X
    assert sorted(shown.tolist()) == list(range(classes))
    place, met = 0, []
    while place not in met:
        met.append(place)
        place = int(shown[place])
    assert len(met) == classes
    again = label_permutation(X, y.flip(0), generator(7), classes=classes, seed=3)[1]
    assert torch.equal(again, shown.flip(0))  # the same for every batch and draw


def test_label_permutation_is_drawn_from_the_seed():
    y = torch.arange(10)
    shown = {tuple(label_permutation(X, y, generator(), classes=10, seed=s)[1].tolist()) for s in range(5)}
    assert len(shown) == 5


def test_noise_has_the_channels_mean_and_deviation():
    x = torch.rand(2000, 3, 8, 8, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 2, 3])[:, None, None]
    y = torch.arange(2000) % 7
    drawn, labels = noise(x, y, generator())
    kept = noise(x, y, generator(), labels="kept")
    assert (drawn.mean((0, 2, 3)) - x.mean((0, 2, 3))).abs().max() < 0.02
    assert (drawn.std((0, 2, 3)) - x.std((0, 2, 3))).abs().max() < 0.02
    assert torch.equal(drawn, kept[0])
    assert torch.equal(kept[1], y)
    assert torch.equal(labels.bincount(), y.bincount())
    assert 0.1 < (labels == y).double().mean() < 0.2  # a seventh, by chance
    assert abs(torch.corrcoef(torch.stack([drawn[:, 0].flatten(), x[:, 0].flatten()]))[0, 1]) < 0.02


def test_noise_is_for_vectors_too():
    assert noise(X.flatten(1), Y, generator())[0].shape == (6, 288)


@pytest.mark.parametrize(("share", "rows", "columns"), [(0.5, 4, 6), (1.0, 8, 12), (0.25, 2, 3)])
def test_occlusion_hides_so_many_pixels(share, rows, columns):
    for place in ("centre", "random"):
        hidden = occlusion(X + 1, Y, generator(), share=share, place=place)[0] == 0
        assert hidden.sum((1, 2, 3)).tolist() == [3 * rows * columns] * 6
        assert (hidden.any(-1).sum(-1) == rows).all()
        assert (hidden.any(-2).sum(-1) == columns).all()
    middle = occlusion(X + 1, Y, generator(), share=share)[0][:, :, 4, 6]
    assert (middle == 0).all()


def test_occlusion_at_random_covers_every_place():
    x = torch.ones(500, 1, 4, 4)
    hidden = occlusion(x, Y, generator(), share=0.5, place="random")[0] == 0
    assert hidden.any(0).all()
    assert len({tuple(image.flatten().tolist()) for image in hidden}) == 9


def test_missing_channel():
    x = missing_channel(X, Y, generator(), channel=1)[0]
    assert (x[:, 1] == 0).all()
    assert torch.equal(x[:, [0, 2]], X[:, [0, 2]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(blur, X, Y, generator(), factor=9), "blur: factor is 9; images of 8x12 pixels allow 1 to 8"),
        (partial(blur, X.flatten(1), Y, generator()), "blur is for images, .*got shape \\(6, 288\\)"),
        (partial(flip, X.flatten(1), Y, generator()), "flip is for images"),
        (partial(occlusion, X.flatten(1), Y, generator()), "occlusion is for images"),
        (partial(occlusion, X, Y, generator(), share=0.01), "occlusion: share is 0.01; of .* 8x12 .* covers none"),
        (partial(missing_channel, X.flatten(1), Y, generator()), "missing_channel is for images"),
        (partial(missing_channel, X, Y, generator(), channel=3), "channel is 3; images of 3 .* allow 0 to 2"),
        (partial(missing_channel, X[:, :1], Y, generator()), "allow none, as nothing would be left"),
        (partial(label_permutation, X, Y, generator(), classes=3), "classes is 3, and a label is 3"),
        (partial(make_deficit, "blurr", 4), "deficit is 'blurr'; known are blur, "),
        (partial(make_deficit, {"name": "blur", "size": 2}, 4), "deficit blur has no option 'size'; it has: factor, d"),
        (partial(make_deficit, {"name": "label_permutation", "classes": 2}, 4), "no option 'classes'; it has: none"),
        (partial(DeficitPlugin, flip, 3, 3), "from epoch 3 to 3; give 0 <= start < end"),
        (partial(DeficitPlugin, flip, 1, 5, epochs=4), "past the end of training after 4 epochs"),
    ],
)
def test_wrong_use_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


class _Watch(SupervisedPlugin):
    """Note what is trained on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def after_forward(self, strategy, *args, **kwargs):
        self.seen.append((strategy.mb_x.clone(), strategy.mb_y.clone()))


def trained(deficit=None, start=0, end=1, experiences=1, epochs=4, seed=0):
    stream = whole("digits", train=80, test=20, normalize=False).train_stream
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    strategy = built_strategy(Naive, model, TRAINING | {"epochs": epochs})
    watch = _Watch()
    strategy.plugins.append(watch)
    if deficit:
        strategy.plugins.insert(0, DeficitPlugin(deficit, start, end, seed=seed))
    for _ in range(experiences):
        strategy.train(stream[0])
    return watch.seen


def test_the_plugin_impairs_the_epochs_of_its_schedule():
    plain, seen = trained(), trained(flip, start=1, end=3)
    for step, ((x, y), (a, b)) in enumerate(zip(plain, seen, strict=True)):
        assert torch.equal(b, y)
        assert torch.equal(a, x.flip(-2) if 1 <= step // 2 < 3 else x)


def test_the_plugin_counts_epochs_over_all_that_is_trained():
    plain, seen = trained(experiences=2, epochs=2), trained(flip, start=1, end=3, experiences=2, epochs=2)
    assert [not torch.equal(a, x) for (x, _), (a, _) in zip(plain, seen, strict=True)] == [
        *(False, False, True, True),
        *(True, True, False, False),
    ]


def drawn(x, y, generator):
    return torch.rand(x.shape, generator=generator), y


def test_each_epoch_has_draws_of_its_own_whenever_the_deficit_begins():
    early, late, other = (trained(drawn, start, 4, seed=seed) for start, seed in ((0, 0), (2, 0), (0, 9)))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(early[4:], late[4:], strict=True))
    firsts = [*(x for x, _ in early), other[0][0]]
    assert not any(torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


def test_impaired_images_are_the_deficit_of_what_the_network_sees():
    pixels = torch.randint(256, (1100, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    scale = (torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.2))
    images = Images(pixels, torch.arange(1100) % 10, scale=scale, changes=(lambda x: x.flip(-1),))
    seen = apply_deficit(images, partial(blur, factor=2))
    expected = blur((pixels / 255).flip(-1).sub(0.3).div(0.2), images.labels, generator(), factor=2)[0]
    assert (seen.batch(torch.arange(1100)) - expected).abs().max() < 1e-5
    assert torch.equal(seen.labels, images.labels)
    drawn = (
        apply_deficit(images, noise, seed=3),
        apply_deficit(images, noise, seed=3),
        apply_deficit(images, noise, seed=4),
    )
    assert torch.equal(drawn[0].pixels, drawn[1].pixels)
    assert not torch.equal(drawn[0].pixels, drawn[2].pixels)


class TestStreams:
    """`whole` and `deficit_then_clear`."""

    def test_whole_takes_so_many_of_each_class(self):
        stream = whole("digits", train=400, test=100, normalize=False, seed=3)
        train, test = (s[0].dataset for s in (stream.train_stream, stream.test_stream))
        assert (len(stream.train_stream), len(train), len(test)) == (1, 400, 100)
        assert torch.tensor(list(train.targets)).bincount().tolist() == pytest.approx([40] * 10, abs=2)
        x, t = train.batch(range(400))[0], test.batch(range(100))[0]
        assert not {tuple(i.flatten().tolist()) for i in x} & {tuple(i.flatten().tolist()) for i in t}

    def test_the_seed_says_which_training_images(self):
        def pixels(seed, part):
            (experience,) = getattr(whole("digits", train=100, test=50, seed=seed, normalize=False), f"{part}_stream")
            return experience.dataset.batch(range(50))[0]

        assert torch.equal(pixels(1, "train"), pixels(1, "train"))
        assert not torch.equal(pixels(1, "train"), pixels(2, "train"))
        assert torch.equal(pixels(1, "test"), pixels(2, "test"))

    def test_padding_is_black_before_standardising(self):
        x = whole("digits", pad=2, normalize=False).train_stream[0].dataset.batch(range(5))[0]
        plain = whole("digits", normalize=False).train_stream[0].dataset.batch(range(5))[0]
        assert x.shape == (5, 1, 12, 12)
        assert torch.equal(x[:, :, 2:-2, 2:-2], plain)
        assert x.sum() == plain.sum()

    def test_writers_apart_are_the_first_and_the_last_of_the_file(self):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        stream = whole({"name": "digits", "train": 400, "test": 600, "writers": "apart"}, normalize=False)
        x, y, _ = stream.train_stream[0].dataset.batch(range(400))
        assert torch.equal(x.flatten(1) * 16, torch.tensor(images[:400], dtype=torch.float32))
        assert y.tolist() == labels[:400].tolist()
        assert list(stream.test_stream[0].dataset.targets) == labels[-600:].tolist()

    @pytest.mark.parametrize("name", DEFICITS)
    def test_recovery_shows_the_impaired_data_then_the_clear(self, name):
        if name == "missing_channel":
            pytest.skip("digits are grey")
        state = torch.get_rng_state()
        stream = deficit_then_clear({"name": name}, "digits", train=100, test=50, seed=3)
        clear = whole("digits", train=100, test=50, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        for side in ("train_stream", "test_stream"):
            blind, seeing = (e.dataset.batch(range(50)) for e in getattr(stream, side))
            expected = getattr(clear, side)[0].dataset.batch(range(50))
            assert torch.equal(seeing[0], expected[0])
            assert torch.equal(seeing[1], expected[1])
            assert not (torch.equal(blind[0], expected[0]) and torch.equal(blind[1], expected[1]))

    @pytest.mark.parametrize("normalize", [False, True])
    def test_recovery_augments_impaired_images_as_it_does_clear_ones(self, normalize):
        stream = deficit_then_clear(
            {"name": "blur", "factor": 2}, "digits", train=100, normalize=normalize, augment="crop"
        )
        clear = whole("digits", train=100, normalize=normalize).train_stream[0].dataset
        blurred = blur(clear.batch(range(100))[0], None, None, factor=2)[0]
        still = stream.train_stream[0].dataset.eval().batch(range(100))[0]
        torch.testing.assert_close(still, blurred, rtol=0, atol=1e-6)
        black = clear.batch(range(100))[0].min()  # no pixel is darker than the margin that a shift lets in
        torch.manual_seed(0)
        shifted = stream.train_stream[0].dataset.train().batch(range(100))[0]
        corners = shifted[..., [0, -1]][..., [0, -1], :].flatten(1)
        assert (corners.isclose(black, atol=1e-6).any(1)).float().mean() > 0.9
        assert shifted.min() >= black - 1e-6

    def test_recovery_impairs_train_and_test_alike(self):
        stream = deficit_then_clear("label_permutation", "digits", train=100, test=50, seed=3)
        shown = [
            {(int(a), int(b)) for a, b in zip(e[0].dataset.targets, e[1].dataset.targets, strict=True)}
            for e in (stream.train_stream, stream.test_stream)
        ]
        assert shown[0] == shown[1]
        assert len(shown[0]) == 10
