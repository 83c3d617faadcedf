"""Every config of the project: it can be read, and where its data are absent it runs on a small likeness of them."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from mas.experiments.config.schema import MODEL_MODELS
from mas.experiments.networks import build_model
from mas.experiments.plan import Plan
from mas.experiments.read_config import load_config
from mas.experiments.runner import run_experiment
from tests.data import make_folder, real

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))
OF_OTHERS = ("mas_sequence.yaml", "mas_pairs.yaml")  # their data must be downloaded


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_can_be_read(path):
    assert Plan(load_config(path, try_data=False)).every_cell()


@real
@pytest.mark.parametrize("path", [path for path in CONFIGS if path.name not in OF_OTHERS], ids=lambda path: path.name)
def test_configs_fit_their_data(path, real_data, monkeypatch, tmp_path_factory):
    if "tiny-imagenet" in path.read_text():
        pytest.skip("unpacking its images takes a minute")
    monkeypatch.setenv("MAS_DATA", str(real_data))
    monkeypatch.setenv("MAS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_OTHERS)
def test_the_papers_sequences_run_on_small_folders(name, tmp_path, monkeypatch):
    """Each data set is replaced by a folder of its own with its own number of classes; all else is the config's."""
    (path,) = [path for path in CONFIGS if path.name == name]
    text = yaml.safe_load(path.read_text())
    monkeypatch.setenv("MAS_DATA", str(tmp_path))
    monkeypatch.setenv("MAS_CACHE", str(tmp_path / "cache"))
    names = [d if isinstance(d, str) else d["path"] for d in text["benchmark"]["datasets"]]
    sizes = [2 + number % 3 for number in range(len(names))]
    for number, dataset in enumerate(names):
        make_folder(tmp_path / dataset, {f"c{k}": 3 for k in range(sizes[number])}, shade=10 * number, size=(80, 70))
    text["benchmark"]["datasets"] = [{"name": "image_folder", "path": n, "size": 64} for n in names]
    text["strategies"] = [s for s in text["strategies"] if s["name"] == "mas"]
    text |= {"seeds": 1, "training": text["training"] | {"epochs": 1}}
    text["benchmark"]["size"] = 64
    assert text["model"].pop("weights") == "DEFAULT"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(text))
    outcome = run_experiment(load_config(tmp_path / "c.yaml"), tmp_path / "runs", workers=1)
    assert outcome.failed == []
    for record in outcome.results.records:
        matrix = torch.tensor(record.outcome.accuracy)
        assert matrix.shape == (len(names), len(names))
        assert torch.isfinite(matrix).all()


def test_pretrained_weights_are_torchvisions_own(monkeypatch):
    """No weights can be downloaded here: what torchvision would load is put in its place."""
    from torchvision.models import AlexNet_Weights, alexnet

    asked = []
    state = {key: torch.full_like(value, 0.25) for key, value in alexnet().state_dict().items()}
    monkeypatch.setattr(
        AlexNet_Weights, "get_state_dict", lambda self, *args, **kwargs: asked.append(self) or dict(state)
    )
    options = MODEL_MODELS["alexnet"](name="alexnet", weights="DEFAULT")
    model = build_model(partial(options.entry, **options.arguments()), (3, 64, 64), [3, 4], seed=0)
    assert asked == [AlexNet_Weights.DEFAULT]
    body = dict(model.body.named_parameters())
    assert all((value == 0.25).all() for value in body.values())
    assert sum(value.numel() for value in body.values()) == sum(
        value.numel() for key, value in state.items() if not key.startswith("classifier.6")
    )
    assert [head.out_features for head in model.heads] == [3, 4]
