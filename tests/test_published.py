"""What is published, against the real data; skipped where that is absent."""

import json
import os
from pathlib import Path

import pytest

from utils.data import load_pets
from utils.metrics import baselines, predict, segmentation_scores
from utils.storage import load_tensors
from utils.unet import DOWN, UP, UNet

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA_DIR", ROOT / "data"))
RESULTS = json.loads((ROOT / "Results" / "unet.json").read_text(encoding="utf-8"))
KINDS = {short: kind for kind, short in (DOWN | UP).items()}  # "MP": "maxpool", ...

pytestmark = pytest.mark.skipif(not (DATA / "oxford-iiit-pet").exists(), reason="needs Oxford-IIIT Pet")


@pytest.fixture(scope="module")
def pets():
    return load_pets("oxford-iiit-pet", DATA, RESULTS["image_size"])


def test_the_official_lists_and_the_published_baselines(pets):
    assert [len(split.names) for split in pets[1:]] == [3312, 368, 3669]
    rows = baselines(pets.train.trimaps, pets.test.trimaps)
    for name, row in RESULTS["baselines"].items():
        assert rows[name] == pytest.approx(row)


@pytest.mark.parametrize("variant", RESULTS["variants"])
def test_published_weights_find_validation_pets(pets, variant):
    """On 64 images of the validation split, the published (half-precision) weights are near their published score."""
    down, up, _ = variant.split("+")
    recipe = RESULTS["recipe"]
    model = UNet(3, 1, recipe["base_channels"], recipe["depth"], KINDS[down], KINDS[up])
    model.load_state_dict(load_tensors(ROOT / "Results" / f"unet_{variant}.pt"))
    few = [part[:64] for part in pets.validation]
    scores = segmentation_scores(predict(model, few[0]) >= 0.5, few[1])
    assert scores["iou"] == pytest.approx(RESULTS["variants"][variant]["iou_one_view"], abs=0.06)
