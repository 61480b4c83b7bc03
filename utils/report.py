"""Tables as Markdown, from the json files that a run writes: the same text for notebook, Results/ and README.

`python -m utils.report` writes Results/*.md, and the same tables between their markers in the README.
"""

import hashlib
import json
import re
from pathlib import Path

from utils.storage import write_atomically

SCORES = {
    "iou": "IoU",
    "dice": "Dice",
    "pixel_accuracy": "pixel accuracy",
    "iou_per_image": "IoU per image",
    "iou_border_ignored": "IoU, border ignored",
    "iou_one_view": "IoU, one view",
}
BASELINES = {"all_foreground": "all foreground", "mean_mask": "mean training mask"}
MEASURES = {
    "wrong_label_agreement": "reads as the label sent",
    "guide_agreement": "the guide reads the label sent",
    "true_class_kept": "still reads as the true class",
    "swap_agreement": "swap: reads as the label sent",
    "own_label_agreement": "right label: reads as it",
    "style_retention": "source found among 100",
    "thickness_kept": "thickness kept",
    "slant_kept": "slant kept",
    "colour_kept": "colour kept",
    "leakage": "class read off the code",
    "negative_elbo": "−ELBO",
    "reconstruction": "reconstruction",
    "kl": "KL",
    "bits_per_dim": "bits per dimension",
    "psnr": "PSNR",
}
NATS = ("negative_elbo", "reconstruction", "kl")
DECIMALS = ("thickness_kept", "slant_kept", "colour_kept", "bits_per_dim")
DECODERS = {"Tr": "transposed convolution", "Ups": "bilinear upsampling"}


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def two_by_two(results: dict) -> str:
    """The assignment's table: rows are down-samplings, columns are losses, each cell names its decoder."""
    rows = [["", "BCE", "Dice loss"]]
    for down, title in {"MP": "**MP** (max pooling)", "StrConv": "**StrConv** (strided convolution)"}.items():
        rows.append([title, *(cell(results["variants"], down, loss) for loss in ("BCE", "Dice"))])
    return markdown_table(rows)


def cell(variants: dict, down: str, loss: str) -> str:
    """What the 2x2 table says of one variant, or a dash for one that was not trained."""
    for name, row in variants.items():
        its_down, up, its_loss = name.split("+")
        if (its_down, its_loss) == (down, loss):
            return (
                f"{up} ({DECODERS[up]})<br>**IoU {row['iou']:.3f}**, Dice {row['dice']:.3f}, "
                f"pixel accuracy {row['pixel_accuracy']:.3f}<br>{row['parameters'] / 1e6:.2f} M parameters, "
                f"{row['seconds_per_epoch']:.0f} s an epoch"
            )
    return "not trained"


def long_table(results: dict) -> str:
    """Every score of every variant, above the baselines."""
    rows = [["", *SCORES.values(), "epochs", "s per epoch"]]
    for name, row in results["variants"].items():
        rows.append([name, *scores(row), str(row["epochs"]), f"{row['seconds_per_epoch']:.0f}"])
    for name, title in BASELINES.items():
        rows.append([f"*baseline: {title}*", *scores(results["baselines"][name]), "", ""])
    return markdown_table(rows)


def scores(row: dict) -> list[str]:
    """Scores with three decimals, in the order of SCORES; nothing where a baseline has no such score."""
    return [f"{row[name]:.3f}" if name in row else "" for name in SCORES]


def unet_tables(results: dict) -> dict[str, str]:
    """The tables of part 1 by the name of their README marker."""
    return {"unet-2x2": two_by_two(results), "unet-long": long_table(results)}


def measure_table(rows: dict[str, dict[str, float]], names: list[str]) -> str:
    """What a wrong label does to each model, a row each: shares in %, correlations, nats per image."""
    table = [["", *(MEASURES[name] for name in names)]]
    for title, row in rows.items():
        table.append([title, *(measure(name, row[name]) if name in row else "" for name in names)])
    return markdown_table(table)


def measure(name: str, value: float) -> str:
    """One measure with its unit."""
    if name in NATS:
        return f"{value:.1f} nats"
    if name == "psnr":
        return f"{value:.1f} dB"
    if name in DECIMALS:
        return f"{round(value, 2) + 0.0:.2f}"  # plus zero, or what rounds to nothing may read "-0.00"
    return f"{value:.1%}"


def cvae_tables(results: dict) -> dict[str, str]:
    """The tables of part 2a or 2b by the name of their README marker."""
    baselines = {f"*baseline: {name}*": row for name, row in results["baselines"].items()}
    names = [name for name in MEASURES if name in results["models"]["plain"]]
    return {f"cvae-{results['data']}": measure_table(results["models"] | baselines, names)}


def weights_table(results: dict[str, dict], folder: Path) -> str:
    """A row for each file of weights (*.pt) in a folder: its size and checksum, what trained it, its test figures.

    Args:
        results: of each part, by the name that its files begin with.
        folder: where they lie.
    """
    rows = [["file", "MB", "trained by", "on the test set", "SHA-256"]]
    for path in sorted(folder.glob("*.pt")):
        part = next(part for part in results if path.name.startswith(f"{part}_"))
        content, name = path.read_bytes(), path.stem.removeprefix(f"{part}_")
        figures, checksum = figures_of(results[part], name), hashlib.sha256(content).hexdigest()
        rows.append([path.name, f"{len(content) / 1e6:.1f}", NOTEBOOKS[part], figures, f"`{checksum}`"])
    return markdown_table(rows)


def figures_of(results: dict, name: str) -> str:
    """What a part's results say of one network: a U-Net's variant, a classifier or a conditional VAE."""
    if "variants" in results:
        return f"IoU {results['variants'][name]['iou']:.3f}"
    if name not in results["models"]:
        return f"reads {results[f'{name}_accuracy']:.2%} right"
    row = results["models"][name]
    return ", ".join(f"{MEASURES[key]} {measure(key, row[key])}" for key in ("wrong_label_agreement", "negative_elbo"))


def as_page(tables: dict[str, str]) -> str:
    """All tables, one after the other."""
    return "\n\n".join(tables.values()) + "\n"


def with_tables(text: str, tables: dict[str, str]) -> str:
    """A text whose sections <!-- name --> ... <!-- /name --> hold the tables.

    Raises:
        ValueError: if a marker is missing.
    """
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the markers <!-- {name} --> and <!-- /{name} --> are missing")
        text = pattern.sub(lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text)
    return text


def main() -> None:
    """Bring the pages in Results/ and the README up to date with the json files."""
    readme, folder, texts = Path("README.md"), Path("Results"), {}
    texts[readme] = readme.read_text(encoding="utf-8")
    results = {part: json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    for part, tables_of in PARTS.items():
        tables = tables_of(results[part])
        texts[readme] = with_tables(texts[readme], tables)
        texts[folder / f"{part}.md"] = as_page(tables)
    benchmark = (folder / "benchmark.md").read_text(encoding="utf-8").strip()
    texts[readme] = with_tables(texts[readme], {"benchmark": benchmark})
    texts[folder / "weights.md"] = weights_table(results, folder) + "\n"
    for path, text in texts.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))


NOTEBOOKS = {
    "unet": "01_unet_segmentation.ipynb",
    "cvae_mnist": "02_conditional_vae_mnist.ipynb",
    "cvae_cifar10": "03_conditional_vae_cifar10.ipynb",
}
PARTS = {"unet": unet_tables, "cvae_mnist": cvae_tables, "cvae_cifar10": cvae_tables}


if __name__ == "__main__":
    main()
