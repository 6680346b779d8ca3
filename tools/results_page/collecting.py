"""Results of finished and unfinished studies in one small file: a row for each choice of heads and metric.

Rows whose column `kind` is "score" are those of the summary of a study, with the scores by seed. "area" rows compare
the curves of two criteria over all shares, of which `shares` is the number between none and all; "difference" rows
compare another kind of constants with the average. Both need the predictions, and their `relative` is the difference
divided by the mean score with all heads dynamic.
How far averages of attention are apart stands in the metadata of the file, as tools/measure_reliability.py wrote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from papa_lightning import AttentionConstants
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import write_atomically
from papa_lightning.study import CellResult, Evidence, load_table, results_table
from papa_lightning.study.evaluation import BEST
from papa_lightning.study.intervals import Estimate
from papa_lightning.study.resampling import is_metric
from papa_lightning.study.settings import RECOVERED, read_share, settings_from
from papa_lightning.study.statistics import MARGIN, stored_predictions
from papa_lightning.study.store import StudyFolder
from papa_lightning.text import tell

#: Key of the metadata of the file: settings and conditions of each study, as JSON.
STUDIES = b"papa_lightning.studies"
#: Key of the metadata of the file: how far averages of attention are apart, as JSON.
RELIABILITY = b"papa_lightning.reliability"
#: Columns that identify a row.
NAMES = ["kind", "encoder", "task", "criterion", "constants", "share", "metric", "against"]
_EPOCH = f"epoch/{BEST}"
#: Settings of a study that name the values of a column, from the outermost.
_RUN = {"encoder": "encoders", "task": "tasks", "constants": "constants", "criterion": "criteria"}
#: Decimals that are kept: more than any page shows.
_DECIMALS = 6
#: Columns of a file of tools/measure_reliability.py that the page reads.
_COMPARED = ["encoder", "task", "kind", "with", "distance_mean", "distance_max", "rank_correlation"]
_COMPARED += ["lowest_half_overlap", "rows", "seed"]


def collect(
    folders: Iterable[Path],
    output: Path,
    plans: Sequence[Mapping[str, Any]],
    reliability: Path | None = None,
    earlier: Path | None = None,
) -> pd.DataFrame:
    """Write the results of studies as one parquet file, and return them.

    Args:
        folders: Folders of the studies.
        output: The file.
        plans: Settings of all runs in the folder of one study, where only those of the last run are. The first has all
            encoders and tasks of the others.
        reliability: What tools/measure_reliability.py wrote; None for none.
        earlier: A file that this function wrote, of studies whose folders are elsewhere; None for none. Its rows are
            kept beside those of the folders, and a study of the same name is the same study.

    Raises:
        PapaError: When two studies have different results of one name, when parts of one study were measured under
            different conditions, or when a file is another one.
    """
    compared = "" if reliability is None else read_reliability(reliability)
    tables, studies = list[pd.DataFrame](), dict[str, Any]()
    for folder in folders:
        last = StudyFolder(folder).read()["settings"]
        runs = [settings_from(plan).as_dict() for plan in plans] if _is_part(last, plans[0]) else [last]
        evidence = read_evidence(folder, runs)
        tell(f"{folder.name}: {evidence.table['hash'].nunique()} results")
        tables.append(study_rows(evidence).assign(study=folder.name))
        studies[folder.name] = conditions(folder, runs)
    if earlier is not None:
        before, noted, known = read_collected(earlier)
        tables.append(before)
        names = dict.fromkeys([*before["study"], *studies])
        studies = {name: _joined(name, noted.get(name), studies.get(name)) for name in names}
        compared = compared or known
    found = _without_repeats(pd.concat(tables, ignore_index=True))
    ordered = [_in_order(found[found["study"] == name], about["runs"]) for name, about in studies.items()]
    rows = pd.concat(ordered, ignore_index=True)
    _write(rows, {STUDIES: json.dumps(studies, sort_keys=True), RELIABILITY: compared}, output)
    return rows


def read_collected(path: Path) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """Rows, studies by name, and comparisons of averages as JSON, that :func:`collect` wrote."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise PapaError(f"{str(path)!r} cannot be read: pass what `make_results.py collect` wrote.") from error
    noted = table.schema.metadata or {}
    if STUDIES not in noted:
        raise PapaError(f"{str(path)!r} has no studies in its metadata: pass what `make_results.py collect` wrote.")
    return table.to_pandas(), json.loads(noted[STUDIES]), noted.get(RELIABILITY, b"").decode()


def _joined(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings, conditions and data of one study, of which parts are in a file and in a folder."""
    if before is None or now is None:
        return dict(before or now or {})
    changed = [one for one in {**before["about"], **now["about"]} if before["about"].get(one) != now["about"].get(one)]
    if changed:
        raise PapaError(
            f"parts of the study {name!r} differ in {changed[0]}: {before['about'].get(changed[0])} in the earlier "
            f"file, {now['about'].get(changed[0])} in the folder: rename the folder, and it is a study of its own."
        )
    pairs = {(one["encoder"], one["task"]): one for one in (*before["pairs"], *now["pairs"])}
    runs = [*now["runs"], *(run for run in before["runs"] if run not in now["runs"])]
    return {"runs": runs, "about": now["about"], "pairs": list(pairs.values())}


def _in_order(rows: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as the settings of runs name encoders, tasks, constants and criteria; what they do not name is last."""

    def places(column: pd.Series) -> pd.Series:
        named = (name for run in runs for name in run.get(_RUN[column.name], ()))
        names = dict.fromkeys(("", *named, *sorted(set(column))))
        return column.map({name: place for place, name in enumerate(names)})

    return rows.sort_values("share", kind="stable").sort_values([*_RUN], key=places, kind="stable")


def _write(rows: pd.DataFrame, noted: Mapping[bytes, str], output: Path) -> None:
    """Write rows as a small file; metadata that are empty are left out."""
    content = pyarrow.Table.from_pandas(rows, preserve_index=False)
    kept = {**(content.schema.metadata or {}), **{name: text for name, text in noted.items() if text}}
    buffer = BytesIO()
    texts = [name for name in rows.columns if rows[name].dtype.kind != "f"]
    small = {"compression": "zstd", "compression_level": 19, "use_dictionary": texts, "write_statistics": False}
    pyarrow.parquet.write_table(content.replace_schema_metadata(kept), buffer, **small)
    write_atomically(output, buffer.getvalue())


def read_reliability(path: Path) -> str:
    """The table that tools/measure_reliability.py wrote, as JSON; PapaError for another file."""
    table = pd.read_csv(path, dtype={"with": str})
    if missing := [name for name in _COMPARED if name not in table]:
        raise PapaError(f"{str(path)!r} has no column {missing[0]!r}: pass what tools/measure_reliability.py wrote.")
    compared = table[_COMPARED].fillna({"with": ""})
    return str(compared.to_json(orient="split", index=False, double_precision=_DECIMALS))


def read_evidence(folder: Path, runs: Sequence[Mapping[str, Any]]) -> Evidence:
    """All results in the folder of a study, also those of earlier runs with other settings."""
    first = next(name for run in runs for name in run["criteria"])
    cells = _latest([_plain(CellResult.load(path), first) for path in folder.glob("cells/*.json")], folder)
    table = _in_order(results_table(sorted(cells, key=lambda cell: (cell.criterion, cell.seed))), runs)
    found = partial(stored_predictions, StudyFolder(folder))
    margin = read_share("margin", runs[0].get("margin", MARGIN))
    return Evidence(table.reset_index(drop=True), found, margin)


def _latest(cells: Sequence[CellResult], folder: Path) -> list[CellResult]:
    """The results without those of other settings of which the last run has one of the same name."""
    last = set(load_table(folder)["hash"])
    names = [(one.encoder, one.task, one.criterion, one.share, one.constants, one.seed) for one in cells]
    measured = {name for name, one in zip(names, cells, strict=True) if one.hash in last}
    return [one for name, one in zip(names, cells, strict=True) if one.hash in last or name not in measured]


def _is_part(settings: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a study has encoders and tasks of a plan alone."""
    classes = [{name: str(task["class_path"]) for name, task in one["tasks"].items()} for one in (settings, plan)]
    same = all(path.endswith(classes[1].get(name, " ")) for name, path in classes[0].items())
    return same and settings["encoders"].keys() <= plan["encoders"].keys()


def _plain(cell: CellResult, criterion: str) -> CellResult:
    """A result under one name where its share leaves no choice: no head, or all."""
    if 0 < cell.share < 1:
        return cell
    return replace(cell, criterion=criterion, constants=cell.constants if cell.share else "average")


def study_rows(evidence: Evidence) -> pd.DataFrame:
    """All rows of one study."""
    table = evidence.table
    evidence.table = table[[name == _EPOCH or is_metric(name) for name in table["metric"]]]
    summary = evidence.summary.assign(kind="score", against="", shares=math.nan)
    found = pd.concat([summary, pd.DataFrame(_derived(evidence, summary))], ignore_index=True)
    edge = found["share"].isin((0.0, 1.0))
    found["criterion"] = found["criterion"].mask(edge, "")  # it does not matter with no head or with all
    # Where it has no head to be in, a kind of constants has no meaning.
    found["constants"] = found["constants"].mask(found["share"] == 0.0, "")
    found = found.drop_duplicates(NAMES).merge(_by_seed(evidence.table), how="left", on=NAMES[1:-1])
    found["scores"] = [one if isinstance(one, list) else [] for one in found["scores"]]
    floats = found.select_dtypes("float").columns
    found[floats] = found[floats].round(_DECIMALS)
    return found


def _by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """The scores by seed, the mean over random orders, and the seconds of the probes, of each choice and metric."""
    edge = table["share"].isin((0.0, 1.0))
    own = table.assign(
        criterion=table["criterion"].mask(edge, ""), constants=table["constants"].mask(table["share"] == 0.0, "")
    )
    own = own.drop_duplicates(["hash", *NAMES[1:-1]])
    return pd.DataFrame(
        [
            dict(zip(NAMES[1:-1], key, strict=True))
            | {
                "scores": [round(score, _DECIMALS) for score in rows.groupby("seed")["score"].mean()],
                "seconds": float(rows["seconds"].sum()),
            }
            for key, rows in own.groupby(NAMES[1:-1], sort=False)
        ]
    )


def _derived(evidence: Evidence, summary: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Areas between criteria, and differences of kinds of constants to the average, of the tasks' own scores."""
    own = summary[summary["is_score"].astype(bool)]
    for (encoder, task), rows in own.groupby(["encoder", "task"], sort=False):
        base = rows.loc[rows["share"] == 0.0, "mean"]
        size = (abs(float(base.iloc[0])) if len(base) else 0.0) or math.nan  # a change relative to 0 is not defined
        about = {"encoder": encoder, "task": task, "metric": rows["metric"].iloc[0], "is_score": True}
        about |= {"beats_chance": bool(rows.loc[rows["share"] == 0.0, "beats_chance"].any())}
        inner = rows[(rows["constants"] == "average") & rows["share"].between(0, 1, inclusive="neither")]
        whole = inner.groupby("criterion", sort=False)["share"].nunique() == inner["share"].nunique()
        criteria = list(whole.index[whole])
        for first in criteria:
            for second in dict.fromkeys(("random", *criteria[:1])):
                if second in criteria and first != second:
                    found = evidence.area(encoder, task, first, second)
                    names = {"kind": "area", "criterion": first, "constants": "average", "against": second}
                    orders = inner.loc[inner["criterion"].isin((first, second)), "rankings"].max()
                    known = {"share": math.nan, "shares": inner["share"].nunique(), "rankings": orders}
                    yield about | names | known | _columns(found, size)
        for _, row in rows[(rows["share"] > 0) & ~rows["constants"].isin(("average", RECOVERED))].iterrows():
            place = str(row["criterion"]), float(row["share"]), str(row["constants"])
            average = (*place[:2], "average")
            if not len(rows[(rows["constants"] == "average") & (rows["share"] == place[1])]):
                continue
            found = evidence.compare(encoder, task, place, average)
            names = {"kind": "difference", "criterion": place[0], "constants": place[2], "against": "average"}
            yield about | names | {"share": place[1]} | _columns(found, size)


def _columns(found: Estimate, size: float) -> dict[str, Any]:
    """The columns of an estimate; relative to the size of the score with all heads dynamic."""
    values = {"": found.value, "_low": found.low, "_high": found.high}
    relative = {f"relative{end}": value / size for end, value in values.items()}
    difference = {f"difference{end}": value for end, value in values.items()}
    return difference | relative | {"n": found.seeds, "examples": found.examples, "basis": found.basis}


def _without_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without those that another study has too, which must have the same scores.

    The row over more random orders stays, and the area over more shares; the first of two that are alike in both.
    """
    rows = rows.sort_values(["rankings", "shares"], ascending=False)
    again = rows[rows.duplicated(NAMES)]
    first = rows.drop_duplicates(NAMES)
    both = again.merge(first, on=NAMES, suffixes=("", "_first"))
    for row in both.itertuples():
        same = row.kind == "score" and row.rankings == row.rankings_first
        if same and not np.array_equal(row.scores, row.scores_first):
            name = ", ".join(f"{one} {getattr(row, one)!r}" for one in NAMES[1:-1])
            raise PapaError(
                f"study {row.study!r} has other scores of {name} than the earlier file: collect without that file."
                if row.study_first == row.study
                else f"studies {row.study_first!r} and {row.study!r} have different scores of {name}: give their "
                "encoders or tasks different names."
            )
    return first


def conditions(folder: Path, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of the runs of a study, its conditions, and what its constants say of encoders and data."""
    pairs = []
    for path in sorted(folder.glob("constants/*--average--*.safetensors")):
        encoder, task, _, _ = path.stem.split("--")
        noted = AttentionConstants.load(path).metadata
        names = ("data", "max_length", "layout", "preset", "sequences", "model")
        pairs.append({"encoder": encoder, "task": task} | {name: noted[name] for name in names})
    about = StudyFolder(folder).read()["about"]
    about.pop("pairs", None)  # of the last run alone
    return {name: _without_places(one) for name, one in {"runs": [*runs], "about": about, "pairs": pairs}.items()}


def _without_places(value: Any) -> Any:
    """Plain values in which a path of this machine is replaced by its last part."""
    if isinstance(value, Mapping):
        return {name: _without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value
