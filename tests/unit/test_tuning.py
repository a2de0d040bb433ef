"""Thresholds are fitted for what comes out, joined where the model joins."""

import numpy as np

import drawn_outputs
from iaunet import clustering, metrics, tuning


def fibres(rng):
    """Return outputs of two long fibres side by side, and the true labels."""
    drawn = drawn_outputs.fibres((48, 200), rng, lines=(12, 25))
    line = np.where(np.arange(48) < 18.5, 1, 2)[:, None]
    return drawn, np.where(drawn["fg"] > 127, line, 0)


def test_with_images_to_learn_joining_from_the_score_is_of_joined_objects(rng, monkeypatch):
    monkeypatch.setattr(tuning, "GRID", {"phi": (0.1, 0.3), "seed": (0.3, 0.5)})
    case = fibres(rng)
    start = clustering.Settings.from_dict({"min_size": 8}, 2)
    _, in_fragments = tuning.fit_thresholds([case], start, (4, 4))
    settings, joined = tuning.fit_thresholds([case], start, (4, 4), known=[case])
    assert joined > in_fragments + 0.3
    settings, joiner = tuning.fit_joining([case], [case], settings, (4, 4))
    assert settings.join > 0
    labels = clustering.label_array(case[0], settings, (4, 4), joiner)
    counts = metrics.match_counts(metrics.overlap(case[1], labels))
    assert counts[0][0] == 2
