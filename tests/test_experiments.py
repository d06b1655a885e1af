"""A study file is read completely or refused in one sentence."""

import pytest
import yaml

from ssv2_report.study.experiments import experiment, load_study, project_root

GOOD = dict(
    title="t",
    data=dict(root="d"),
    seeds=[0],
    settings=dict(epochs=3),
    experiments={
        "flat": dict(title="a", model="resnet18"),
        "deep": dict(title="b", model="r3d_18", init="flat", epochs=7),
    },
)


def write(tmp_path, value):
    path = tmp_path / "study.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False))
    return path


def changed(**kw):
    return {**GOOD, **kw}


def test_settings_are_defaults_of_every_experiment(tmp_path):
    s = load_study(write(tmp_path, GOOD))
    assert s.name == "study" and s.runs == [("flat", 0), ("deep", 0)]
    assert s.experiments["flat"].epochs == 3 and s.experiments["deep"].epochs == 7
    assert s.experiments["deep"].is_3d and not s.experiments["flat"].is_3d


@pytest.mark.parametrize("name", [p.stem for p in (project_root() / "experiments").glob("*.yaml")])
def test_the_projects_studies_are_valid(name):
    assert load_study(name).experiments


@pytest.mark.parametrize(
    "value, says",
    [
        (changed(sedes=[0]), "'sedes'; did you mean 'seeds'"),
        (changed(settings=dict(epoch=3)), "did you mean 'epochs'"),
        (changed(data=dict(root="d", demo=dict(sized=3))), "did you mean 'size'"),
        (changed(seeds=[]), "seeds"),
        (
            changed(experiments={"a": dict(title="a", model="resnet18", init="b")}),
            "starts from 'b', which is not there",
        ),
        (
            changed(
                experiments={
                    "a": dict(title="a", model="r", init="b"),
                    "b": dict(title="b", model="r", init="a"),
                }
            ),
            "in a circle",
        ),
        (changed(experiments=["a"]), "experiments must be a mapping"),
        (changed(settings=dict(lr=-1)), "lr"),
        *[
            (
                changed(experiments={name: dict(title="a", model="resnet18")}),
                "an experiment cannot be named",
            )
            for name in (
                "a b",
                "a/b",
                "..",
                ".a",
                "-a",
                "a;b",
                "$(touch x)",
                "a'b",
                "a|b",
                "{a}",
                "a\n",
                "",
            )
        ],
        (changed(name="x"), "file's own name"),
        ("a: [", "not valid YAML"),
        ("- 1", "a study is a mapping"),
        ("", "a study is a mapping"),
    ],
)
def test_mistakes_are_named_in_one_sentence(tmp_path, value, says):
    with pytest.raises(ValueError) as e:
        load_study(write(tmp_path, value))
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_name_may_have_parentheses(tmp_path):
    names = ["r(2+1)d", "R3D-18", "i3d_r50.v2"]
    assert (
        list(
            load_study(
                write(
                    tmp_path,
                    changed(experiments={n: dict(title="a", model="resnet18") for n in names}),
                )
            ).experiments
        )
        == names
    )


def test_paths_of_the_data_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "bounding_box_part1.json").write_text("{}")
    (tmp_path / "some classes.txt").write_text("Opening something\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(
        tmp_path, changed(data=dict(root="data/x", boxes="~/boxes", classes="~/some classes.txt"))
    )
    data = load_study(path).data
    assert data == load_study(path, project_root()).data and data.root == str(
        project_root() / "data" / "x"
    )
    assert data.boxes == str(tmp_path / "boxes") and data.classes == str(
        tmp_path / "some classes.txt"
    )
    assert load_study(
        write(tmp_path, changed(data=dict(root="~/x", boxes="boxes"))), root=tmp_path
    ).data.boxes == str(tmp_path / "boxes")
    assert (
        load_study(write(tmp_path, changed(data=dict(root="d", classes="reversal")))).data.classes
        == "reversal"
    )


@pytest.mark.parametrize(
    "data, says",
    [
        (dict(boxes="boxs"), "data.boxes: There are no boxes at .*boxs"),
        (dict(boxes="/"), "data.boxes: There are no boxes"),
        (
            dict(classes="reversals"),
            "data.classes: .*reversals is not there; .*reversal, temporal18",
        ),
    ],
)
def test_boxes_and_classes_that_are_declared_must_be_there(tmp_path, data, says):
    with pytest.raises(FileNotFoundError, match=says):
        load_study(write(tmp_path, changed(data=dict(root="d", **data))))


def test_groups_of_classes_are_those_of_the_data():
    from ssv2_report.data.clips import GROUPS
    from ssv2_report.study.experiments import CLASS_GROUPS

    assert set(CLASS_GROUPS) == set(GROUPS)


def test_unknown_names_offer_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'demo'"):
        load_study("dem")
    with pytest.raises(ValueError, match="did you mean 'flat'"):
        experiment(load_study(write(tmp_path, GOOD)), "falt")
    with pytest.raises(FileNotFoundError, match="not inside the project's clone"):
        project_root(tmp_path)


def test_a_hypothesis_compares_experiments_of_its_study(tmp_path):
    text = (project_root() / "experiments" / "smoke.yaml").read_text()
    (path := tmp_path / "smoke.yaml").write_text(text.replace("of: 3d-scratch", "of: 3d-scrach", 1))
    with pytest.raises(ValueError, match="'order' compares '3d-scrach'.*did you mean '3d-scratch'"):
        load_study(str(path))
    path.write_text(text.replace("    to: 3d-inflated\n", ""))
    with pytest.raises(ValueError, match="'closer'.*'similarity'"):
        load_study(str(path))


def test_a_hypothesis_may_name_its_margin_and_its_classes(tmp_path):
    h = dict(says="x", measure="right", of="deep", over="flat")
    read = lambda **kw: load_study(
        str(write(tmp_path, changed(hypotheses=dict(h=h | kw))))
    ).hypotheses["h"]
    assert (
        read(at_least=0.05).margin == 0.05
        and read(within=0.1).margin == 0.1
        and read().margin is None
    )
    assert (
        read(clips=["Folding something"]).clips == ["Folding something"]
        and read(clips="static").clips == "static"
    )
    for wrong, says in (
        (dict(within=0.1, at_least=0.1), "both 'within' and 'at_least'"),
        (dict(clips=[]), "names no class"),
        (dict(at_least=0), "at_least"),
        (dict(at_leats=1), "did you mean 'at_least'"),
        (dict(clips="statik"), "clips"),
    ):
        with pytest.raises(ValueError, match=says) as e:
            read(**wrong)
        assert "\n" not in str(e.value)
