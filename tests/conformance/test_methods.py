"""What holds for every method. A method inherits these tests by existing; nothing is registered here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.methods.in_process import run_pipeline

from wsss.claims import load_claims
from wsss.commands.methods import find_method, method_names, recipe_names
from wsss.data.dataset import Dataset, load_dataset
from wsss.errors import WsssError
from wsss.execution.stage_job import StageJob
from wsss.method import ExecutionSettings, Method
from wsss.metric_name import MetricName
from wsss.pipeline import MapStage, Pipeline, ReduceStage, Stage, TrainStage, stage_keys
from wsss.recipe import RecipeError, SettingInfo, change_recipe, flat_dict, load_recipe, settings_of, to_dict
from wsss.released import check_checkpoint, pipeline_of
from wsss.search.space.pipelines import metrics_of
from wsss.stages.references import BOX_STAGE
from wsss.store import Artifact, Store, open_store
from wsss.train_task import TrainTask
from wsss.weights import file_digest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("demo", "mini", "paper")
MODULES = {"__init__", "recipe", "networks", "losses", "training", "pipeline", "official"}
MORE_MODULES = 2
LINES = 2000
# A heading may say more ("Claims and verdict"); each of these words must be in one.
CARD_HEADINGS = ("Idea", "Claims", "Verdict", "Protocol", "Known gaps", "of the original")

# The generated data set at a size that is made in a second.
SMALL = (
    "dataset.name=shapes",
    "dataset.shapes.train=6",
    "dataset.shapes.train_aug_extra=4",
    "dataset.shapes.val=4",
    "dataset.shapes.size=48",
)


@pytest.fixture(scope="module", params=method_names())
def method(request: pytest.FixtureRequest) -> Method:
    return find_method(request.param)


@pytest.fixture(scope="module")
def shapes_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@functools.cache
def small_demo(name: str) -> Any:
    method = find_method(name)
    return load_recipe(method.recipe_type, method.recipe_path("demo"), SMALL)


def demo(method: Method, *overrides: str) -> Any:
    """The demo on few pictures, changed; its file is read once, as some tests try thousands of changes."""
    words = (override.partition("=") for override in overrides)
    return change_recipe(small_demo(method.name), {key: yaml.safe_load(value) for key, _, value in words})


def build(method: Method, recipe: Any, home: Path) -> tuple[Pipeline, Dataset]:
    dataset = load_dataset(recipe.dataset, home)
    return method.pipeline(recipe, dataset), dataset


def keys_of(method: Method, recipe: Any, home: Path) -> dict[str, str]:
    pipeline, dataset = build(method, recipe, home)
    return stage_keys(pipeline, dataset, file_digest)


class DigestedOnce:
    """A data set whose content is digested once for each list, for tests that make hundreds of pipelines of it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.known: dict[tuple[str | None, frozenset[str]], str] = {}

    def digest(self, image_list: str | None, reads: frozenset[Any]) -> str:
        if (image_list, reads) not in self.known:
            self.known[image_list, reads] = self.dataset.digest(image_list, reads)
        return self.known[image_list, reads]


def as_override(key: str, value: Any) -> str:
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).replace(chr(10) + '...', '').strip()}"


def other_values(info: SettingInfo, value: Any) -> Iterator[Any]:
    """Values of a setting that differ from the present one, likeliest first."""
    if info.choices is not None and not isinstance(value, (list, tuple)):
        yield from (choice for choice in info.choices if choice != value)
        return
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (list, tuple)):
        inner = dataclasses.replace(info, length=None)
        for index, element in enumerate(value):
            for other in other_values(inner, element):
                yield [*value[:index], other, *value[index + 1 :]]
        if value:
            yield list(value[:-1])
        else:
            yield [1]
    elif isinstance(value, (int, float)):
        step = info.multiple_of or (1 if isinstance(value, int) else max(abs(value) / 2, 0.01))
        bounds = [bound for bound in (info.minimum, info.maximum) if bound is not None]
        candidates = [value + step, value - step, value + 2 * step, *bounds]
        yield from (type(value)(candidate) for candidate in candidates if candidate != value)
    elif value is None:
        yield from (1, 0.5)
    elif isinstance(value, str):
        yield f"{value}x"


def switches_of(known: dict[str, SettingInfo], values: dict[str, Any]) -> list[str]:
    """Overrides that make another choice or turn something on or off, one at a time."""
    return [
        as_override(key, other)
        for key, info in known.items()
        if isinstance(values[key], bool) or info.choices is not None
        for other in other_values(info, values[key])
    ]


def test_method_says_what_it_is(method: Method) -> None:
    module = importlib.import_module(f"wsss_methods.{method.name}")
    assert method.name == module.__name__.rsplit(".", 1)[-1] and re.fullmatch(r"[a-z][a-z0-9_]*", method.name)
    assert method.title.strip() and method.citation.strip()
    assert module.__file__ is not None and method.folder.resolve() == Path(module.__file__).resolve().parent
    assert dataclasses.is_dataclass(method.recipe_type)


def test_folder_has_the_same_few_files(method: Method) -> None:
    """A method may lack a module that it has nothing to say in; what two methods share is in `wsss/stages`."""
    modules = {path.stem: path for path in method.folder.glob("*.py")}
    assert {"__init__", "recipe", "pipeline"} <= set(modules)
    more = sorted(set(modules) - MODULES)
    assert len(more) <= MORE_MODULES, f"beside {sorted(MODULES)} there are {more}"
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values()) <= LINES
    others = {path.name for path in method.folder.iterdir()} - {path.name for path in modules.values()}
    assert others - {"__pycache__"} == {"recipes", "claims.yaml", "README.md"}


def test_recipe_has_the_sections_of_the_platform(method: Method) -> None:
    known = settings_of(method.recipe_type)
    assert {"seed", "dataset.name", "dataset.root"} <= set(known)
    assert {f"execution.{field.name}" for field in dataclasses.fields(ExecutionSettings)} <= set(known)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_loads(method: Method, name: str) -> None:
    recipe = load_recipe(method.recipe_type, method.recipe_path(name), ())
    assert isinstance(recipe, method.recipe_type)


def test_every_shipped_recipe_loads(method: Method) -> None:
    assert set(RECIPES) <= set(recipe_names(method))
    for name in recipe_names(method):
        load_recipe(method.recipe_type, method.recipe_path(name), ())


def test_demo_runs_on_the_generated_data_set(method: Method) -> None:
    recipe = load_recipe(method.recipe_type, method.recipe_path("demo"), ())
    assert recipe.dataset.name == "shapes"


def test_every_recipe_key_has_help(method: Method) -> None:
    assert [key for key, info in settings_of(method.recipe_type).items() if not info.help.strip()] == []


def test_unknown_key_names_the_nearest(method: Method) -> None:
    key = next(key for key in settings_of(method.recipe_type) if not key.startswith(("dataset.", "execution.", "seed")))
    with pytest.raises(RecipeError) as error:
        load_recipe(method.recipe_type, None, [f"{key}s=1", "no_such_section.nothing=1"])
    assert f"did you mean {key!r}" in str(error.value)
    assert len(error.value.problems) == 2


def test_pipeline_builds_on_the_generated_data_set(method: Method, shapes_home: Path) -> None:
    pipeline, dataset = build(method, demo(method), shapes_home)
    assert any(isinstance(stage, ReduceStage) for stage in pipeline), "no stage makes a number"
    for stage in pipeline:
        assert stage.image_list is None or stage.image_list in dataset.lists, stage.name
        assert stage.version >= 1
        assert dataclasses.is_dataclass(stage.config), f"{stage.name}: config is no dataclass"
        assert isinstance(hash(stage.config), int), f"{stage.name}: config is not frozen"


def test_headline_and_grids_name_what_exists(method: Method, shapes_home: Path) -> None:
    pipeline, dataset = build(method, demo(method), shapes_home)
    assert pipeline.headline, "no headline number"
    for grid in pipeline.grids:
        assert grid.image_list in dataset.lists
        for column in grid.columns:
            assert isinstance(pipeline.stage(column.stage), MapStage)


def test_metric_names_are_read_back(method: Method, shapes_home: Path) -> None:
    """Reports know a number by its name alone."""
    known = {key: info for key, info in settings_of(method.recipe_type).items() if not key.startswith("execution.")}
    for switch in ([], *([text] for text in switches_of(known, flat_dict(demo(method))))):
        with contextlib.suppress(WsssError):  # a choice that asks for a file
            pipeline, _ = build(method, demo(method, *switch), shapes_home)
            names = [*metrics_of(pipeline), *pipeline.headline]
            assert names and all(str(MetricName.parse(name)) == name for name in names)
            assert [name for name in names if not MetricName.parse(name).is_main_miou] == []


def test_weakly_supervised_training_does_not_read_masks(method: Method, shapes_home: Path) -> None:
    pipeline, _ = build(method, demo(method), shapes_home)
    trained = [stage for stage in pipeline if isinstance(stage, TrainStage)]
    assert [stage.name for stage in trained if "masks" in stage.reads and not stage.fully_supervised] == []


def function_of(stage: Stage) -> Any:
    if isinstance(stage, (TrainStage, MapStage)):
        return stage.build
    assert isinstance(stage, ReduceStage)
    return stage.compute


def test_stages_travel_to_workers(method: Method, shapes_home: Path) -> None:
    """Functions are found by name on a worker, which has the code but not the driver's state."""
    pipeline, _ = build(method, demo(method), shapes_home)
    for stage in pipeline:
        function = function_of(stage)
        module = importlib.import_module(function.__module__)
        assert getattr(module, function.__qualname__, None) is function, f"{stage.name}: not a module-level function"
        assert module.__name__.split(".")[0] in ("wsss", "wsss_methods")
        assert pickle.loads(pickle.dumps(stage)) == stage


def test_plan_is_stable(method: Method, shapes_home: Path) -> None:
    assert keys_of(method, demo(method), shapes_home) == keys_of(method, demo(method), shapes_home)


def test_keys_do_not_depend_on_where_the_data_lie(method: Method, shapes_home: Path, tmp_path: Path) -> None:
    assert keys_of(method, demo(method), shapes_home) == keys_of(method, demo(method), tmp_path)


def test_execution_settings_do_not_change_keys(method: Method, shapes_home: Path) -> None:
    other = ("train_workers=2", "map_workers=3", "device=cpu", "mode=parity", "threads=2", "micro_batch=2")
    changed = demo(method, *(f"execution.{text}" for text in other))
    assert keys_of(method, changed, shapes_home) == keys_of(method, demo(method), shapes_home)


def test_seed_changes_training_and_what_follows_it(method: Method, shapes_home: Path) -> None:
    recipe = demo(method)
    pipeline, _ = build(method, recipe, shapes_home)
    before = keys_of(method, recipe, shapes_home)
    after = keys_of(method, demo(method, f"seed={recipe.seed + 1}"), shapes_home)
    trained = [stage.name for stage in pipeline if isinstance(stage, TrainStage)]
    expected = set().union(*(pipeline.downstream(name) for name in trained))
    assert {name for name in before if before[name] != after[name]} == expected


def test_references_train_the_methods_network_on_other_labels(
    method: Method, shapes_home: Path, tmp_path: Path
) -> None:
    """What the methods must do for `wsss.stages.references`: learn from the label maps that they are handed."""
    if "references.upper_bound" not in settings_of(method.recipe_type):
        pytest.skip("the method trains no segmentation network")
    recipe = demo(method, "references.upper_bound=true", "references.image_boxes=true")
    pipeline, dataset = build(method, recipe, shapes_home)
    own, more = keys_of(method, demo(method), shapes_home), stage_keys(pipeline, dataset, file_digest)
    assert {name: more[name] for name in own} == own
    store = open_store(str(tmp_path))
    boxes = run_pipeline(pipeline, dataset, store, [BOX_STAGE]).artifacts[BOX_STAGE]
    seen = []
    for name in ("upper_bound", "image_boxes"):
        stage = pipeline.stage(f"{name}_train")
        assert isinstance(stage, TrainStage) and stage.fully_supervised == ("masks" in stage.reads)
        task, batch = first_batch(stage, dataset, store, dict.fromkeys(stage.inputs, boxes))
        (label,) = {key for key, value in batch.items() if value.dtype == torch.uint8} - {"mask"}
        seen.append(batch[label])
        losses, others = [], {**batch, label: torch.zeros_like(batch[label])}
        for given in (batch, others):
            torch.manual_seed(1)
            losses.append(task.module(given, 0, 0))
        assert all(torch.isfinite(value).all() for value in losses[0].values())
        assert any(not torch.equal(losses[0][key], losses[1][key]) for key in losses[0]), "no loss looks at the labels"
    masks, bands = seen
    assert (masks == 0).any() and not (bands == 0).any(), "boxes have no background"


def first_batch(
    stage: TrainStage, dataset: Dataset, store: Store, inputs: Mapping[str, Artifact]
) -> tuple[TrainTask, dict[str, torch.Tensor]]:
    """The task of a training, and a batch of its samples."""
    view, facts = dataset.view(stage.reads, stage.image_list), dataset.image_facts(stage.image_list)
    job = StageJob(stage=stage, key="k", view=view, inputs=inputs, store=store, facts=facts)
    torch.manual_seed(0)
    task = stage.build(job.context("cpu"))
    places = [index % len(task.samples) for index in range(task.global_batch)]
    samples = [task.samples.sample(place, np.random.default_rng(place)) for place in places]
    return task, {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def test_the_optimizer_of_the_recipe_is_the_one_that_trains(method: Method, shapes_home: Path, tmp_path: Path) -> None:
    """A stage whose settings say adamw steps AdamW, and without it none does."""
    settings = [key for key in settings_of(method.recipe_type) if key.endswith(".optimizer")]
    assert settings, "every method has a training whose optimizer can be chosen"
    for key in settings:
        for name in ("sgd", "adamw"):
            pipeline, dataset = build(method, demo(method, f"{key}={name}"), shapes_home)
            chosen = [
                stage
                for stage in pipeline
                if isinstance(stage, TrainStage) and name in _optimizers_of(to_dict(stage.config))
            ]
            assert chosen, f"{key}={name} reaches no training"
            for stage in chosen:
                view, facts = dataset.view(stage.reads, stage.image_list), dataset.image_facts(stage.image_list)
                store = open_store(str(tmp_path))
                job = StageJob(stage=stage, key="k", view=view, inputs={}, store=store, facts=facts)
                steps = {type(plan.optimizer) for plan in stage.build(job.context("cpu")).optimizers}
                assert {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name] in steps, (key, stage.name)


def _optimizers_of(config: Mapping[str, Any]) -> set[str]:
    found = {config["optimizer"]} if "optimizer" in config else set()
    return found.union(*(_optimizers_of(value) for value in config.values() if isinstance(value, Mapping)))


def test_the_plain_cam_is_the_classifier_alone_scored_like_the_methods_maps(
    method: Method, shapes_home: Path, tmp_path: Path
) -> None:
    """What a method hands to `with_references`: its own CAM stages with its parts off."""
    if "references.plain_cam" not in settings_of(method.recipe_type):
        names = {stage.name for stage in build(method, demo(method), shapes_home)[0]}
        card = (method.folder / "README.md").read_text(encoding="utf-8")
        assert "cam_train" not in names and "no plain CAM" in card, "the card says why there is none"
        return
    pipeline, dataset = build(method, demo(method, "references.plain_cam=true"), shapes_home)
    own, more = keys_of(method, demo(method), shapes_home), stage_keys(pipeline, dataset, file_digest)
    assert {name: more[name] for name in own} == own
    plain, ours = pipeline.stage("plain_cam_train"), pipeline.stage("cam_train")
    assert isinstance(plain, TrainStage) and isinstance(ours, TrainStage) and not plain.fully_supervised
    assert not plain.inputs and plain.reads == {"images", "image_labels"}
    assert (plain.image_list, plain.seed, plain.files) == (
        ours.image_list,
        ours.seed,
        {role: file for role, file in ours.files.items() if role == "backbone"},
    )
    score, evaluation = pipeline.stage("plain_cam_score"), pipeline.stage("plain_cam_evaluation")
    assert (score.config, score.image_list) == (pipeline.stage("cam_score").config, "train")
    assert evaluation.config == dataclasses.replace(pipeline.stage("cam_evaluation").config, prefix="plain_cam")
    assert "plain_cam/miou_train" in pipeline.headline
    task, batch = first_batch(plain, dataset, open_store(str(tmp_path)), {})
    losses = task.module(batch, 0, 0)
    assert {name for name in losses if name in task.loss_weights} == {"classification"}


def test_every_recipe_key_enters_the_key_of_a_stage(method: Method, shapes_home: Path) -> None:
    """A key that changes nothing is a dead option. One that matters only under another choice is tried there.

    Keys with `in_key=False` must change nothing. The data set's own keys are the platform's to test.
    """
    known = {
        key: info
        for key, info in settings_of(method.recipe_type).items()
        if key != "seed" and not key.startswith(("dataset.", "execution."))
    }
    values = flat_dict(demo(method))
    pictures = DigestedOnce(load_dataset(demo(method).dataset, shapes_home))
    tried_before: dict[tuple[str, ...], dict[str, str] | None] = {}

    def keys_under(*overrides: str) -> dict[str, str] | None:
        if overrides not in tried_before:
            tried_before[overrides] = keys_or_refusal(*overrides)
        return tried_before[overrides]

    def keys_or_refusal(*overrides: str) -> dict[str, str] | None:
        try:
            return stage_keys(method.pipeline(demo(method, *overrides), pictures.dataset), pictures, file_digest)
        except RecipeError:
            return None
        except WsssError as error:  # the choice asks for a file: it matters
            return {"refused": str(error)}

    def matters(key: str, under: tuple[str, ...] = ()) -> bool:
        base = keys_under(*under)
        tried = (keys_under(*under, as_override(key, other)) for other in other_values(known[key], values[key]))
        return base is not None and any(keys is not None and keys != base for keys in tried)

    plain = [key for key, info in known.items() if info.in_key]
    silent = [key for key in plain if not matters(key)]
    switches = switches_of(known, values)

    def section(key: str) -> str:
        return key.partition(".")[0]

    def conditions(key: str) -> list[str]:
        """Other settings under which a key may matter: its own section's first, then every choice."""
        own = [other for other in known if other != key and section(other) == section(key)]
        changed = [as_override(other, value) for other in own for value in other_values(known[other], values[other])]
        return [*changed, *(text for text in switches if section(text) != section(key))]

    def choices(key: str) -> list[tuple[str, str]]:
        """A choice of the section, under a choice of another one that makes the whole section matter."""
        own = [text for text in switches if section(text) == section(key)]
        return [(other, text) for other in switches if section(other) != section(key) for text in own]

    dead = [key for key in silent if not any(matters(key, (condition,)) for condition in conditions(key))]
    dead = [key for key in dead if not any(matters(key, pair) for pair in choices(key))]
    assert dead == [], "these keys change no stage under any choice"

    base = keys_under()
    for key, info in known.items():
        if not info.in_key and not isinstance(values[key], str) and values[key] is not None:
            for other in other_values(info, values[key]):
                changed = keys_under(as_override(key, other))
                assert changed in (base, None) or (changed and "refused" in changed), f"{key} changes keys"


def test_claims_load_and_their_recipes_are_of_their_data_set(method: Method) -> None:
    claims = [claim for claim in load_claims(method.claims_path, recipe_names(method)) if not claim.context]
    card = (method.folder / "README.md").read_text(encoding="utf-8")
    assert claims or "no published number" in card, "no claim of a shipped recipe, and the card does not say why"
    for claim in claims:
        recipe = load_recipe(method.recipe_type, method.recipe_path(claim.recipe), ())
        assert recipe.dataset.name == claim.dataset, claim.id
        assert {*claim.may_differ, *claim.needs} <= set(settings_of(method.recipe_type)), claim.id
        for key, value in claim.needs.items():
            with contextlib.suppress(WsssError):  # "folder" without a folder
                load_recipe(method.recipe_type, method.recipe_path(claim.recipe), [f"{key}={value}"])
            assert flat_dict(recipe)[key] != value, f"{claim.id}: the recipe has {key} = {value} by itself"


def test_method_card_has_every_heading(method: Method) -> None:
    text = (method.folder / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    missing = [part for part in CARD_HEADINGS if not any(part.lower() in heading.lower() for heading in headings)]
    assert missing == []


def test_exporters_belong_to_stages(method: Method, shapes_home: Path) -> None:
    """Some stages exist only under another choice than the demo's."""
    known = {
        key: info
        for key, info in settings_of(method.recipe_type).items()
        if not key.startswith(("dataset.", "execution."))
    }
    stages: set[str] = set()
    for switch in ([], *([text] for text in switches_of(known, flat_dict(demo(method))))):
        with contextlib.suppress(WsssError):  # a choice that asks for a file
            stages.update(stage.name for stage in build(method, demo(method, *switch), shapes_home)[0])
    assert stages
    for name, exporter in method.exporters.items():
        assert exporter.description.strip(), name
        assert exporter.stage in stages, name


def test_a_released_model_has_a_layout_and_is_checked(method: Method, shapes_home: Path, tmp_path: Path) -> None:
    if method.released is None:
        pytest.skip("the method has no released model")
    checkpoint = tmp_path / "checkpoint.pth"
    checkpoint.write_bytes(b"not a checkpoint")
    recipe = demo(method)
    dataset = load_dataset(recipe.dataset, shapes_home)
    pipeline = pipeline_of(method, recipe, dataset, checkpoint)
    assert pipeline.stages[0].name == method.exporters[method.released.layout].stage
    assert any(isinstance(stage, ReduceStage) for stage in pipeline), "nothing would be scored"
    with pytest.raises(WsssError):
        check_checkpoint(method, recipe, dataset, checkpoint)


def test_search_space_names_recipe_keys(method: Method) -> None:
    path = ROOT / "search_spaces" / f"{method.name}.yaml"
    if not path.is_file():
        pytest.skip(f"no search space: {path.name}")
    space = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = settings_of(method.recipe_type)
    named = [key for key in keys_within(space) if "." in key]
    assert named
    assert [key for key in named if key not in known] == []


def keys_within(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        yield from (str(key) for key in content)
        for value in content.values():
            yield from keys_within(value)
