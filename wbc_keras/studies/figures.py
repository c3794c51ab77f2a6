"""The figures of a study: each setting's, its difference to the baseline, a component's worth.

The test cells of all folds are pooled, each answered by the model that never saw it; with several
seeds a figure is the mean over them. All settings are drawn with the same cells (patients), so that
what is hard about the cells cancels in a difference (`comparison`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.errors import RunError
from wbc_keras.labels import abnormal_classes, blast_classes
from wbc_keras.metrics import Scorer, mean_where, scores_by_class
from wbc_keras.reporting.estimates import Estimate, make_estimate
from wbc_keras.statistics.bootstrap import DRAWS, draw_figures, interval_of, plan_resampling
from wbc_keras.statistics.comparison import Difference, Drawn, paired_difference
from wbc_keras.statistics.probabilities import Array, Integers, check_probabilities
from wbc_keras.statistics.ranking import Ranking
from wbc_keras.studies.plan import Repeat, Study
from wbc_keras.studies.results import Result

FIGURES = ("macro_f1", "rare_recall", "abnormal_auroc", "blast_auroc")
RARE_SHARE = 0.01  # of the training cells; a class of fewer is rare


@dataclass(frozen=True)
class SettingFigures:
    """A setting over its finished runs.

    Attributes:
        name: the setting's.
        runs: how many are finished, of how many.
        cells: that are scored, pooled over folds.
        patients: of these cells; None where none is known.
        figures: each of `FIGURES`, over the setting's own finished runs.
        differences: to the baseline, over the repeats that both have finished; None for the
            baseline itself, or where there is no such repeat.
        validation_macro_f1: mean of its runs: what a setting may be chosen by.
        minutes: of training, mean of its runs.
        parameters: of the network; None, as the two before, without a finished run.
    """

    name: str
    runs: tuple[int, int]
    cells: int
    patients: int | None
    figures: Mapping[str, Estimate]
    differences: Mapping[str, Difference] | None
    validation_macro_f1: float | None
    minutes: float | None
    parameters: int | None


@dataclass(frozen=True)
class LevelFigures:
    """What a level of a component is worth, averaged over all other components (main effect).

    Attributes:
        component: as the study names it.
        level: held against ``reference``, the component's first.
        reference: that one.
        pairs: how many pairs of settings, alike but for this component, are averaged.
        differences: level minus reference in each of `FIGURES`.
    """

    component: str
    level: str
    reference: str
    pairs: int
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class StudyFigures:
    """All that is told of a study, finished or not.

    Attributes:
        baseline: the setting that the others are held against.
        rare: classes under `RARE_SHARE` of the training cells.
        settings: in the study's order.
        levels: of the components of a grid; empty without a grid.
        runs: each finished run by itself: setting, repeat and `FIGURES`, NaN where there is none.
    """

    baseline: str
    rare: tuple[str, ...]
    settings: tuple[SettingFigures, ...]
    levels: tuple[LevelFigures, ...]
    runs: pd.DataFrame


def measure_study(
    study: Study, results: Iterable[Result], *, draws: int = DRAWS, seed: int = 0
) -> StudyFigures:
    """Compute every figure of the runs that are finished.

    Args:
        study: what was planned.
        results: of its runs; failed ones are passed over.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        RunError: two runs of a repeat were tested on different cells or classes.
    """
    done: dict[str, dict[Repeat, Result]] = {setting.name: {} for setting in study.settings}
    for result in results:
        if result.answers is not None:
            done[result.cell.setting][result.cell.repeat] = result
    _require_same_cells(done)
    pool = _Pool(done, _rare_classes(done), draws=draws, seed=seed)
    baseline = study.settings[0].name
    return StudyFigures(
        baseline,
        pool.rare,
        tuple(
            _measure_setting(setting.name, baseline, pool, planned=len(study.repeats))
            for setting in study.settings
        ),
        tuple(_measure_levels(study, pool)),
        _measure_runs(pool),
    )


class _Pool:
    """The finished runs, and the draws of any part of them.

    Args:
        done: results by setting and repeat.
        rare: classes.
        draws: number of bootstrap draws.
        seed: of the draws.
    """

    def __init__(
        self,
        done: Mapping[str, Mapping[Repeat, Result]],
        rare: tuple[str, ...],
        *,
        draws: int,
        seed: int,
    ) -> None:
        self.done = done
        self.rare = rare
        self._draws = draws
        self._seed = seed
        # The same part is asked for by several comparisons.
        self.drawn = cache(self._draw)

    def common(self, names: Iterable[str]) -> tuple[Repeat, ...]:
        """Return the repeats that all of some settings have finished and that can be pooled.

        Of several seeds each must have the same folds: those with the most folds are taken.
        """
        shared = set.intersection(*(set(self.done[name]) for name in names))
        folds: dict[int, set[int | None]] = {}
        for one in sorted(shared):
            folds.setdefault(one.seed, set()).add(one.fold)
        # A seed in progress has fewer than the others, a failed run leaves a gap.
        most = max(folds.values(), key=len, default=set())
        return tuple(one for one in sorted(shared) if folds[one.seed] == most)

    def answers(self, name: str, repeats: Sequence[Repeat]) -> pd.DataFrame:
        """Return the answers of some repeats, in the order of the files."""
        tables = [self.done[name][repeat].answers for repeat in repeats]
        whole = pd.concat(tables, ignore_index=True)
        return whole.sort_values("file", kind="stable", ignore_index=True)

    def _draw(self, name: str, repeats: tuple[Repeat, ...]) -> Drawn:
        """Return a setting's figures on pooled folds, averaged over the seeds."""
        seeds = sorted({repeat.seed for repeat in repeats})
        return _average(
            [
                _draw_pooled(
                    self.answers(name, [one for one in repeats if one.seed == seed]),
                    self.rare,
                    draws=self._draws,
                    seed=self._seed,
                )
                for seed in seeds
            ]
        )


def _measure_setting(name: str, baseline: str, pool: _Pool, *, planned: int) -> SettingFigures:
    own = pool.done[name]
    counted = pool.common([name])
    shared = pool.common([name, baseline])
    cells = (
        pool.answers(name, [one for one in counted if one.seed == counted[0].seed]) if own else None
    )
    groups = set() if cells is None else set(cells["group"]) - {""}
    facts = [one.facts for one in own.values() if one.facts is not None]
    return SettingFigures(
        name,
        (len(own), planned),
        0 if cells is None else len(cells),
        len(groups) or None,
        _estimates(pool.drawn(name, counted)) if own else dict.fromkeys(FIGURES, Estimate(None)),
        None
        if name == baseline or not shared
        else _differences(pool.drawn(baseline, shared), pool.drawn(name, shared)),
        _mean([one.validation_macro_f1 for one in facts]),
        _mean([one.training_seconds / 60 for one in facts]),
        facts[0].parameters if facts else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    had = [value for value in values if value is not None]
    return sum(had) / len(had) if had else None


def _measure_levels(study: Study, pool: _Pool) -> Iterable[LevelFigures]:
    for component, (reference, *others) in study.components.items():
        for level in others:
            pairs = [
                pair
                for pair in _pairs(study, component, reference, level)
                if pool.done[pair[0]] and pool.done[pair[1]]
            ]
            shared = pool.common({name for pair in pairs for name in pair}) if pairs else ()
            if not shared:
                continue
            first, second = (
                _average([pool.drawn(pair[side], shared) for pair in pairs]) for side in (0, 1)
            )
            differences = _differences(first, second)
            yield LevelFigures(component, level, reference, len(pairs), differences)


def _pairs(study: Study, component: str, reference: str, level: str) -> list[tuple[str, str]]:
    """Return the settings at the reference and at the level that are alike in all else."""
    named = {tuple(sorted(one.levels.items())): one.name for one in study.settings}
    return [
        (one.name, named[tuple(sorted({**one.levels, component: level}.items()))])
        for one in study.settings
        if one.levels[component] == reference
    ]


def _measure_runs(pool: _Pool) -> pd.DataFrame:
    rows = []
    for name, results in pool.done.items():
        for repeat, result in results.items():
            assert result.answers is not None
            own = _draw_pooled(result.answers, pool.rare, draws=0, seed=0).figures
            rows.append({"setting": name, "repeat": repeat.name, **own})
    return pd.DataFrame(rows, columns=["setting", "repeat", *FIGURES])


# --- one set of answers ---


def _draw_pooled(answers: pd.DataFrame, rare: Sequence[str], *, draws: int, seed: int) -> Drawn:
    """Return the figures of answers and their draws; the same cells, the same draws."""
    names = list(answers.columns[3:])
    index = {name: c for c, name in enumerate(names)}
    truth, shares = check_probabilities(
        answers["label"].map(index).to_numpy(), answers[names].to_numpy(float), names
    )
    scorer = _StudyScorer(truth, shares, names, rare)
    resampling = plan_resampling(truth, groups=list(answers["group"]))
    own = {name: float(one[0]) for name, one in scorer.figures(np.ones((1, len(truth)))).items()}
    freedom = resampling.degrees_of_freedom
    drawn = (
        draw_figures(scorer.figures, resampling, draws=draws, seed=seed)
        if draws and freedom
        else {}
    )
    return Drawn(own, drawn, freedom)


class _StudyScorer:
    """`FIGURES` of one set of cells for any weights, as `metrics.Scorer` has all others.

    Args:
        truth: (n,), shares: (n, k), as `check_probabilities` returns them.
        class_names: k names.
        rare: some of them.
    """

    def __init__(
        self, truth: Integers, shares: Array, class_names: Sequence[str], rare: Sequence[str]
    ) -> None:
        self._scorer = Scorer(truth, shares, None)
        self._rare = np.isin(list(class_names), list(rare))
        self._rankings = {
            "abnormal_auroc": _ranking(truth, shares, class_names, abnormal_classes(class_names)),
            "blast_auroc": _ranking(truth, shares, class_names, blast_classes(class_names)),
        }

    def figures(self, weights: Array) -> dict[str, Array]:
        """Return each figure as (draws,), NaN where it cannot be had."""
        confusion = self._scorer.confusion(weights)
        had, scores = confusion.sum(axis=2) > 0, scores_by_class(confusion)
        missing = np.full(len(weights), np.nan)
        return {
            "macro_f1": mean_where(had, scores["f1"]),
            "rare_recall": mean_where(had & self._rare, scores["recall"]),
            **{
                name: missing if one is None else one.weigh(weights).auroc()
                for name, one in self._rankings.items()
            },
        }


def _ranking(
    truth: Integers, shares: Array, class_names: Sequence[str], classes: Sequence[str] | None
) -> Ranking | None:
    """Return the ranking of cells of some classes by the sum of these classes' probabilities."""
    if not classes:
        return None
    chosen: npt.NDArray[np.bool_] = np.isin(list(class_names), list(classes))
    return Ranking(chosen[truth], shares[:, chosen].sum(axis=1))


def _average(parts: Sequence[Drawn]) -> Drawn:
    """Return the mean of several models' figures, draw by draw, on the same cells."""
    return Drawn(
        {name: float(np.mean([one.figures[name] for one in parts])) for name in FIGURES},
        {name: np.mean([one.draws[name] for one in parts], axis=0) for name in parts[0].draws},
        parts[0].degrees_of_freedom,
    )


def _estimates(drawn: Drawn) -> dict[str, Estimate]:
    estimates = {}
    for name, value in drawn.figures.items():
        interval = None
        if drawn.draws:
            freedom = drawn.degrees_of_freedom
            interval = interval_of(value, drawn.draws[name], degrees_of_freedom=freedom)
        estimates[name] = make_estimate(None if np.isnan(value) else value, interval)
    return estimates


def _differences(first: Drawn, second: Drawn) -> dict[str, Difference]:
    return {name: paired_difference(first, second, name) for name in FIGURES}


# --- which cells, which classes ---


def _rare_classes(done: Mapping[str, Mapping[Repeat, Result]]) -> tuple[str, ...]:
    """Return the classes under `RARE_SHARE` of the training cells of all repeats together."""
    facts = {repeat: one.facts for own in done.values() for repeat, one in own.items() if one.facts}
    counts: dict[str, int] = {}
    for one in facts.values():
        for name, cells in one.train_cells.items():
            counts[name] = counts.get(name, 0) + cells
    total = sum(counts.values())
    return tuple(name for name, cells in counts.items() if cells < RARE_SHARE * total)


def _require_same_cells(done: Mapping[str, Mapping[Repeat, Result]]) -> None:
    """Raise RunError unless all runs of a repeat were tested on the same cells."""
    first: dict[Repeat, Result] = {}
    for results in done.values():
        for repeat, result in results.items():
            other = first.setdefault(repeat, result)
            if not _cells_of(result).equals(_cells_of(other)):
                raise RunError(
                    f"{result.cell.name}: was tested on other cells or classes than "
                    f"{other.cell.name}, as the data has changed between them; remove the older "
                    "results, and the runs are made again"
                )


def _cells_of(result: Result) -> pd.DataFrame:
    assert result.answers is not None
    return result.answers[["file", "label", "group"]].assign(classes=",".join(result.class_names))
