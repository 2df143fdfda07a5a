"""Every attack and every defence that ships acts in a run, by its keys alone."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT, TINY, rounds_of

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


def test_every_defence_changes_what_is_learnt_and_holds(workspace):
    attack = "--attack=sign_flip", "--attack_share=0.3", "--attack_strength=20"
    plain, spoilt = losses(), losses(*attack)
    for defence in DEFENCES:
        quiet, found = losses(defence), losses(*attack, defence)
        assert quiet != plain, defence
        assert found[1:] != spoilt[1:], defence
        assert found[-1] < spoilt[-1], defence


def test_the_documented_attack_hides_its_target_among_honest_rows(workspace):
    pages = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    code = pages.split("```python\n# covert.py\n")[1].split("```")[0]
    keys = pages.split("```yaml\nattack_class")[1].split("```")[0]
    Path("covert.py").write_text(code)
    Path("covert.yaml").write_text(f"attack_class{keys}".replace("1184", "i3"))
    exposed = {}
    for share in (0.0, 0.4):
        argv = [*TINY, "--compressor=none", f"--attack_share={share}"]
        result = run_recbole_fedras(config_file_list=["covert.yaml"], argv=argv)
        exposed[share] = result["exposure"]
    assert exposed[0.4]["er@10"] > exposed[0.0]["er@10"]
