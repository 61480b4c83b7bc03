"""Results/: the published networks and numbers, how a run writes its own, and the tables made from them."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn

from utils.classifiers import build_digit_guide, build_digit_judge, build_picture_guide, build_picture_judge
from utils.cvae import build_digit_vae, build_picture_vae
from utils.files import DamagedFileError, load_tensors, save_json, save_tensors, write_atomically
from utils.metrics import effect_by_seed
from utils.training import Training
from utils.unet import build_unet

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "Results"
NOTEBOOKS = {
    "unet": "01_unet_segmentation.ipynb",
    "cvae_mnist": "02_conditional_vae_mnist.ipynb",
    "cvae_cifar10": "03_conditional_vae_cifar10.ipynb",
}
MEASURES = {  # key of the json files: (title, format)
    "iou": ("IoU", "{:.3f}"),
    "dice": ("Dice", "{:.3f}"),
    "pixel_accuracy": ("pixel accuracy", "{:.3f}"),
    "iou_border_ignored": ("IoU, border ignored", "{:.3f}"),
    "iou_per_image": ("IoU per image", "{:.3f}"),
    "iou_one_view": ("IoU, one view", "{:.3f}"),
    "wrong_label_agreement": ("judge reads the label sent", "{:.1%}"),
    "guide_agreement": ("guide reads the label sent", "{:.1%}"),
    "true_class_agreement": ("judge reads the true class", "{:.1%}"),
    "swap_agreement": ("swap: judge reads the label sent", "{:.1%}"),
    "right_label_agreement": ("right label: judge reads it", "{:.1%}"),
    "source_retrieval": ("source found among 100", "{:.1%}"),
    "read_and_found": ("label read and source found", "{:.1%}"),
    "plain_retrieval": ("found by the plain model's encoder", "{:.1%}"),
    "linear_probe": ("linear probe of the code", "{:.1%}"),
    "thickness_correlation": ("thickness, rank correlation", "{:.2f}"),
    "slant_correlation": ("slant, rank correlation", "{:.2f}"),
    "colour_correlation": ("colour, rank correlation", "{:.2f}"),
    "frechet": ("Fréchet distance", "{:.1f}"),
    "diversity": ("diversity", "{:.2f}"),
    "specks": ("specks", "{:.1%}"),
    "read_right": ("read right", "{:.1%}"),
    "plainly_visible": ("right and plainly visible", "{:.1%}"),
    "negative_elbo": ("−ELBO", "{:.1f} nats"),
    "reconstruction": ("reconstruction", "{:.1f} nats"),
    "kl": ("KL", "{:.1f} nats"),
    "bits_per_dim": ("bits per dimension", "{:.2f}"),
    "psnr": ("PSNR", "{:.1f} dB"),
}
REPEATED = [  # the measures of Part 2 that are shown for each seed
    "wrong_label_agreement",
    "source_retrieval",
    "read_and_found",
    "thickness_correlation",
    "slant_correlation",
    "colour_correlation",
    "frechet",
    "diversity",
    "negative_elbo",
    "psnr",
]
REMEDY = "clone the course anew, leave the sizes of its networks as they are, or set pretrained to False"
FACTORS = [  # of the eight U-Nets: (title, from, to)
    ("max pooling to strided convolution", "MP", "StrConv"),
    ("transposed convolution to upsampling", "Tr", "Ups"),
    ("BCE to Dice loss", "BCE", "Dice"),
]
NAMES = {"label_following": "label-following", "all_foreground": "all foreground", "mean_mask": "mean training mask"}


class PublishedError(RuntimeError):
    """Published files that are missing, damaged, or do not fit the parameters; the message says what to do."""


# --- Networks and numbers ---------------------------------------------------------------------------------------------


def load_network(part: str, name: str) -> nn.Module:
    """A published network with its weights, in evaluation mode, on the CPU.

    Part "unet" has the four variants, such as "MP+Tr+BCE"; "cvae_mnist" and "cvae_cifar10" have "plain",
    "label_following", "judge" and "guide". PublishedError if there is no such network, or its file is missing or
    damaged.
    """
    load_training(part, name)
    return load_weights(part, name, build_network(part, name, load_numbers(part)["recipe"]))


def build_network(part: str, name: str, recipe: dict) -> nn.Module:
    """A network of the published sizes, with random weights."""
    if part == "unet":
        return build_unet(name, recipe["base_channels"], recipe["depth"])
    digits, sizes = part == "cvae_mnist", (recipe["latent_size"], recipe["base_channels"])
    if name == "judge":
        return build_digit_judge() if digits else build_picture_judge(recipe["judge_channels"])
    if name == "guide":
        return build_digit_guide() if digits else build_picture_guide(recipe["guide_channels"])
    if digits:
        return build_digit_vae(*sizes, "both")
    return build_picture_vae(*sizes, *(("both", 0) if name == "plain" else ("decoder", recipe["hidden"])))


def load_weights(part: str, name: str, model: nn.Module) -> nn.Module:
    """The model with its published weights, in evaluation mode.

    PublishedError if they are missing or damaged, or those of a network of another size.
    """
    path = RESULTS / f"{part}_{name}.pt"
    if not path.is_file():
        raise PublishedError(f"{path} is missing: {REMEDY}")
    try:
        model.load_state_dict(load_tensors(path))
    except DamagedFileError as error:
        raise PublishedError(f"{path} is damaged: {REMEDY}") from error
    except RuntimeError as error:
        raise PublishedError(f"{path} is of a network of another size: {REMEDY}") from error
    return model.eval()


def load_numbers(part: str, folder: Path | None = None) -> dict:
    """What a part's json file holds; PublishedError if it is missing or damaged."""
    path = (folder or RESULTS) / f"{part}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        found = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise PublishedError(f"{path} is {found}: clone the course anew") from error


def load_trainings(part: str) -> dict[str, Training]:
    """How the trainings of a part's networks went, by name; errors as in `load_numbers`."""
    trainings = load_numbers(f"{part}_trainings")["trainings"]
    return {name: Training(**training) for name, training in trainings.items()}


def load_training(part: str, name: str) -> Training:
    """How the training of a published network went; PublishedError if there is no such network."""
    trainings = load_trainings(part)
    if name not in trainings:
        choice = f"choose from {list(trainings)}, or set pretrained to False"
        raise PublishedError(f"part {part} has no published network {name!r}: {choice}")
    return trainings[name]


def save_results(folder: Path, part: str, numbers: dict, trainings: dict[str, Training], networks: dict) -> None:
    """Write a run's numbers, how its trainings went, and its networks' weights in half precision."""
    save_json(folder / f"{part}.json", numbers)
    rows = {name: training._asdict() for name, training in trainings.items()}
    save_json(folder / f"{part}_trainings.json", {"dataset": numbers["dataset"], "trainings": rows})
    for name, network in networks.items():
        weights = network.state_dict().items()
        halved = {key: (x.half() if x.is_floating_point() else x).cpu() for key, x in weights}
        save_tensors(folder / f"{part}_{name}.pt", halved)


@torch.no_grad()
def round_weights(model: nn.Module) -> None:
    """Round every weight to half precision, in place: what is measured from here on is what the saved file does."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


# --- Tables, as Markdown ----------------------------------------------------------------------------------------------


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def measure_table(rows: dict[str, dict[str, float]], keys: list[str]) -> str:
    """A row for each name, a column for each measure; nothing where a row lacks one."""
    table = [["", *(MEASURES[key][0] for key in keys)]]
    for name, row in rows.items():
        table.append([NAMES.get(name, name), *(formatted(key, row[key]) if key in row else "" for key in keys)])
    return markdown_table(table)


def formatted(key: str, value: float) -> str:
    """One measure with its unit."""
    text = MEASURES[key][1].format(value)
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def unet_tables(results: dict) -> dict[str, str]:
    """Part 1: the assignment's 2x2 table (rows: down-sampling, columns: loss), and two of all scores."""
    square = [["", "BCE", "Dice loss"]]
    for down, title in {"MP": "**MP** (max pooling)", "StrConv": "**StrConv** (strided convolution)"}.items():
        square.append([title, *(variant_cell(results["variants"], down, loss) for loss in ("BCE", "Dice"))])
    rows = results["variants"] | baseline_rows(results)
    return {
        "unet-2x2": markdown_table(square),
        "unet-scores": measure_table(rows, ["iou", "dice", "pixel_accuracy", "iou_border_ignored"]),
        "unet-more": measure_table(rows, ["iou", "iou_per_image", "iou_one_view"]),
    }


def variant_cell(variants: dict, down: str, loss: str) -> str:
    """What the 2x2 table says of one variant."""
    for up, decoder in {"Tr": "transposed convolution", "Ups": "bilinear upsampling"}.items():
        if row := variants.get(f"{down}+{up}+{loss}"):
            score = with_deviation(row) if "seeds" in row else f"{row['iou']:.3f}"
            return f"**IoU {score}**<br>{up} ({decoder})<br>{row['parameters'] / 1e6:.2f} M parameters"
    return "not trained"


def over_seeds(ious: list[float]) -> dict[str, float]:
    """Mean and standard deviation of a U-Net's test IoU over trainings with several seeds."""
    return {"iou_mean": mean(ious), "iou_sd": stdev(ious)}


def with_deviation(row: dict[str, float]) -> str:
    """What `over_seeds` gives, as text."""
    return f"{row['iou_mean']:.4f} ± {row['iou_sd']:.4f}"


def iou_by_seed(variant: str, iou: float, repeats: dict) -> dict[int, float]:
    """A published U-Net's test IoU with its own seed, and that of its repeats with theirs."""
    others = {row["seed"]: row["iou"] for row in repeats["rows"] if row["variant"] == variant}
    return {load_numbers("unet")["seed"]: iou} | others


def with_repeats(variant: str, iou: float) -> dict:
    """A published U-Net's test IoU over its own seed and those of its repeats: mean, standard deviation, and seeds."""
    ious = iou_by_seed(variant, iou, load_numbers("unet_repeats"))
    return over_seeds([*ious.values()]) | {"seeds": [*ious]}


def repeat_tables(repeats: dict) -> dict[str, str]:
    """Part 1's four published variants with each of their seeds."""
    published = load_numbers("unet")
    table = [["", *(f"seed {seed}" for seed in [published["seed"], *repeats["seeds"]]), "mean ± standard deviation"]]
    for variant, row in published["variants"].items():
        ious = iou_by_seed(variant, row["iou"], repeats).values()
        table.append([variant, *(f"{iou:.4f}" for iou in ious), with_deviation(over_seeds([*ious]))])
    return {"unet-repeats": markdown_table(table)}


def sweep_tables(sweep: dict) -> dict[str, str]:
    """Part 1's eight variants over several seeds: mean and standard deviation of each, and each factor's effect."""
    ious = {(row["variant"], row["seed"]): row["iou"] for row in sweep["rows"]}
    means = [["", "BCE", "Dice loss"]]
    for place in ("MP+Tr", "MP+Ups", "StrConv+Tr", "StrConv+Ups"):
        each = ([ious[f"{place}+{loss}", seed] for seed in sweep["seeds"]] for loss in ("BCE", "Dice"))
        means.append([place, *map(with_deviation, map(over_seeds, each))])
    effects = [["change in IoU", *(f"seed {seed}" for seed in sweep["seeds"]), "mean ± standard error"]]
    for title, before, after in FACTORS:
        of_seed = effect_by_seed(ious, before, after)
        differences = [of_seed[seed] for seed in sweep["seeds"]]
        error = stdev(differences) / len(differences) ** 0.5
        row = [f"{difference:+.4f}".replace("-", "−") for difference in [*differences, mean(differences)]]
        effects.append([title, *row[:-1], f"{row[-1]} ± {error:.4f}"])
    return {"unet-seeds": markdown_table(means), "unet-effects": markdown_table(effects)}


def width_tables(wide: dict) -> dict[str, str]:
    """Part 1's wider networks, each below the published one of the same variant and recipe."""
    table = [["", "IoU", "IoU, one view", "parameters"]]
    for variant in wide["variants"]:
        for numbers in (load_numbers("unet"), wide):
            row, channels = numbers["variants"][variant], numbers["recipe"]["base_channels"]
            scores = (formatted(key, row[key]) for key in ("iou", "iou_one_view"))
            table.append([f"{variant}, {channels} channels", *scores, f"{row['parameters'] / 1e6:.2f} M"])
    return {"unet-wide": markdown_table(table)}


def cvae_tables(results: dict) -> dict[str, str]:
    """Part 2a or 2b: what became of the label, other measures, the parts of the ELBO, a baseline, how real it looks."""
    models, name = results["models"], f"cvae-{results['dataset']}"
    rows, measured = models | baseline_rows(results), [key for key in MEASURES if key in models["plain"]]
    first = ["wrong_label_agreement", "true_class_agreement", "source_retrieval"]
    first.append("psnr" if "psnr" in measured else "negative_elbo")
    more = [key for key in measured if key not in first and key.endswith(("agreement", "correlation"))]
    nats = [key for key in measured if key not in first + more or key == "negative_elbo"]
    tables = {name: (rows, first), f"{name}-more": (rows, more), f"{name}-elbo": (models, nats)}
    if repainted := results.get("repainted"):
        tables[f"{name}-repainted"] = repainted, [key for key in MEASURES if key in repainted["label_following"]]
    if realism := results.get("realism"):  # the last that a notebook measures
        tables[f"{name}-realism"] = realism, [key for key in MEASURES if key in realism["plain"]]
    return {name: measure_table(*table) for name, table in tables.items()}


def cvae_measures(numbers: dict) -> dict[str, dict[str, float]]:
    """What a run of Part 2 has measured of both VAEs on the test set; where twice, then on more images."""
    repainted = numbers.get("repainted", {})
    return {name: repainted.get(name, {}) | numbers["realism"][name] | row for name, row in numbers["models"].items()}


def cvae_repeat_tables(repeats: dict) -> dict[str, str]:
    """The two VAEs of Part 2a or 2b with each of their seeds."""
    published = load_numbers(f"cvae_{repeats['dataset']}")
    runs = [{"seed": published["seed"], "models": cvae_measures(published)}, *repeats["rows"]]
    tables, seeds = {}, [f"seed {run['seed']}" for run in runs]
    for model, measured in runs[0]["models"].items():
        table = [["", *seeds, "mean ± standard deviation"]]
        for key in (key for key in REPEATED if key in measured):
            values = [run["models"][model][key] for run in runs]
            table.append([MEASURES[key][0], *(formatted(key, value) for value in values), spread(key, values)])
        tables[f"cvae-{repeats['dataset']}-{model}-repeats"] = markdown_table(table)
    return tables


def spread(key: str, values: list[float]) -> str:
    """Mean and standard deviation of one measure, as text."""
    return f"{formatted(key, mean(values))} ± {formatted(key, stdev(values))}"


def control_tables(control: dict) -> dict[str, str]:
    """Part 2b's two VAEs, and between them the network of the second with the loss of the first, over their seeds."""
    runs = [load_numbers("cvae_cifar10"), *load_numbers("cvae_cifar10_repeats")["rows"]]
    plain, following = ([run["models"][name] for run in runs] for name in ("plain", "label_following"))
    keys = ["bits_per_dim", "psnr", "kl"]
    table = [["", *(MEASURES[key][0] for key in keys)]]
    for name, rows in {"plain": plain, "control": control["rows"], "label-following": following}.items():
        table.append([name, *(spread(key, [row[key] for row in rows]) for key in keys)])
    return {"cvae-cifar10-control": markdown_table(table)}


def baseline_rows(results: dict) -> dict[str, dict[str, float]]:
    """The baselines' rows, marked as such."""
    return {f"*baseline: {NAMES.get(name, name)}*": row for name, row in results["baselines"].items()}


TABLES = {
    "unet": unet_tables,
    "unet_repeats": repeat_tables,
    "unet_sweep": sweep_tables,
    "unet_wide": width_tables,
    "cvae_mnist": cvae_tables,
    "cvae_cifar10": cvae_tables,
    "cvae_mnist_repeats": cvae_repeat_tables,
    "cvae_cifar10_repeats": cvae_repeat_tables,
    "cvae_cifar10_control": control_tables,
}


def with_tables(text: str, tables: dict[str, str]) -> str:
    """A text whose sections <!-- name --> ... <!-- /name --> hold the tables of these names; it need not have all."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text)
    return text


def update_pages() -> None:
    """Bring the tables in Results/*.md and in the README up to date with the json files."""
    readme = ROOT / "README.md"
    texts = {readme: readme.read_text(encoding="utf-8")}
    for part, tables_of in TABLES.items():
        tables = tables_of(load_numbers(part))
        texts[readme] = with_tables(texts[readme], tables)
        texts[RESULTS / f"{part}.md"] = "\n\n".join(tables.values()) + "\n"
    for path, text in texts.items():
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
