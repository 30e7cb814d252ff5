"""Laws of recipes: what is written is read back, three spellings are one, and every mistake says where it is."""

import json
import re
from pathlib import Path

import pytest

from nas_prune.base.errors import RecipeError
from nas_prune.base.files import yaml_text
from nas_prune.base.files.shipped import shipped
from nas_prune.run.recipe.overrides import flags
from nas_prune.run.recipe.recipe import Recipe, flat, json_schema, read, recipe_keys, recipes, write

MINIMAL = "name: tiny\nmodel: {name: resnet18}\n"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_survives_a_file_and_a_command_line(name: str, tiny: Path, tmp_path: Path) -> None:
    recipe = read(name)
    write(recipe, tmp_path / "again.yaml")
    as_wandb_passes_them = [f"--{key}={value}" for key, value in flat(recipe).items()]
    assert recipe.name == name
    assert read(tmp_path / "again.yaml") == recipe
    assert read(tiny, flags(flat(recipe))) == recipe
    assert read(tiny, as_wandb_passes_them) == recipe


@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("smoke/")])
def test_every_recipe_has_a_smoke_twin(name: str) -> None:
    assert f"smoke/{name.replace('/', '_')}" in recipes()


@pytest.mark.parametrize(
    "text", ["None", "null", "no", "1e-3", "12", "'quoted'", "a b", "größe=1", "x\ny", "[1]", "", " "]
)
def test_any_text_survives(text: str, tiny: Path, tmp_path: Path) -> None:
    options = {"a": text, "b": [1, [0.5, None]], "c": {"d": True, "e": 1e-30}}
    document = {"name": "tiny", "model": {"name": text, "checkpoint": text, "kwargs": options}, "data": {"root": text}}
    recipe = Recipe.model_validate(document)
    write(recipe, tmp_path / "again.yaml")
    assert read(tmp_path / "again.yaml") == recipe
    assert read(tiny, flags(flat(recipe))) == recipe


@pytest.mark.parametrize(
    ("tokens", "key", "value"),
    [
        (["--search.gate-lr=1e-3"], "search.gate_lr", 0.001),
        (["--search.gate_lr", "1e-3"], "search.gate_lr", 0.001),
        (["search.gate_lr=1e-3"], "search.gate_lr", 0.001),
        (["++search.gate_lr=1e-3"], "search.gate_lr", 0.001),
        (["--model.pretrained", "--no-model.pretrained"], "model.pretrained", False),
        (["--no-model.pretrained", "--model.pretrained"], "model.pretrained", True),
        (["--model.pretrained", "False"], "model.pretrained", False),
        (["--model.pretrained=True"], "model.pretrained", True),
        (["--search.clip_grad=1", "--search.clip_grad=None"], "search.clip_grad", None),
        (["--search.clip_grad=1", "--search.clip_grad=null"], "search.clip_grad", None),
        (["--data.crop_scale=(0.5, 1)"], "data.crop_scale", [0.5, 1.0]),
        (["--data.crop_scale=[0.5, 1]"], "data.crop_scale", [0.5, 1.0]),
        (["--gate.options.x", "--gate.options.y=[1, 2]"], "gate.options", {"x": True, "y": [1, 2]}),
        (["--gate.options.x=1", "--gate={'options': {'y': None}}"], "gate.options", {"y": None}),
        (["--gate={'name': 'sigmoid'}", "--gate={'options': {'y': 1}}"], "gate.name", "sigmoid"),
        (["--search.penalties.0.options.s=2"], "search.penalties", [{"name": "budget", "options": {"s": 2}}]),
        (["--precision=no"], "precision", "no"),
        (["--_wandb={'desc': None}", "--_wandb", "x", "seed=3"], "seed", 3),
    ],
)
def test_every_spelling_of_an_override_is_read(tokens: list[str], key: str, value: object, tiny: Path) -> None:
    assert flat(read(tiny, tokens))[key] == value


def test_an_override_changes_nothing_else(tiny: Path) -> None:
    before, after = flat(read(tiny)), flat(read(tiny, ["--dense={'lr': 0.5}", "--search.joint", "9"]))
    assert {key: after[key] for key in after if after[key] != before[key]} == {"dense.lr": 0.5, "search.joint": 9}
    assert list(before) == [key.name for key in recipe_keys()]


@pytest.mark.parametrize(
    ("text", "tokens", "parts"),
    [
        (MINIMAL + "serach: {joint: 3}", [], ["tiny.yaml", "'serach'", "did you mean 'search'"]),
        (MINIMAL + "search: {jont: 3}", [], ["tiny.yaml", "'search.jont'", "did you mean 'joint'"]),
        (
            MINIMAL + "search: {joint: three}",
            [],
            ["tiny.yaml", "search.joint", "integer", "'three'", "epochs in which"],
        ),
        (MINIMAL + "device: cude", [], ["tiny.yaml", "device", "did you mean 'cuda'"]),
        (MINIMAL + "search: 3", [], ["tiny.yaml", "search should be"]),
        (MINIMAL + "dense: {lr: .inf}", [], ["tiny.yaml", "line 3", "not a finite number"]),
        (MINIMAL + "dense: {lr: 1, lr: 2}", [], ["tiny.yaml", "line 3", "'lr' is given twice"]),
        ("name: tiny", [], ["tiny.yaml", "'model' is missing"]),
        ("name: ../tiny\nmodel: {name: x}", [], ["tiny.yaml", "name should match"]),
        ("a: [", [], ["tiny.yaml", "not valid YAML", "line 1"]),
        ("- a", [], ["tiny.yaml", "mapping", "list"]),
        ("", [], ["tiny.yaml", "empty"]),
        (MINIMAL, ["--lr=1"], ["--lr", "did you mean 'dense.lr' or 'search.lr' or 'finetune.lr'"]),
        (MINIMAL, ["--search.jont", "3"], ["override --search.jont", "did you mean 'joint'"]),
        (MINIMAL, ["--search.joint=x"], ["override --search.joint=x", "integer"]),
        (MINIMAL, ["--gate={'nam': 'mask'}"], ["override --gate=", "'gate.nam'", "did you mean 'name'"]),
        (MINIMAL + "5: 3", [], ["tiny.yaml: the key 5 is not text", "write it in quotes"]),
        (MINIMAL + "data: {5: 3}", [], ["names are text"]),
        (MINIMAL + "data: {name: {a: 1}}", [], ["data.name should be text"]),
        (MINIMAL + "search: {penalties: 3}", [], ["search.penalties should be a list, not 3"]),
        (MINIMAL + "# " + "x" * 70_000, [], ["larger than any file of its kind", "is it the file that you meant?"]),
        (MINIMAL, ["--gate.options={"], ["override --gate.options={: its brackets do not close", "{name: value}"]),
        (MINIMAL, ["--gate={'name': 'mask'"], ["its brackets do not close"]),
        (MINIMAL, ["--search.penalties=[a"], ["its brackets do not close"]),
        (MINIMAL, ["--search.joint"], ["needs a value"]),
        (MINIMAL, ["--no-search.joint"], ["not a switch"]),
        (MINIMAL, ["--search.penalties.7.name=x"], ["no item '7'"]),
        (MINIMAL, ["--gate.name.x=1"], ["'gate.name' holds no further keys"]),
        (MINIMAL, ["fast"], ["'fast'", "--key=value"]),
        (MINIMAL, ["--data.crop_scale=[2, 1]"], ["data.crop_scale.0", "less than or equal to 1"]),
    ],
)
def test_a_mistake_is_named(text: str, tokens: list[str], parts: list[str], tiny: Path) -> None:
    tiny.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read(tiny, tokens)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
    assert not re.search(r"Input|valid dictionary|instance of|not permitted|delete", str(caught.value))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("lost.yaml", "no recipe file lost.yaml"),
        ("xyz", "the nearest names are .* \\(of"),
    ],
)
def test_a_missing_recipe_is_named(name: str, part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        read(name)


def test_unreadable_bytes_are_named(tiny: Path) -> None:
    tiny.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid YAML"):
        read(tiny)


@pytest.mark.parametrize(
    "value", ["1e3", "1e-3", 1e-3, 1e300, "no", "on", "010", "1:30", "0x1f", 31, None, True, "~", "2020-01-01"]
)
def test_yaml_is_read_as_it_was_written(value: object) -> None:
    found = yaml_text.parse(yaml_text.dump({"key": value}))["key"]
    assert (found, type(found)) == (value, type(value))


def test_yaml_numbers_and_words_are_what_they_look_like() -> None:
    assert yaml_text.parse("[1e-3, 1e3, -1, no, yes, 1:30, .5, null, ~, TRUE]") == [
        *(0.001, 1000.0, -1, "no", "yes", "1:30", 0.5, None, None, True)
    ]


def test_the_shipped_schema_is_current() -> None:
    assert json.loads((shipped("recipes") / "schema.json").read_text()) == json_schema()
