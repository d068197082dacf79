"""Searches the settings of a recipe across the stages of a pipeline. Read this page first.

The words:

    key      a dotted key of the recipe that a search may vary; a value is what it is given
    trial    one value for every key, and what became of it: proposed, running, then finished, failed or pruned (dropped
             in a race, or stopped early). Trial 0 is the recipe itself
    batch    trials that are evaluated together; a stage whose input and config they share is computed once for all
    outer    a key whose change forces training, and the part of a trial that such keys make up. Trials with the same
             outer values form an outer trial: they share its training, and the best of them is its worth
    inner    a key whose change forces no training, and the part of a trial that such keys make up
    curve    a key that is the threshold of the searched metric: one pass scores all of its values
    rule     how a trial and its threshold are chosen: held_out, oracle, default_threshold, label_free (`Select`)

A sweep is one search from its request to its best recipe. The order of the rooms, each of which asks one question:

    request.py   what is searched for, and can it be had?
    space/       which keys may vary, which stage does each belong to, is it outer, inner or curve?
    propose/     which trial comes next?
    evaluate/    what does a batch of trials compute, and which of them are dropped on the way?
    choose/      what is a trial worth, and which one is the best?
    study/       what do people see of it: ledger, Optuna study, MLflow, importance of the keys
    records.py   what is kept of a sweep and of a trial, on disk
    sweep.py     the story of a sweep, read aloud

Beside `execution` this is the only package that imports Ray.
"""
