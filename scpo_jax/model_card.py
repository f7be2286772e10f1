"""The model card, `README.md` of an exported folder: what the model is, how good, whose licence, how to load it."""

import json
import pathlib

import jinja2

from scpo_jax import __version__, storage
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import fields
from scpo_jax.scpo import HEADS
from scpo_jax.workdir import Workdir, is_workdir

HUB_DATA = {"prism": "HannahRoseKirk/prism-alignment", "global_opinions": "Anthropic/llm_global_opinions"}
TOLD = {  # name -> key of the checkpoint's card
    "trained on groups": "trained_on", "training pairs": "pairs", "steps": "steps", "tau": "tau", "beta": "beta",
}  # fmt: skip
UNKNOWN, SCRATCH = "unknown", "none: trained from scratch"


def text_of(source: str, loaded: Loaded, place: str) -> str:
    """The card of an exported model. Raises InputError.

    `source` is the checkpoint, or the workdir of a blend, that it comes from; `place` is where readers find the folder,
    its hub id or its name. Paths of this machine are not named.
    """
    run = workdir_of(source)
    described = describe(loaded, run, place)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scpo_jax"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("model_card.md").render(card=described)


def workdir_of(source: str) -> Workdir | None:
    """The workdir that a checkpoint lies in, or that `source` itself is; None if there is none."""
    folder = storage.absolute(source)
    found = [path for path in (folder, *list(folder.parents)[1:3]) if is_workdir(path)]
    return Workdir(found[0]) if found else None


def describe(loaded: Loaded, run: Workdir | None, place: str) -> dict:
    """What the template says, by name."""
    card, config = loaded.card, run.record()["config"] if run else {}
    group, profile = card["group"], card["profile"] if "profile" in card else None
    heads = loaded.model.heads
    speaks_for = "the annotators it was trained on" if card["method"] == "global" else f"annotators of {group}"
    title = f"Reward model of {group}, {card['method']}" if group else "Global reward model"
    if profile is not None:
        speaks_for = f"annotators of {fields.listing(profile)}" if profile else "the annotators of the global model"
        title = "Reward model blended of several groups"
    if heads:
        speaks_for, title = f"annotators of {fields.listing(heads)}", "Reward model with a head for each of its groups"
    base, base_id = base_model(config)
    licence = licence_of(base, config) if base else UNKNOWN
    data, data_id = data_of(config)
    return {
        "title": cell(title),
        "speaks_for": cell(speaks_for),
        "made_by": made_by(card, profile),
        "version": __version__,
        "licence": licence,
        "licence_note": licence_note(base, licence),
        "base_id": base_id,
        "data_id": data_id,
        "facts": {name: cell(value) for name, value in facts(loaded, config, data).items()},
        "accuracies": [] if profile is not None else accuracies(run, card["method"], group),
        "verdict": verdict(run, card["method"], group),
        "causal": loaded.model.reads != "first",
        "adapters": loaded.model.lora is not None,
        "heads": bool(heads),
        "place": place,
        "max_length": card["max_length"],
        "standard": standard(card),
    }


def cell(value) -> str:
    """A value in one line of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def made_by(card: dict, profile: dict | None) -> str:
    """How it came about, in a sentence."""
    if profile is not None:
        return "Its weights are a blend of the global one's and of those of the groups' models, nothing was trained."
    if card["method"] == "global":
        return "It is the global model, from which those of groups are trained."
    pairs = "one group" if card["method"] != HEADS else "all groups together, a score head on the pairs of each"
    return f"It was trained from the global model by the method `{card['method']}`, on the pairs of {pairs}."


def facts(loaded: Loaded, config: dict, data: str) -> dict:
    """The table at the top."""
    card, base = loaded.card, base_model(config)[0]
    told = {"method": card["method"]}
    told |= {"group": card["group"]} if card["group"] else {}
    if "profile" in card:
        told["profile"] = json.dumps(card["profile"], ensure_ascii=False)
    told |= {"base model": base or UNKNOWN, "architecture": loaded.model.family, "data": data}
    if config:
        told["groups in the data"] = fields.listing(config["data.groups"]) or "all"
    if loaded.model.lora:
        told["adapters"] = f"LoRA of rank {loaded.model.lora.rank}, alpha {loaded.model.lora.alpha:g}"
    for name, key in TOLD.items():
        if key in card:
            told[name] = fields.listing(card[key]) if isinstance(card[key], list) else card[key]
    return told | {"longest text": f"{card['max_length']} tokens", "encoding": card["encoding"]}


def base_model(config: dict) -> tuple[str, str]:
    """(what to call it, its hub id); "" where unknown. Of a local folder only the name is told."""
    if not config:
        return "", ""
    name = config["model.name_or_path"]
    if not name:
        return SCRATCH, ""
    if pathlib.Path(name).expanduser().exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return f"a local folder, {pathlib.Path(name).name}", ""
    revision = f" at revision {config['model.revision']}" if config["model.revision"] else ""
    return f"{name}{revision}", name


def data_of(config: dict) -> tuple[str, str]:
    """(what to call the data, their hub id); "" where they come from no hub."""
    if not config:
        return UNKNOWN, ""
    source, path = config["data.source"], config["data.path"]
    if source == "simulated":
        return "a simulated world, in which the names of countries are borrowed", ""
    local = bool(path) and pathlib.Path(path).expanduser().exists()
    file = f", file {pathlib.Path(path).name}" if local else ""
    return f"{source}{file}", HUB_DATA[source] if source in HUB_DATA and not local else ""


def licence_of(base: str, config: dict) -> str:
    """The licence that the base model's card or config states, else "unknown"."""
    name = config["model.name_or_path"]
    folder = pathlib.Path(name).expanduser()
    if not name:
        return UNKNOWN
    if folder.is_dir():
        return _licence_in(folder / "README.md", folder / "config.json")
    import huggingface_hub  # slow to import

    found = []
    for file in ("README.md", "config.json"):
        try:
            revision = config["model.revision"] or None
            found.append(pathlib.Path(huggingface_hub.hf_hub_download(name, file, revision=revision)))
        except Exception:  # offline, gated or gone: the client's own errors, those of its HTTP library, OSError
            continue
    return _licence_in(*found)


def licence_note(base: str, licence: str) -> str:
    """What the licence means to a reader."""
    if base == SCRATCH:
        return "It has no base model, and its owner has not stated a licence."
    if licence == UNKNOWN:
        return "Neither the base model's card nor its config states a licence: look it up before you pass this on."
    return f"The licence of the base model applies: {licence}."


def _licence_in(*files: pathlib.Path) -> str:
    import huggingface_hub

    for file in files:
        try:
            if file.suffix == ".json":
                stated = json.loads(file.read_text(encoding="utf-8"))
                licence = stated["license"] if "license" in stated else None
            else:
                licence = huggingface_hub.ModelCard.load(file).data.license
        except Exception:  # no such file, or nothing that can be read
            continue
        if isinstance(licence, str) and licence.strip():
            return " ".join(licence.split())
    return UNKNOWN


def accuracies(run: Workdir | None, method: str, group: str) -> list[list[str]]:
    """Rows (group, reward model, all, edited, agreed, pairs), the model's own and the global one's beside it."""
    report = _evaluation(run)
    known = report["methods"] if report else {}
    rows = []
    for name in dict.fromkeys((method, "global")):
        if method not in known or name not in known:
            continue
        for own, record in known[name].items():
            if own == group or not group:
                shown = [percent(record[which]) for which in ("all", "edited", "agreed")]
                rows.append([cell(own), name, *shown, str(record["all"]["n"])])
    return rows


def _evaluation(run: Workdir | None) -> dict:
    return run.read_json(run.reports / "evaluation.json", {}) if run else {}


def percent(record: dict) -> str:
    """A record A in percent with its interval; a dash where it says nothing."""
    if record["accuracy"] is None:
        return "-"
    value, low, high = (100 * record[key] for key in ("accuracy", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def verdict(run: Workdir | None, method: str, group: str) -> str:
    """What the control runs say of a group's RM; "" where they say nothing of it."""
    report = _evaluation(run)
    claims = report["controls"] if report else {}
    judged = "sentences" in claims and claims["method"] == method and group in claims["sentences"]
    return f"Culture, or the data set? {cell(claims['sentences'][group])}" if judged else ""


def standard(card: dict) -> str:
    """Mean and standard deviation of the scores, as the end of a sentence."""
    if "score_std" not in card or isinstance(card["score_std"], list):
        return ""
    mean, std = card["score_mean"], card["score_std"]
    return f"; on training texts their mean is {mean:.3g} and their standard deviation {std:.3g}"
