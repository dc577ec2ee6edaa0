"""Experiments as such: files, names and chapters agree; a scale; what tune and run share."""

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pandas as pd
import pytest

import tlcourse
from tlcourse.experiments import CHAPTERS, EXPERIMENTS
from tlcourse.experiments.base import Case, Scale, tuned

ROOT = Path(tlcourse.__file__).parent / "experiments"
FILES = {path.stem: path for path in ROOT.glob("*/*.py") if path.stem != "__init__"}
ALL = pytest.mark.parametrize("name", EXPERIMENTS)


def test_every_file_is_an_experiment_and_folders_follow_the_lecture():
    assert set(FILES) == set(EXPERIMENTS)
    folders = [FILES[name].parent.name for name in EXPERIMENTS]
    assert [folder for folder in dict.fromkeys(folders) if folder in CHAPTERS] == CHAPTERS
    for folder in folders:
        inside = [name for name in EXPERIMENTS if FILES[name].parent.name == folder]
        assert inside == sorted(inside)


@ALL
def test_file_name_and_chapter_agree(name, repository):
    module = import_module(f"tlcourse.experiments.{FILES[name].parent.name}.{name}")
    experiment = EXPERIMENTS[name]
    assert module.EXPERIMENT is experiment
    assert experiment.name == name
    assert experiment.run.__module__ == module.__name__
    assert experiment.tune is None or experiment.tune.__module__ == module.__name__
    same_folder = [e for n, e in EXPERIMENTS.items() if FILES[n].parent == FILES[name].parent]
    assert {e.chapter for e in same_folder} == {experiment.chapter}
    assert list((repository / "notebooks").glob(f"[0-9][0-9]_{experiment.chapter}.ipynb"))


def test_a_folder_imports_as_a_module():
    for folder in {path.parent.name for path in FILES.values()}:
        assert isinstance(getattr(tlcourse.experiments, folder), ModuleType)


@pytest.mark.parametrize("place", ["toy.py", "attention/toy.py", "zzz/toy.py"])
def test_a_file_put_there_is_found(place, tmp_path, repository):
    """At the top, in a chapter that is there, in a new one; it comes after those of its folder."""
    copytree(ROOT.parent, tmp_path / "tlcourse", ignore=lambda *_: ["__pycache__"])
    file = tmp_path / "tlcourse" / "experiments" / place
    file.parent.mkdir(exist_ok=True)
    (file.parent / "__init__.py").touch()
    text = (repository / "tests" / "toy_experiment.py").read_text(encoding="utf-8")
    file.write_text(text, encoding="utf-8")
    code = "from tlcourse.experiments import EXPERIMENTS; print(*EXPERIMENTS)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env={"PYTHONPATH": str(tmp_path), "TLCOURSE_HOME": str(repository)},
        check=True,
    ).stdout.split()
    expected = list(EXPERIMENTS)
    expected.insert(expected.index("likelihoods") if "attention" in place else len(expected), "toy")
    assert found == expected


@ALL
def test_scales_are_typed_and_hold_plain_values(name):
    """Their repr is what a record's digest knows of them: no object's address may stand in it."""
    for scale in EXPERIMENTS[name].scales.values():
        assert is_dataclass(scale)
        assert isinstance(scale, Scale)
        values = {f.name: getattr(scale, f.name) for f in fields(scale)}
        assert not re.search(r"0x|object|<", repr(values)), name
        assert scale.seeds >= 3
        with pytest.raises(FrozenInstanceError):
            scale.seeds = 1


def test_a_scale_but_for_some_fields():
    scale = Scale(seeds=3, minutes=1.0, workers=1)
    assert scale.but(seeds=4) == Scale(seeds=4, minutes=1.0, workers=1)
    assert scale.seeds == 3
    with pytest.raises(TypeError, match="image"):
        scale.but(images=4)


def measured(*rows):
    return pd.DataFrame(rows, columns=["seed", "arm", "value", "setting", "width"])


def test_the_lowest_mean_over_tuning_seeds_is_chosen_for_each_arm_and_coordinate():
    tuning = measured(
        (1000, "a", 1.0, 0.1, 30),
        (1001, "a", 9.0, 0.1, 30),
        (1000, "a", 4.0, 0.2, 30),
        (1001, "a", 4.0, 0.2, 30),
        (1000, "a", 1.0, 0.1, 300),
        (1001, "a", 1.0, 0.1, 300),
    )
    scale = Scale(seeds=3, minutes=1, tuning_seeds=2)
    settled = scale.settle(tuning)
    assert settled.chosen(arm="a", width=30) == 0.2
    assert settled.chosen(arm="a", width=300) == 0.1
    assert settled.seeds == 3
    assert scale.choices is None
    for where, many in (({"arm": "a"}, 2), ({"arm": "b"}, 0), ({"arm": "a", "depth": 1}, 0)):
        with pytest.raises(LookupError, match=f"{many} settings were chosen"):
            settled.chosen(**where)
    with pytest.raises(LookupError, match="0 settings were chosen"):
        scale.chosen(arm="a")


def test_a_case_is_tuned_with_every_setting_and_trained_with_the_chosen_one():
    trained = []
    case = Case("a", {"slow": 1, "fast": 2}, lambda s: trained.append(s) or s, {"width": 30})
    control = Case("a, shifted", case.settings, lambda s: -s, {"width": 30}, like="a")
    rows = [row.as_dict() for row in tuned([case, control], lambda found: 10 - found)]
    metric = {"arm": "a", "metric": "validation errors", "width": 30}
    assert rows == [
        metric | {"value": 9.0, "setting": "slow"},
        metric | {"value": 8.0, "setting": "fast"},
    ]
    assert trained == [1, 2]
    scale = Scale(seeds=3, minutes=1, tuning_seeds=1)
    settled = scale.settle(pd.DataFrame([{"seed": 1000, **row} for row in rows]))
    assert [case.trained(settled), control.trained(settled)] == [2, -2]


def test_where_nothing_is_tuned_a_case_takes_the_scale_s_setting():
    scale = Scale(seeds=3, minutes=1, settings={"a": 5})
    assert Case("a", {}, lambda s: s).trained(scale) == 5
    assert Case("b", {}, lambda s: s, like="a").trained(scale) == 5
    with pytest.raises(KeyError, match="b"):
        Case("b", {}, lambda s: s).trained(scale)
