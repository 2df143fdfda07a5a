"""The command line: what it prints, and what it refuses before any work."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_dataset
from methods import NAMES

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config


def test_rate_distortion_captures_measures_and_reads_back(workspace, capsys):
    tiny = [argument for argument in TINY if "compression_rate" not in argument]
    rates = ["--rates", "0.5", "0.75"]
    command = ["rate-distortion", *tiny, *rates, "--rounds=3"]
    assert main([*command, "--output=one", "--direction=uplink"]) == 0
    printed = capsys.readouterr().out
    for name in set(NAMES) - {"CE"}:
        assert f"| {name} " in printed
    picture = (workspace / "one" / "rate_distortion.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    with (workspace / "one" / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    assert {point["rate"] for point in points} == {"", "0.5", "0.75"}
    for point in points:
        if point["rate"]:
            allowed = 4 * 8 * (1 - float(point["rate"]))
            assert float(point["bytes_per_item"]) <= allowed
        else:
            assert float(point["error"]) == 0
    capsys.readouterr()
    for keys in (["--preset=best"], ["--replica=personal", "--uplink_feedback=True"]):
        assert main([*command, *keys, "--output=one", "--direction=uplink"]) == 0
        other = capsys.readouterr().out
        assert other == printed  # what is captured was not compressed
    again = ["--update=one/update.npz", "--direction=uplink", "--output=two"]
    assert main(["rate-distortion", *tiny, *rates, *again]) == 0
    csvs = [(workspace / name / "points.csv").read_text() for name in ("one", "two")]
    assert csvs[0] == csvs[1]


def test_rate_distortion_goes_on_where_a_method_fails(workspace, capsys):
    np.save("update.npy", np.random.default_rng(0).normal(size=(60, 8)))
    Path("of_mine.py").write_text(
        """
from recbole_fedras.compressor.none import NoCompression

class Large(NoCompression):
    lossless = False

class Fixed(Large):
    fixed_rate = True
"""
    )
    command = ["rate-distortion", *TINY, "--update=update.npy", "--format=csv"]
    rates = ["--rates", "0.75", "0.9"]
    assert main([*command, *rates, "--compressor_class=of_mine.Large"]) == 0
    rows = {
        (row["method"], row["CR allowed"]): row
        for row in csv.DictReader(capsys.readouterr().out.splitlines())
    }
    assert "say fixed_rate = True" in rows["Large", "0.75"]["failed"]
    assert ("Large", "0.9") not in rows
    assert rows["SVD", "0.75"]["failed"] == ""
    assert main([*command, *rates, "--compressor_class=of_mine.Fixed"]) == 0
    rows = {
        row["method"]: row
        for row in csv.DictReader(capsys.readouterr().out.splitlines())
    }
    assert rows["Fixed"]["CR allowed"] == ""
    assert float(rows["Fixed"]["bytes/item"]) > 32
    assert main([*command[:-1], *rates]) == 0
    assert "Too few bytes for " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--direction=up"], "--direction='up' must be uplink or downlink"),
        (["--rates", "1.5"], "--rates=[1.5] must lie in [0, 1)"),
        (["--rounds=0"], "--rounds=0 must be at least 1"),
        (["--model=BPR"], "model='BPR' is not a federated model"),
        (["--alpha=2"], "alpha=2"),
        (["--update=nothing.npz"], "--update='nothing.npz' cannot be read"),
        (["--update=empty.npz"], "--update='empty.npz' cannot be read"),
        (["--update=broken.npz"], "--update='broken.npz' cannot be read"),
        (["--update=number.npy"], "rows of shape"),
        (["--update=words.npy"], "--update='words.npy' cannot be read"),
        (["--update=halves.npz"], "ids must be integers"),
        (["--update=huge.npy"], "must hold finite float32 rows"),
        (["--update=falling.npz"], "ids must increase"),
        (["--update=zeros.npy"], "must hold finite float32 rows, some not zero"),
        (["--update=flat.npy"], "rows of shape"),
    ],
)
def test_rate_distortion_refuses_bad_input(workspace, capsys, arguments, said):
    np.save("zeros.npy", np.zeros((5, 3)))
    np.save("flat.npy", np.ones(5))
    np.save("number.npy", np.float32(1))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("huge.npy", np.full((3, 2), 1e300))
    Path("empty.npz").touch()
    Path("broken.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez("halves.npz", ids=[0.5, 1.2], rows=np.ones((2, 3)), n_items=4)
    np.savez("falling.npz", ids=[2, 1], rows=np.ones((2, 3)), n_items=4)
    assert main(["rate-distortion", *TINY, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (workspace / "rate_distortion").exists()


def test_the_command_line_prints_result_cost_and_folder(workspace, capsys):
    assert main(TINY) == 0
    output = capsys.readouterr()
    for text in ("test hit@10", "uplink", "all charged", "saved/MF-FedRAS-tiny-"):
        assert text in output.out
    assert "Rounds" in output.err  # the bar
    assert "clients/s" in output.err
    assert "arning" not in output.err + output.out


def test_a_compressor_of_ones_own_is_one_file_and_one_yaml(workspace, capsys):
    (workspace / "plugin").mkdir()
    (workspace / "plugin" / "sign_of_mine.py").write_text(
        '''
import torch
from recbole_fedras.compressor import Compressor, RowUpdate
from recbole_fedras.compressor.base import put_update_rows, row_update
from recbole_fedras.wire.payload import Payload

class SignOfMine(Compressor):
    """One step up or down for every entry."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def encode(self, update, budget, ctx):
        payload = put_update_rows(Payload(), update, ctx.n_items)
        return payload.put_ints("signs", (update.rows > 0).long().numpy(), 2)

    def decode(self, payload, ctx):
        ids = payload.rows("rows", ctx.n_items)
        signs = payload.ints("signs", 2, len(ids), ctx.dim)
        return row_update(ids, (2 * signs - 1) * self.strength)
'''
    )
    config = workspace / "plugin" / "mine.yaml"
    config.write_text(
        "compressor: Mine\ncompressor_class: sign_of_mine.SignOfMine\nstrength: 0.01\n"
    )
    assert main([f"--config_files={config}", "--list"]) == 0
    listing = capsys.readouterr().out
    assert "One step up or down" in listing
    assert "FedRAS" in listing
    assert main([f"--config_files={config}", *TINY]) == 0
    assert "MF + Mine on tiny" in capsys.readouterr().out
    assert main([f"--config_files={config}", "--strenght=2", *TINY]) == 2
    assert "did you mean 'strength'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compressor=fedras"], "did you mean 'FedRAS'"),
        (["--compressor=Gzip"], "known: Base, BinaryCodes, CE, CoLR, CountSketch, "),
        (["--model=MFF"], "did you mean 'MF'"),
        (["--model=bpr"], "model='bpr' is unknown"),
        (["--valid_metric=5"], "valid_metric=5 is not allowed; it must be a string"),
        (["--metrics=[5]"], "metrics=[5] is not allowed; it must be names"),
        (["--eval_args={'mode': 5}"], "with a mode like uni99 or full"),
        (["--eval_args={'split': {'RS': [0.8, 0.3, -0.1]}}"], "three ratios >= 0"),
        (["--eval_args={'split': {'RS': ['a', 'b', 'c']}}"], "three ratios >= 0"),
        (["--alpha=a"], "alpha='a' must be a number in [0, 1)"),
        (["--kmeans_iterations=2.5"], "kmeans_iterations=2.5 must be an integer"),
        (["--compresion_rate=0.5"], "did you mean 'compression_rate'"),
        (["--compression_rate=1"], "compression_rate=1 is not allowed"),
        (["--compression_rate=-0.1"], "number >= 0 and < 1"),
        (["--compression_rate=high"], "compression_rate='high'"),
        (["--compression_rate=0.99", "--compressor=SVD"], "leaves a rank of 0"),
        (["--compression_rate=0.99"], "number of groups"),
        (["--client_fraction=0.01"], "selects nobody"),
        (["--client_fraction=0"], "client_fraction=0 is not allowed"),
        (["--downlink_feedback=1"], "downlink_feedback=1 is not allowed"),
        (
            ["--downlink_compressor=SVD", "--replica=grid"],
            "downlink_compressor='SVD' is not allowed; it must be left out with repl",
        ),
        (
            ["--downlink_feedback=True", "--replica=grid"],
            "downlink_feedback=True is not allowed; it must be False with replica=gr",
        ),
        (
            ["--downlink_feedback=True", "--replica=stale"],
            "downlink_feedback=True is not allowed; it must be False with replica=st",
        ),
        (["--uplink_feedback=maybe"], "uplink_feedback='maybe' is not allowed"),
        (["--budget=floats"], "budget='floats' is not allowed; it must be one of nom"),
        (["--budget=wire", "--compression_rate=0.97"], "with budget=wire leaves a"),
        (["--preset=Best"], "preset='Best' is unknown; did you mean 'best'"),
        (["--uplink_compressor=SVDD"], "uplink_compressor='SVDD' is unknown; did you"),
        (["--downlink_compressor=CoLR", "--bandwidth=[0.5,0.7]"],
         "bandwidth=[0.5, 0.7] is not allowed; it must be None: CoLR needs"),
        (["--actions=int4"], "actions='int4' must be one of"),
        (["--uplink_mb_per_s=0"], "uplink_mb_per_s=0 is not allowed"),
        (["--n_jobs=0"], "n_jobs=0 is not allowed; it must be -1 or"),
        (["--n_jobs=-2"], "n_jobs=-2 is not allowed; it must be -1 or"),
        (["--n_jobs=True"], "n_jobs=True is not allowed; it must be -1 or"),
        (["--secure_bound=1e-300"], "secure_bound=1e-300"),
        (["--aggregation=sum"], "known: discrete, dp_fedavg, fedavg, "),
        (["--replica=mine"], "replica='mine'"),
        (["--learner=adam"], "learner='adam'"),
        (["--weight_decay=-0.1"], "weight_decay=-0.1"),
        (["--learning_rate=-1"], "learning_rate=-1"),
        (["--epochs=0"], "epochs=0"),
        (["--epochs=ten"], "epochs='ten'"),
        (["--local_epochs=1.5"], "local_epochs=1.5"),
        (["--strength=2"], "unknown config key 'strength'"),
        (["--topk=[30]"], "at most the candidates of mode valid: uni20"),
        (["--topk=abc"], "topk"),
        (["--metrics=Hits"], "no metric named 'Hits'"),
        (["--seed=-1"], "seed=-1"),
        (["--data_path=3"], "there is no file"),
        (["--ITEM_ID_FIELD=what"], "ITEM_ID_FIELD='what'"),
        (["--load_col={'inter': ['nothing']}"], "USER_ID_FIELD='user_id'"),
        (["--eval_args={'split': {'LS': 'last'}}"], "LS one of valid_and_test"),
        (["--eval_args={'split': {'LS': 'valid_only'}}"], "LS one of valid_and_test"),
        (["--compressor=CE", "--replica=stale"], "CE needs to know the receiver's"),
        (["--compressor=CE", "--bandwidth=[0.5,0.7]", "--downlink_feedback=False"],
         "downlink_feedback=False is not allowed; it must be True with bandwidth"),
        (["--eval_args={'split': {'RS': [0.9, 0.1]}}"], "three ratios"),
        (["--eval_args={'order': 'by_time'}"], "order RO or TO"),
        (["--eval_args={'modes': 'uni20'}"], "did you mean 'mode'"),
        (["--model=NCF", "--mlp_hidden_size=[0]"], "mlp_hidden_size=[0]"),
        (["--alpha=2"], "alpha=2"),
        (["--bandwidth=[0.9,0.1]"], "bandwidth=[0.9, 0.1]"),
        (["--valid_metric=AUC"], "valid_metric='AUC'"),
        (["--eval_args={'mode': 'pop20'}"], "eval_candidates"),
        (["--train_neg_sample_args={'sample_num': 0, 'distribution': 'uniform'}"],
         "sample_num >= 1"),
        (["--train_neg_sample_args={'sample_num': 1, 'distribution': 'popularity'}"],
         "distribution: uniform"),
        (["--eval_args=full"], "eval_args='full' is not allowed; it must be a dict"),
        (["--metrics=[]"], "metrics=[] is not allowed"),
        (["--report_contraction=True", "--n_shards=2"],
         "report_contraction=True is not allowed; it must be False with n_shards"),
        (["--compressor=SCoLR", "--unbiased=True", "--uplink_feedback=True"],
         "uplink_feedback=True is not allowed; it must be False with SCoLR"),
        (["--topk=[]"], "topk=[] is not allowed"),
        (["--metrics=['LogLoss']", "--valid_metric=LogLoss"], "metrics of rankings"),
        (["--save_dataloaders=True"], "save_dataloaders=True is not allowed"),
        (["--dataset=nowhere"], "there is no file"),
        (["--data_path=elsewhere"], "there is no file"),
        (["--dataset="], "dataset='' is not allowed; it must be a name"),
        (["--dataset=data/mini"], "dataset=mini, data_path=data"),
        (["--dataset=ml-100k", "--data_path=no"], "there is no folder 'no/ml-100k'"),
        (["--attacker_class=a.B"], "no effect in this run: it is a key of recbole-fed"),
        (["--hash_rows=16"], "no effect in this run: it is a key of item_embedding=h"),
        (["--config_files=no.yaml"], "no.yaml"),
        (["--resume=no.pth"], "no.pth"),
        (["--TIME_FIELD=when"], "TIME_FIELD='when'"),
        (["epochs=3"], "must read --key=value"),
        (["--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO', "
          "'mode': 'uni59'}"], "choose uni1 to uni"),
        (["--user_inter_num_interval=[1,2]"], "are left after user_inter_num_interval"),
        (["--item_embedding=hash", "--hash_rows=10000000000000", "--use_base=False"],
         "model='MF' (recbole_fedras.model.mf): Unable to allocate"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(workspace, capsys, arguments, said):
    given = {argument.partition("=")[0] for argument in arguments}
    rest = [argument for argument in TINY if argument.partition("=")[0] not in given]
    assert main([*rest, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not list(workspace.glob("saved/*"))
    assert not torch.is_anomaly_enabled()  # as RecBole leaves it after a search


def test_a_round_that_nobody_counts_in_ends_in_one_line(workspace, capsys):
    assert main([*TINY, "--max_update_norm=1.e-9"]) == 2
    (line,) = (
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("recbole-fedras: error: ")
    )
    assert "round 0: of 10 clients invited, none sent an update that counts" in line
    assert "exceeds max_update_norm=1e-09" in line
    assert line.endswith("no round was completed")


def test_a_model_is_a_name_or_a_class(workspace):
    with pytest.raises(ValueError, match="model=5 is not allowed; it must be a name"):
        Config(config_dict={"model": 5})


def test_bad_data_is_refused_by_line_and_field(workspace, tiny_rows, capsys):
    cases = {
        "nan": ([*tiny_rows, ("u1", "i59", "", 9)], "line " + str(len(tiny_rows) + 2)),
        "short": ([*tiny_rows, ("new", "i1", 3, 9)], "1 of 41 users have fewer"),
    }
    for name, (rows, said) in cases.items():
        write_dataset(workspace / "dataset", name, rows)
        assert main([*TINY[1:], f"--dataset={name}"]) == 2
        assert said in capsys.readouterr().err
    write_dataset(
        workspace / "dataset",
        "timeless",
        [row[:2] for row in tiny_rows],
        "user_id:token\titem_id:token",
    )
    assert main([*TINY[1:], "--dataset=timeless"]) == 2
    assert "TIME_FIELD='timestamp'" in capsys.readouterr().err
