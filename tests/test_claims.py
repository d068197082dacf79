from pathlib import Path
from typing import Any

import pytest
import yaml

from wsss.claims import Claim, ClaimError, OurNumber, OurProtocol, load_claims, verdict, verdicts

CLAIM = Claim(
    id="val_crf",
    value=72.7,
    metric="segmentation/miou_val_crf",
    dataset="voc2012",
    split="val",
    protocol="ResNet-101, five scales, dense CRF",
    source="paper",
    citation="abstract",
    tolerance=1.0,
)
RECIPES = ("demo", "mini", "paper")
PAPER = OurProtocol(dataset="voc2012", recipe="paper")

TEXT = """\
claims:
  - id: val_crf
    value: 72.7
    metric: segmentation/miou_val_crf
    dataset: voc2012
    split: val
    protocol: ResNet-101, five scales, dense CRF
    source: paper
    citation: abstract
    tolerance: 1
"""


def ours(*percent: float) -> OurNumber:
    return OurNumber(tuple(value / 100 for value in percent), tuple(range(len(percent))))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    return path


def test_claims_are_read(tmp_path):
    assert load_claims(write(tmp_path, TEXT), RECIPES) == (CLAIM,)


def test_every_problem_is_named_at_once(tmp_path):
    text = TEXT.replace("tolerance: 1", "tolerence: 1").replace("value: 72.7", "value: 727")
    text = text.replace("source: paper", "source: rumour").replace("split: val", "split: test")
    with pytest.raises(ClaimError) as error:
        load_claims(write(tmp_path, text), RECIPES)
    message = str(error.value)
    assert "unknown key 'tolerence', did you mean 'tolerance'?" in message
    assert "tolerance is missing" in message
    assert "value is 727" in message
    assert "'rumour'" in message
    assert "does not name the split 'test'" in message


def test_files_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ClaimError, match="no claims file"):
        load_claims(tmp_path / "claims.yaml", RECIPES)
    for text in ("- a\n", "claims: 3\n", "claims: []\nextra: 1\n"):
        with pytest.raises(ClaimError, match="one key 'claims'"):
            load_claims(write(tmp_path, text), RECIPES)
    with pytest.raises(ClaimError, match="used 2 times"):
        load_claims(write(tmp_path, TEXT + TEXT.removeprefix("claims:\n")), RECIPES)
    with pytest.raises(ClaimError, match="not valid YAML"):
        load_claims(write(tmp_path, "claims: [\n"), RECIPES)


@pytest.mark.parametrize(
    ("percent", "outcome", "difference"),
    [
        (72.0, "reproduced", -0.7),
        (73.7, "reproduced", 1.0),
        (73.71, "above", 1.01),
        (71.7, "reproduced", -1.0),
        (60, "below", -12.7),
    ],
)
def test_outcome_follows_the_tolerance(percent, outcome, difference):
    result = verdict(CLAIM, ours(percent), PAPER)
    assert result.outcome == outcome
    assert result.difference == pytest.approx(difference)


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        (OurProtocol(dataset="voc_mini", recipe="paper"), "voc_mini"),
        (OurProtocol(dataset="voc2012", recipe="demo"), "recipe demo"),
        (OurProtocol(dataset="voc2012", recipe="paper", deviations=("train has 438 images",)), "438 images"),
        (OurProtocol(dataset="voc2012", recipe="paper", changed_settings=("cam.epochs",)), "cam.epochs"),
        (
            OurProtocol(dataset="voc2012", recipe="paper", chosen_by_masks={CLAIM.metric: ("select_segmentation",)}),
            "masks chose something in select_segmentation",
        ),
    ],
)
def test_another_protocol_is_not_comparable(protocol, reason):
    result = verdict(CLAIM, ours(72.7), protocol)
    assert result.outcome == "not comparable"
    assert reason in result.reason
    assert result.difference is None, "what is not comparable has no difference"


def test_settings_that_a_claim_leaves_open_may_differ():
    claim = Claim(**{**CLAIM.__dict__, "may_differ": ("train.norm_group",)})
    open_key = OurProtocol(dataset="voc2012", recipe="paper", changed_settings=("train.norm_group",))
    assert verdict(claim, ours(72.7), open_key).outcome == "reproduced"
    assert verdict(CLAIM, ours(72.7), open_key).outcome == "not comparable"
    both = OurProtocol(dataset="voc2012", recipe="paper", changed_settings=("train.norm_group", "train.lr"))
    result = verdict(claim, ours(72.7), both)
    assert result.outcome == "not comparable" and "train.lr" in result.reason and "norm_group" not in result.reason


def test_a_number_of_other_inputs_than_the_published_one_is_not_comparable():
    claim = Claim(**{**CLAIM.__dict__, "needs": {"saliency.source": "folder"}})
    changed = ("saliency.source",)
    given = OurProtocol(
        dataset="voc2012", recipe="paper", changed_settings=changed, settings={"saliency.source": "folder"}
    )
    assert verdict(claim, ours(72.7), given).outcome == "reproduced"
    made = OurProtocol(dataset="voc2012", recipe="paper", settings={"saliency.source": "made"})
    result = verdict(claim, ours(72.7), made)
    assert result.outcome == "not comparable"
    assert "saliency.source is made, the claim needs folder" in result.reason


def test_context_is_shown_and_never_compared():
    claim = Claim(**{**CLAIM.__dict__, "context": True})
    result = verdict(claim, ours(72.7), PAPER)
    assert (result.outcome, result.ours, result.difference) == ("context", None, None)
    assert "another method" in result.reason


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("id", "3", "id is 3, not a text"),
        ("value", "'72.7'", "value is '72.7', not a number in [0, 100] (percent)"),
        ("value", "true", "value is True, not a number"),
        ("metric", "segmentation/epoch_val", "metric 'segmentation/epoch_val' is no score of a split"),
        ("metric", "miou_val", "metric 'miou_val' is no score of a split"),
        ("metric", "segmentation/miou_test_crf", "does not name the split 'val'"),
        ("dataset", "voc", "dataset is 'voc', not one of voc2012, coco2014, shapes"),
        ("split", "[val]", "split is ['val'], not a text"),
        ("protocol", "''", "protocol is '', not a text"),
        ("source", "rumour", "source is 'rumour', not one of paper, readme"),
        ("citation", "null", "citation is None, not a text"),
        ("tolerance", "-1", "tolerance is -1, not a number in [0, 100]"),
        ("recipe", "beco", "recipe is 'beco', not one of demo, mini, paper; another method's number is context"),
        ("may_differ", "train.lr", "may_differ is 'train.lr', not a list of dotted recipe keys"),
        ("needs", "[train.lr]", "needs is ['train.lr'], not a mapping of dotted recipe keys to values"),
        ("chosen_by_masks", "sometimes", "chosen_by_masks is 'sometimes', not true or false"),
        ("released", "1", "released is 1, not true or false"),
        ("context", "1", "context is 1, not true or false"),
    ],
)
def test_every_field_of_a_claim_is_checked(tmp_path: Path, field: str, value: str, problem: str) -> None:
    content: dict[str, Any] = yaml.safe_load(TEXT)
    content["claims"][0][field] = yaml.safe_load(value)
    with pytest.raises(ClaimError) as error:
        load_claims(write(tmp_path, yaml.safe_dump(content)), RECIPES)
    assert problem in str(error.value)


def test_context_names_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ClaimError, match="leave out recipe, may_differ and needs"):
        load_claims(write(tmp_path, TEXT + "    recipe: paper\n    context: true\n"), RECIPES)
    (claim,) = load_claims(write(tmp_path, TEXT + "    context: true\n"), RECIPES)
    assert claim.context
    (claim,) = load_claims(write(tmp_path, TEXT + "    may_differ: [train.lr]\n"), RECIPES)
    assert claim.may_differ == ("train.lr",)


def test_all_obstacles_are_named():
    result = verdict(CLAIM, ours(72.7), OurProtocol(dataset="shapes", recipe="demo"))
    assert "shapes" in result.reason
    assert "demo" in result.reason


def test_masks_may_choose_where_the_claim_chose_so():
    claim = Claim(**{**CLAIM.__dict__, "chosen_by_masks": True})
    protocol = OurProtocol(dataset="voc2012", recipe="paper", chosen_by_masks={claim.metric: ("select",)})
    assert verdict(claim, ours(72.7), protocol).outcome == "reproduced"
    # What chose for another number does not matter for this one.
    elsewhere = OurProtocol(dataset="voc2012", recipe="paper", chosen_by_masks={"cam/miou_train": ("cam_eval",)})
    assert verdict(CLAIM, ours(72.7), elsewhere).outcome == "reproduced"


def test_an_oracle_number_is_not_comparable():
    claim = Claim(**{**CLAIM.__dict__, "metric": "cam/miou_val_oracle"})
    assert "oracle" in verdict(claim, ours(72.7), PAPER).reason
    assert verdict(claim, ours(72.7), PAPER).outcome == "not comparable"


def test_seeds_are_averaged_and_missing_numbers_named():
    by_seed = {0: {CLAIM.metric: 0.72}, 1: {CLAIM.metric: 0.74}, 2: {"cam/miou_train": 0.5}}
    (result,) = verdicts([CLAIM], by_seed, PAPER)
    assert result.ours is not None
    assert result.ours.seeds == (0, 1)
    assert result.ours.mean == pytest.approx(0.73)
    assert result.ours.spread == pytest.approx(0.0141421, rel=1e-4)
    assert result.outcome == "reproduced"
    (missing,) = verdicts([CLAIM], {0: {}}, PAPER)
    assert missing.outcome == "not comparable"
    assert "no segmentation/miou_val_crf" in missing.reason
    assert missing.difference is None
    assert verdict(CLAIM, ours(float("nan")), PAPER).outcome == "not comparable"


def test_an_unverified_claim_says_so():
    claim = Claim(**{**CLAIM.__dict__, "source": "unverified"})
    assert "could not be verified" in verdict(claim, ours(72.7), PAPER).reason


def test_released_models_are_held_against_claims_of_released_models_alone():
    claim = Claim(**{**CLAIM.__dict__, "released": True})
    released = OurProtocol(dataset="voc2012", recipe="paper", released=True)
    assert verdict(claim, ours(72.7), released).outcome == "reproduced"
    assert verdict(CLAIM, ours(72.7), PAPER).outcome == "reproduced"
    for one, protocol, reason in (
        (CLAIM, released, "ours is the released model"),
        (claim, PAPER, "--from-checkpoint"),
    ):
        result = verdict(one, ours(72.7), protocol)
        assert result.outcome == "not comparable" and reason in result.reason


def test_released_is_a_switch_that_released_weights_need(tmp_path):
    text = TEXT.replace("source: paper", "source: released_weights")
    with pytest.raises(ClaimError, match="needs released: true"):
        load_claims(write(tmp_path, text), RECIPES)
    with pytest.raises(ClaimError, match="released is 'yes please', not true or false"):
        load_claims(write(tmp_path, TEXT + "    released: yes please\n"), RECIPES)
    (claim,) = load_claims(write(tmp_path, text + "    released: true\n"), RECIPES)
    assert claim.released
    (claim,) = load_claims(
        write(tmp_path, TEXT.replace("source: paper", "source: readme") + "    released: true\n"), RECIPES
    )
    assert claim.released and claim.source == "readme"
