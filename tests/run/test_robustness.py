"""Every attack and every defence that ships acts in a run, by its keys alone."""

from __future__ import annotations

import pytest
from conftest import TINY, rounds_of

from recbole_fedras.config import registry
from recbole_fedras.quick_start import run_recbole_fedras

DEFENCES = [
    "--aggregation=median", "--aggregation=trimmed_mean",
    "--aggregation=geometric_median", "--aggregation=krum",
    "--transforms=clip_to_quantile", "--transforms=clip_rows",
]  # fmt: skip


def losses(*argv: str) -> list[float]:
    result = run_recbole_fedras(argv=[*TINY, "--model=NCF", *argv])
    return [row["loss"] for row in rounds_of(result)]


def test_every_attack_changes_what_is_learnt(workspace):
    plain = losses()
    for attack in registry.names("attack"):
        target = ["--attack_target=i3"] if attack == "promote" else []
        found = losses(f"--attack={attack}", "--attack_share=0.3", *target)
        assert found != plain, attack


@pytest.mark.slow
def test_every_defence_changes_what_is_learnt_and_holds(workspace):
    attack = "--attack=sign_flip", "--attack_share=0.3", "--attack_strength=20"
    plain, spoilt = losses(), losses(*attack)
    for defence in DEFENCES:
        quiet, found = losses(defence), losses(*attack, defence)
        assert quiet != plain, defence
        assert found[1:] != spoilt[1:], defence
        assert found[-1] < spoilt[-1], defence


def test_a_covert_target_is_exposed_unless_rows_are_bounded(workspace):
    attack = ["--attack=promote", "--attack_covert=true", "--attack_target=i3"]
    krum = ["--aggregation=krum", "--hostile_share=0"]  # nobody is left out

    def exposed(*argv: str) -> float:
        argv = (*TINY, "--compressor=none", *attack, *krum, *argv)
        return run_recbole_fedras(argv=list(argv))["exposure"]["er@10"]

    calm, found = exposed("--attack_share=0.0"), exposed("--attack_share=0.4")
    bounded = exposed("--attack_share=0.4", "--row_bound_quantile=0.5")
    assert found > 2 * calm
    assert bounded < found
