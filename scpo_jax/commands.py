"""The commands of `scpo`: their flags, and which function gets the values."""

from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from scpo_jax import distributed, preemption
from scpo_jax.errors import InputError


class Command(NamedTuple):
    """A command: what it does in a line, its flags, and the function that gets their values."""

    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, str], int | None]  # the exit code, None for 0


def _define_run(values: flags.FlagValues) -> None:
    from scpo_jax import configuration

    flags.DEFINE_string("config", None, "config file; --config.KEY=VALUE changes a key", flag_values=values)
    configuration.define_flags(values)
    flags.DEFINE_string("workdir", None, "folder for all files of the run, local or gs://", flag_values=values)
    flags.DEFINE_list("stages", [], "run these stages only", flag_values=values)
    flags.DEFINE_bool("force", False, "redo the stages that another config made", flag_values=values)
    flags.DEFINE_bool("plan", False, "print what would be done, and do nothing", flag_values=values)
    _define_processes(values)


def _define_processes(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, for several processes; TPU pods need no flag", flag_values=values
    )
    flags.DEFINE_integer("processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process", None, "which of them this is, from 0", flag_values=values)


def _meet(values: flags.FlagValues, heartbeat_seconds: int) -> None:
    """Joins the other processes, if there are any."""
    distributed.initialize(values.coordinator, values.processes, values.process, heartbeat_seconds)


def _run(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import configuration, pipeline, plan
    from scpo_jax.workdir import Workdir

    _require(values, "config", "workdir")
    config, workdir = configuration.load(values.config, values), Workdir(values.workdir)
    _meet(values, config.distributed.heartbeat_seconds)
    if values.plan:
        if distributed.count() > 1:
            raise InputError("--plan is for one process: leave --coordinator, --processes and --process out")
        plan.show(config, workdir, force=values.force)
    else:
        preemption.heed_notices()
        pipeline.run(config, workdir, only=values.stages, force=values.force, command=command)


def _define_sft(values: flags.FlagValues) -> None:
    from scpo_jax import configuration

    flags.DEFINE_string("config", None, "config file; --config.KEY=VALUE changes a key", flag_values=values)
    configuration.define_flags(values)
    flags.DEFINE_string("workdir", None, "folder for all files of the run, local or gs://", flag_values=values)
    _define_processes(values)


def _sft(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import configuration, pipeline, sft
    from scpo_jax.workdir import Workdir

    _require(values, "config", "workdir")
    config, workdir = configuration.load(values.config, values), Workdir(values.workdir)
    _meet(values, config.distributed.heartbeat_seconds)
    preemption.heed_notices()
    pipeline.run(config, workdir, only=("prepare",), command=command)
    sft.run(config, workdir)


def _define_model(values: flags.FlagValues) -> None:
    _define_single_model(values)
    _define_processes(values)


def _define_single_model(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "hub id, Hugging Face folder, checkpoint or workdir", flag_values=values)
    flags.DEFINE_string("method", "scpo", "of a workdir: the method whose models answer, or global", flag_values=values)
    flags.DEFINE_string("revision", "", "of a hub id", flag_values=values)
    flags.DEFINE_integer(
        "max_length", None, "tokens of prompt and response; default the model's own", flag_values=values
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute type", flag_values=values)
    _define_profile(values)


def _define_profile(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "profile",
        None,
        "blend the RMs of a workdir: Chile=0.7,Mexico=0.3, the same as JSON, or a file of scpo steer",
        flag_values=values,
    )


def _define_score(values: flags.FlagValues) -> None:
    _define_model(values)
    flags.DEFINE_string(
        "input", None, "JSONL, CSV or Parquet with prompt and response, or chosen and rejected", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "JSONL (or NAME.parquet) to write: the input's fields and the scores", flag_values=values
    )
    flags.DEFINE_list("columns", [], "to add, of ref, difference, keep, weight", flag_values=values)
    flags.DEFINE_string(
        "reference", None, "M that --columns compare with; default the global RM of a workdir", flag_values=values
    )
    flags.DEFINE_float("tau", None, "of the column keep; default that of the row's RM", flag_values=values)
    flags.DEFINE_float("beta", None, "of the column weight; default that of the row's RM", flag_values=values)


def _score(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import ref_columns, score_files

    _require(values, "model", "input", "output")
    judge = _judge(values)
    settings = {name: values[name].value for name in ("reference", "tau", "beta", "max_length", "dtype")}
    columns = ref_columns.open_columns(values.columns, judge, values.model, **settings)
    score_files.score_file(judge, values.input, values.output, columns)


def _define_evaluate(values: flags.FlagValues) -> None:
    _define_model(values)
    flags.DEFINE_string("data", None, "preference pairs: JSON lines, CSV or Parquet", flag_values=values)
    flags.DEFINE_enum("source", "jsonl", ["jsonl", "global_opinions"], "what kind of data", flag_values=values)
    flags.DEFINE_list("groups", [], "of global_opinions: countries; default those of the model", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write", flag_values=values)


def _evaluate(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import files, opinions

    _require(values, "model", "data", "output")
    if values.source == "global_opinions":
        groups = tuple(group.strip() for group in values.groups)
        opinions.evaluate_file(_judge(values), values.model, values.data, values.output, groups)
        return
    if values.groups:
        raise InputError("--groups is for --source=global_opinions: pairs of other files name their group themselves")
    files.evaluate_file(_judge(values), values.data, values.output)


def _judge(values: flags.FlagValues):
    from scpo_jax import judge
    from scpo_jax.configs import base

    _meet(values, base.get_config().distributed.heartbeat_seconds)
    names = ("revision", "method", "max_length", "dtype", "profile")
    return judge.open_judge(values.model, **{name: values[name].value for name in names})


def _define_serve(values: flags.FlagValues) -> None:
    _define_single_model(values)
    flags.DEFINE_string("workdir", None, "a finished workdir, the same as --model", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "address; another needs SCPO_SERVE_TOKEN", flag_values=values)
    flags.DEFINE_integer("port", 8000, "0 takes any that is free", flag_values=values)


def _serve(values: flags.FlagValues, command: str) -> None:
    if not values.workdir:
        _require(values, "model")
    try:
        from scpo_jax import serve
    except ModuleNotFoundError as error:
        raise InputError(f"scpo serve needs the package {error.name}: pip install 'scpo_jax[serve]'") from error
    names = ("host", "port", "profile", "revision", "method", "max_length", "dtype")
    name = serve.name_of(values.model, values.workdir)
    serve.serve(name, **{key: values[key].value for key in names})


def _define_export(values: flags.FlagValues) -> None:
    flags.DEFINE_string("checkpoint", None, "a checkpoint of ours; with --profile a workdir", flag_values=values)
    flags.DEFINE_alias("model", "checkpoint", flag_values=values)
    _define_profile(values)
    flags.DEFINE_string("method", "scpo", "with --profile: the method whose RMs are blended", flag_values=values)
    flags.DEFINE_string("output", None, "Hugging Face folder to write", flag_values=values)
    flags.DEFINE_enum(
        "format", "merged", ["merged", "peft"], "of adapters: merged into their base, or alone", flag_values=values
    )
    flags.DEFINE_string(
        "push_to_hub", None, "USER/NAME to upload it to, a new repository is private", flag_values=values
    )


def _export(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import export

    _require(values, "checkpoint", "output")
    choices = {"method": values.method, "profile": values.profile, "form": values.format}
    export.export(values.checkpoint, values.output, **choices, repository=values.push_to_hub)


def _define_steer(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "a finished workdir", flag_values=values)
    flags.DEFINE_string("method", "scpo", "the method whose RMs are blended", flag_values=values)
    flags.DEFINE_string("pairs", None, "a few preference pairs: JSON lines, CSV or Parquet", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write: the profile", flag_values=values)


def _steer(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import community, judge, workdir

    _require(values, "workdir", "pairs", "output")
    if not workdir.is_workdir(values.workdir):
        raise InputError(f"--workdir={values.workdir} is not the workdir of a run")
    community.steer_file(judge.open_judge(values.workdir, method=values.method), values.pairs, values.output)


def _define_preflight(values: flags.FlagValues) -> None:
    from scpo_jax import configuration

    flags.DEFINE_string("config", None, "config file; --config.KEY=VALUE changes a key", flag_values=values)
    configuration.define_flags(values)
    flags.DEFINE_string("topology", None, "TPU slice to compile for, like v5e:2x4 or v5p:2x2x2", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write: memory, FLOPs and collectives", flag_values=values)


def _preflight(values: flags.FlagValues, command: str) -> int:
    from scpo_jax import configuration, preflight

    _require(values, "config", "topology")
    fits = preflight.show(configuration.load(values.config, values), values.topology, values.output)
    return 0 if fits else 1


def _define_propose(values: flags.FlagValues) -> None:
    _define_model(values)
    flags.DEFINE_string(
        "pairs", None, "unlabelled pairs: JSON lines with prompt, response_a, response_b", flag_values=values
    )
    flags.DEFINE_integer("budget", None, "how many pairs to propose", flag_values=values)
    flags.DEFINE_integer("per_prompt", 2, "pairs of one prompt at most", flag_values=values)
    flags.DEFINE_string("output", None, "JSON lines to write: the pairs to annotate, best first", flag_values=values)


def _propose(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import propose

    _require(values, "model", "pairs", "budget", "output")
    propose.propose_file(_judge(values), values.pairs, values.output, values.budget, values.per_prompt)


def _define_benchmark(values: flags.FlagValues) -> None:
    from scpo_jax import benchmark, configuration

    flags.DEFINE_string("config", None, "config file; --config.KEY=VALUE changes a key", flag_values=values)
    configuration.define_flags(values)
    flags.DEFINE_string("workdir", None, "folder for all files of the benchmark", flag_values=values)
    flags.DEFINE_list(
        "fractions", list(benchmark.FRACTIONS), "shares of the training users, with 1", flag_values=values
    )
    flags.DEFINE_list(
        "seeds", list(benchmark.SEEDS), "values of config.seed, each a run of its own", flag_values=values
    )
    flags.DEFINE_list("methods", list(benchmark.METHODS), "what to compare", flag_values=values)
    flags.DEFINE_list("budgets", list(benchmark.RULES), "what of training cells have equal", flag_values=values)
    flags.DEFINE_bool("force", False, "redo what another config made", flag_values=values)


def _benchmark(values: flags.FlagValues, command: str) -> None:
    from scpo_jax import benchmark, configuration
    from scpo_jax.workdir import Workdir

    _require(values, "config", "workdir")
    design = benchmark.design_of(values.fractions, values.seeds, values.methods, values.budgets)
    config = configuration.load(values.config, values)
    benchmark.run(config, Workdir(values.workdir), design, force=values.force, command=command)


def _require(values: flags.FlagValues, *names: str) -> None:
    for name in names:
        if values[name].value is None or values[name].value == "":
            raise InputError(f"--{name}=... is missing")


COMMANDS = {
    "run": Command("from preference pairs to one reward model per group", _define_run, _run),
    "score": Command("score texts with a reward model", _define_score, _score),
    "evaluate": Command("accuracy of a reward model on preference pairs", _define_evaluate, _evaluate),
    "export": Command("write a checkpoint as a Hugging Face folder", _define_export, _export),
    "steer": Command("a profile for a new community from a few of its pairs", _define_steer, _steer),
    "benchmark": Command("how much data SCPO saves against full finetuning", _define_benchmark, _benchmark),
    "serve": Command("an HTTP service that scores texts by steering profile", _define_serve, _serve),
    "sft": Command("train the policy's language model on the responses of the pairs", _define_sft, _sft),
    "propose": Command("which unlabelled pairs to have annotated next", _define_propose, _propose),
    "preflight": Command("compile a run for a TPU slice without one", _define_preflight, _preflight),
}
