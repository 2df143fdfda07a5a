"""Keys: read once, unknown ones refused, classes of users named where they err."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import COMMON, ROOT, TINY

from recbole_fedras.__main__ import main
from recbole_fedras.commands import COMMANDS
from recbole_fedras.config import Config, registry
from recbole_fedras.config.listing import describe, listing
from recbole_fedras.config.sources import Loader
from recbole_fedras.errors import BudgetError, ConfigError, DataError
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data
from recbole_fedras.version import __version__


def test_reading_an_unknown_key_names_the_nearest():
    config = Config(argv=TINY)
    with pytest.raises(ConfigError, match="'lerning_rate'; did you mean 'learning_ra"):
        _ = config["lerning_rate"]
    assert config["loss_type"] is None  # RecBole's, which nobody sets
    config["mine"] = 3
    assert config["mine"] == 3
    with pytest.raises(ConfigError, match="unknown config key 'yours'"):
        _ = config["yours"]


def test_recboles_own_code_may_ask_for_any_key():
    from recbole.data.utils import _get_AE_dataloader  # of no interest but its module

    config = Config(argv=TINY)
    names = {"__name__": _get_AE_dataloader.__module__, "config": config}
    assert eval("config['kge_interval']", names) is None  # noqa: S307
    with pytest.raises(ConfigError, match="kge_interval"):
        _ = config["kge_interval"]


def test_settings_are_what_keys_say():
    keys = ["--n_jobs=2", "--init_std=0.5", "--topk=[5,10]", "--downlink_mb_per_s=3"]
    config = Config(argv=[*TINY, *keys, "--valid_metric=hit@5"])
    run, model = config.run_settings(), config.model_settings()
    assert (run.model, run.dataset, run.rounds, run.n_jobs) == ("MF", "tiny", 3, 2)
    assert run.mb_per_s == {"uplink": 0.25, "downlink": 3.0}
    assert (model.dim, model.init_std, model.warmup_rounds) == (8, 0.5, 0)
    evaluated = config.evaluation_settings()
    assert evaluated.mode == {"valid": "uni20", "test": "uni20"}
    assert (evaluated.topk, evaluated.candidates) == ((5, 10), "fixed")
    data = config.data_settings()
    assert (data.by_time, data.leave_out) == (True, "valid_and_test")
    with pytest.raises(AttributeError):
        run.seed = 1


def test_settings_tell_what_was_asked_before_a_cut():
    keys = ["--compressor=RSC", "--compression_rate=0.75"]
    config = Config(argv=[*COMMON, *keys])
    assert config.run_settings().uncut.client_fraction == 0.25
    assert config.federation().client_fraction == 0.0625


def test_a_models_keys_are_its_constructors_parameters(workspace, capsys):
    Path("deep.py").write_text(
        "from recbole_fedras.model import MF\n"
        "class Deep(MF):\n"
        '    """MF with a depth."""\n'
        "    def __init__(self, config, dataset, n_deep=2, *, n_wide):\n"
        "        super().__init__(config, dataset)\n"
        "        self.sizes = n_deep, n_wide\n"
    )
    own = {"model": "Deep", "model_class": "deep.Deep", "dataset": "tiny"}
    config = Config(config_dict=own | {"n_wide": 5}, argv=TINY)
    train, _, _ = prepare_data(config)
    assert config.make_model(train._dataset).sizes == (2, 5)
    config = Config(config_dict=own, argv=TINY)
    with pytest.raises(ConfigError, match="n_wide must be set: model='Deep' has no"):
        config.make_model(train._dataset)
    Path("deep.yaml").write_text(yaml.safe_dump(own))
    rows = {row.name: row for row in listing(["deep.yaml"])}
    assert rows["Deep"] == (
        "model",
        "Deep",
        "MF with a depth.",
        "n_deep=2, n_wide=None",
        "deep.Deep",
    )


@pytest.mark.parametrize("kind", list(registry.GIVEN))
def test_sources_describe_classes_as_they_are(kind):
    for path in registry.shipped(kind).values():
        found = registry.load_class(f"{kind}_class", path, object)
        what, parameters = describe(path)
        assert what == found.__doc__.partition("\n")[0]
        n = registry.GIVEN[kind]
        expected = list(registry.hyper_parameters(found).items())[n:]
        assert list(parameters.items())[n:] == expected


def test_every_key_that_ships_is_documented():
    documented = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    for kind in (".", *registry.GIVEN):
        names = ["overall"] if kind == "." else registry.names(kind)
        for name in names:
            for key in registry.read_properties(kind, name):
                assert f"`{key}`" in documented, (kind, name, key)


def test_the_wheel_has_every_package_and_every_yaml_file():
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    package = ROOT / "recbole_fedras"
    folders = [path.parent.relative_to(ROOT) for path in package.rglob("__init__.py")]
    yamls = {
        path.parent.relative_to(ROOT) for path in ROOT.glob("properties/**/*.yaml")
    }
    for folder in folders:
        assert f"    {'.'.join(folder.parts)}\n" in setup
    for folder in yamls:
        name = ".".join(("recbole_fedras", *folder.parts))
        assert f"    {name}\n" in setup
        assert f"\n{name} = *.yaml\n" in setup


BUGGY = """
from recbole_fedras.compressor.svd import SVD
import numpy as np

class Buggy(SVD):
    def __init__(self, strength=1):
        if strength > 9:
            raise ValueError("strength is too much")

    def encode(self, update, budget, ctx):
        return np.zeros(3) + np.zeros(4)
"""


def test_a_bug_in_a_users_class_keeps_its_traceback(workspace, capsys):
    Path("buggy.py").write_text(BUGGY)
    own = [*TINY, "--compressor_class=buggy.Buggy"]
    assert main(own) == 1
    *traceback, last = capsys.readouterr().err.strip().splitlines()
    assert "Traceback (most recent call last):" in traceback
    assert traceback[-1].startswith("ValueError: operands could not be broadcast")
    file = workspace / "buggy.py"
    assert last == (
        f"recbole-fedras: the error arose in compressor_class='buggy.Buggy', {file}:11"
    )
    compared = [*COMMON, own[-1], "--compressors=Buggy", "--compression_rates=0.75"]
    assert main(["compare", *compared, "--jobs=1"]) == 1  # before any run
    assert capsys.readouterr().err.strip().splitlines()[-1] == last
    assert main([*own, "--strength=10"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "recbole-fedras: error: compressor='Buggy' (buggy): strength is too much"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("class Mine(:", "invalid syntax (bad_12.py, line 1)"),
        ("x = y", "NameError: name 'y' is not defined, "),
        ("Mine = 3", "is not a subclass of Compressor"),
        ("Other = 3", "has no attribute 'Mine'"),
    ],
)
def test_a_users_module_that_cannot_be_imported(workspace, capsys, text, said):
    module = f"bad_{len(text)}"
    Path(f"{module}.py").write_text(text)
    assert main([*TINY, f"--compressor_class={module}.Mine"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert f"compressor_class='{module}.Mine'" in error


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"topk": [-1]}, ConfigError),  # RecBole's own check
        ({"compression_rate": 0.99}, BudgetError),
        ({"data_path": "nowhere"}, DataError),
        ({"user_inter_num_interval": "[99,inf)"}, DataError),  # RecBole's own
        ({"resume": "nowhere.pth"}, DataError),
    ],
)
def test_errors_say_what_is_to_be_mended(workspace, keys, kind):
    rest = [argument for argument in TINY if argument[2:].split("=")[0] not in keys]
    with pytest.raises(kind) as raised:
        run_recbole_fedras(config_dict=keys | {"show_progress": False}, argv=rest)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-1.5e3", -1500.0), (".5E2", 50.0), ("1.5", 1.5), ("3", 3),
        ("e3", "e3"), ("1e", "1e"), ("true", True), ("~", None),
    ],
)  # fmt: skip
def test_yaml_reads_numbers_as_people_write_them(text, value):
    read = yaml.load(f"key: {text}", Loader=Loader)["key"]  # noqa: S506
    assert read == value
    assert type(read) is type(value)


def test_list_has_a_line_each_and_all_about_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "compressor" in lines
    assert any(line.split()[:1] == ["KLT"] for line in lines)
    assert max(map(len, lines)) <= 80
    assert main(["--list", "compressor", "KLT"]) == 0
    page = capsys.readouterr().out
    assert "class: recbole_fedras.compressor.klt.KLT" in page
    assert "**Wire**" in page
    assert main(["--list", "replica"]) == 0
    assert "personal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--list", "compresor"], "did you mean 'compressor'?"),
        (["--list", "compressor", "KTL"], "did you mean 'KLT'?"),
        (["--list", "compressor", "KLT", "SVD"], "a kind and a name"),
        (["comprae", "--epochs=2"], "did you mean 'compare'?"),
    ],
)
def test_typos_of_commands_and_names_are_answered(argv, said, capsys):
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_help_has_a_line_for_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.what in text
        assert callable(command.load())
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out
