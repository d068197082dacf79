"""Names of runs: what differs from the shipped recipe is in them, and what does not count is not."""

from dataclasses import replace

from wsss.changed_settings import changed_settings, name_of_run
from wsss.commands.arguments import select
from wsss.recipe import to_dict
from wsss.run_record import RunRecord


def named(*overrides: str, checkpoint: str = "") -> str:
    selection = select("ssc", "demo", overrides)
    record = RunRecord(
        run_id="r",
        method="ssc",
        recipe_name="demo",
        recipe=to_dict(selection.recipe),
        seed=selection.recipe.seed,
        dataset="shapes",
        store_url="",
        keys={},
        protocol={},
        provenance={},
        checkpoint=checkpoint,
    )
    return name_of_run(record, selection.method, selection.recipe)


def test_references_settings_and_released_models_are_in_the_name_of_a_run() -> None:
    assert named() == named("execution.threads=1", "execution.device=cpu") == "ssc demo, seed 0"
    assert named("references.upper_bound=true") == "ssc demo with upper_bound, seed 0"
    assert named("cam.learning_rate=0.02", "seed=4") == "ssc demo with cam.learning_rate=0.02, seed 4"
    assert named(checkpoint="/there/best_ckpt.pth") == "ssc demo with released best_ckpt.pth, seed 0"


def test_references_are_no_changed_settings_and_an_own_recipe_has_none() -> None:
    selection = select("ssc", "demo", ["references.upper_bound=true", "crf.iterations=5"])
    assert changed_settings(selection.method, selection.recipe, "demo") == ("crf.iterations",)
    assert changed_settings(selection.method, replace(selection.recipe, seed=1), "mine") == ()
