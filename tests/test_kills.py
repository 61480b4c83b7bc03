"""Kill -9 at random moments of a notebook's life; the long form, of all three, is `python tests/kill_notebooks.py`."""

import re

from tests.kill_notebooks import FOLDER, torment


def test_a_notebook_killed_at_random_moments_ends_with_the_same_numbers():
    told = torment("01_unet_segmentation.ipynb", kills=2, folder=FOLDER / "tests", seed=1)
    assert re.search("training|results|the end", told), f"only before the first checkpoint: {told}"
