"""The configs of this repository: they load, they are sound, and every key is explained once, in base.py."""

import pathlib
import re

import pytest

from scpo_jax import configuration
from scpo_jax.configs import base
from scpo_jax.errors import InputError

FOLDER = pathlib.Path(base.__file__).parent
CONFIGS = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("__init__.py", "base.py"))


def test_there_are_configs():
    assert {"demo.py", "benchmark_demo.py", "prism_deberta.py", "global_opinions_minilm.py", "reference.py"} <= {
        p.name for p in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_the_keys_of_base_and_sound_values(path):
    config = configuration.read(str(path))
    configuration.check_keys(config, str(path))
    own, known = ({k: c.get_type(n) for k, c, n in configuration.leaves(x)} for x in (config, base.get_config()))
    assert own == known
    if path.stem == "reference":  # data and model are given on the command line
        config.model.name_or_path = "somewhere"
    configuration.check(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command(path):
    opening = path.read_text().split('"""')[1]
    assert re.search(rf"scpo (run|benchmark) --config=configs/{path.name} --workdir=runs/", opening)


def test_a_config_of_the_package_is_found_anywhere_unless_there_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configuration.read("configs/ppo_demo.py").policy.kl_target == 6.0
    (tmp_path / "configs").mkdir()
    own = "from scpo_jax.configs.demo import get_config as get\n\ndef get_config():\n    config = get()\n"
    (tmp_path / "configs" / "demo.py").write_text(own + "    config.seed = 123\n    return config\n")
    assert configuration.read("configs/demo.py").seed == 123
    for missing in ("configs/demo2.py", "demo.py", "other/demo.py"):
        with pytest.raises(InputError, match=f"--config={missing}: no such file"):
            configuration.read(missing)


def test_every_key_of_base_has_a_comment():
    lines = [line for line in (FOLDER / "base.py").read_text().splitlines() if re.match(r"    config\.\S+ = ", line)]
    nested = re.compile(r" = (ConfigDict\(\)|data\(\)|model\(\)|train\(\)|policy\(\))( +#.*)?$")
    keys = [line for line in lines if not nested.search(line)]
    assert not [line for line in keys if "  # " not in line]
    assert len(keys) + len(base.JSONL_COLUMNS) - 1 == len(list(configuration.leaves(base.get_config())))


def test_the_keys_of_the_contract():
    contract = """
    seed data.source data.path data.group_by data.groups data.columns.prompt data.max_dropped data.test_size
    data.split_seed data.simulated.users_per_group data.simulated.cultural_strength data.simulated.extreme_share
    data.simulated.seed model.name_or_path model.revision model.max_length model.dtype model.encoding
    global_rm.train global_rm.groups global_rm.max_steps global_rm.learning_rate scpo.methods scpo.tau
    scpo.tau_test scpo.beta scpo.calibrate controls train.batch_size train.max_steps train.learning_rate
    train.warmup_steps train.schedule train.weight_decay train.max_grad_norm train.center_rewards_coefficient
    train.groups_per_program train.eval_every train.batch_order per_group mesh.data mesh.model mesh.group
    checkpoint.every_steps checkpoint.keep distributed.heartbeat_seconds policy.algorithm policy.steps
    policy.kl_coef policy.kl_budget
    """
    assert set(contract.split()) <= configuration.flatten(base.get_config()).keys()
