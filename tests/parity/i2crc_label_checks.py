"""I2CRC: pseudo labels of class maps and saliency, and their refinement."""

from __future__ import annotations

import numpy as np
from tests.parity.check_parts import prose_number
from tests.parity.fixtures import ParityError
from tests.parity.shared_fixtures import OwnToleranceFixture

from wsss.data.palette import voc_palette
from wsss_methods.i2crc.label_refinement import pseudo_label, refined_label
from wsss_methods.i2crc.recipe import PseudoLabelSettings, RefinementSettings

FIXTURE = OwnToleranceFixture


def cases_of(fixture: OwnToleranceFixture) -> list[str]:
    return [name.removesuffix(".classes") for name in fixture.inputs if name.endswith(".classes")]


def check_pseudo_label(fixture: OwnToleranceFixture) -> None:
    text = fixture.meta["what"]

    def stated(name: str) -> float:
        value = prose_number(text, rf"{name} ([\d.]*\d)", -1.0)
        if value < 0:
            raise ParityError(f"no threshold {name!r} in {text!r}")
        return value

    settings = PseudoLabelSettings(
        foreground_threshold=stated("fg"),
        conflict_threshold=stated("conflict"),
        saliency_threshold=int(stated("saliency")),
        attention_threshold=stated("attention"),
        min_object_ratio=stated("minimum foreground ratio"),
    )
    for case in cases_of(fixture):
        saliency = fixture.input(f"{case}.sal")
        given = [number for number in fixture.input(f"{case}.classes") if f"{case}.cam{number}" in fixture.inputs]
        maps = np.array([fixture.input(f"{case}.cam{number}") for number in given])
        fixture.expect(f"{case}.label", pseudo_label(maps, np.array(given) + 1, saliency, settings))
    for name in (name for name in fixture.inputs if name.startswith("palette")):
        palette = np.array(fixture.input(name)).reshape(-1, 3)
        if not np.array_equal(voc_palette()[: len(palette)], palette):
            raise ParityError("the palette of written labels differs")


def check_refined_label(fixture: OwnToleranceFixture) -> None:
    for case in cases_of(fixture):
        prediction, initial = fixture.input(f"{case}.pred"), fixture.input(f"{case}.init")
        present = np.array(fixture.input(f"{case}.classes")) + 1
        fixture.expect(f"{case}.label", refined_label(prediction, initial, present, RefinementSettings()))


CHECKS = {"gen_pseudo_label": check_pseudo_label, "label_refine": check_refined_label}
