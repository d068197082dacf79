"""The 80 categories of COCO, and the classes that they become."""

from collections.abc import Mapping

# First id of a run without gaps -> the names of its categories; the ids between the runs were dropped by COCO.
_RUNS = {
    1: "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant",
    13: "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    27: "backpack, umbrella",
    31: "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle",
    46: "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, "
    "donut, cake, chair, couch, potted plant, bed",
    67: "dining table",
    70: "toilet",
    72: "tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator",
    84: "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
# Category id -> name, by rising id.
COCO_CATEGORIES: Mapping[int, str] = {
    number: name for first, names in _RUNS.items() for number, name in enumerate(names.split(", "), start=first)
}
# Category id -> class 1..80 of a mask, by rising id.
CLASS_OF_CATEGORY: Mapping[int, int] = {number: index for index, number in enumerate(COCO_CATEGORIES, start=1)}
COCO_CLASSES = ("background", *COCO_CATEGORIES.values())
