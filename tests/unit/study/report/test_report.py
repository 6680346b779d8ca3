"""The report of a study: which sections it has, what they say, and that the page needs nothing else."""

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from unit.study.synthetic_study import Shape as StudyShape
from unit.study.synthetic_study import make_cells, make_ranking, write_study

from papa_lightning.calibration import AttentionConstants
from papa_lightning.errors import ConstantsFileError, PapaError, RankingFileError, ResultFileError, StudyError
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.report.answer import answer_section, apply_section, proposals
from papa_lightning.study.report.applied import Applied, save_applied
from papa_lightning.study.report.data import read_study
from papa_lightning.study.report.heads import head_scores
from papa_lightning.study.report.page import write_report
from papa_lightning.study.report.scores import encoder_section
from papa_lightning.study.report.sections import SECTIONS, Facts, Figures, Text, render
from papa_lightning.study.results import results_table, save_table

EVERY = ["answer", "apply", "curves", "controls", "heads", "atlas", "levels", "tables", "measured", "cite"]
ALWAYS = ["answer", "curves", "tables", "measured", "cite"]
EVIL = "<script>alert('1')</script> & \"q\" $x$ ../.."


class Page(HTMLParser):
    """Collects elements with their attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    def ids(self, tag):
        return [attributes.get("id") for name, attributes in self.elements if name == tag]

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A study with everything, and its page."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, controls=("zero", "sequences:1", "sequences:16"), shares=(0.0, 0.5, 1.0))
    return folder, Page(write_report(folder).read_text("utf-8"))


def report(folder, **parts):
    write_study(folder, **({"shares": (0.0, 0.5, 1.0), "maps": False, "weights": False} | parts))
    return Page(write_report(str(folder)).read_text("utf-8"))


def data_of(folder, **shape):
    return read_study(write_study(folder, maps=False, weights=False, **shape))


def test_every_section_is_there(full):
    folder, page = full
    assert page.ids("section") == EVERY
    assert page.open == []
    links = [attributes["href"] for name, attributes in page.elements if name == "a"]
    assert links[: len(EVERY)] == [f"#{name}" for name in page.ids("section")]
    for link in links[len(EVERY) :]:
        assert link in [f"#{name}" for name in EVERY] or (folder / link).is_file()
    expected = ["controls", "coverage", "levels", "score", "sequences"]
    names = {f"{name}-mini-sst2" for name in expected}
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{n}.{end}" for n in names for end in ("png", "svg")
    }
    assert page.count("figure") == page.count("figcaption") == page.count("svg") == len(names)


def test_the_averages_say_what_heads_use_of_them(full, tmp_path):
    assert "lean on a profile, the more the fewer their sequences." in full[1].text
    folder = shutil.copytree(full[0], tmp_path / "copy")
    (path,) = (folder / "constants").iterdir()
    short = AttentionConstants.load(path)
    seen = (torch.arange(16) < 12)[:, None] & (torch.arange(16) < 12)
    AttentionConstants(short.values * seen, short.pair_counts * seen).save(path)
    page = Page(write_report(folder).read_text("utf-8"))
    assert "their sequences; filled 112 of 256 position pairs, which calibration never saw." in page.text


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, ALWAYS),
        ({"weights": True}, [*ALWAYS[:2], "levels", *ALWAYS[2:]]),
        ({"controls": ("zero",)}, [*ALWAYS[:2], "controls", *ALWAYS[2:]]),
        ({"encoders": ("a", "b"), "about": False, "shares": (0.0, 1.0)}, None),
    ],
)
def test_sections_without_data_are_left_out(tmp_path, parts, expected):
    page = report(tmp_path, **parts)
    expected = expected or [*ALWAYS[:2], "encoders", *ALWAYS[2:]]
    assert page.ids("section") == expected


def test_the_page_needs_nothing_else(full):
    folder, page = full
    text = (folder / "report.html").read_text("utf-8")
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "object", "embed")
        for key in ("src", "xlink:href", "srcset", "data", "poster"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    assert page.count("script") == 1
    assert not re.findall(r"fetch|XMLHttp|import\(|innerHTML", text)
    assert "@import" not in text
    assert not [place for place in re.findall(r"url\(([^)]*)\)", text) if not place.startswith("#")]
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_drawings_do_not_share_ids_and_follow_the_colours_of_the_page(full):
    folder, page = full
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = {attributes["xlink:href"] for _, attributes in page.elements if "xlink:href" in attributes}
    assert {place[1:] for place in used if place.startswith("#")} <= set(ids)
    text = (folder / "report.html").read_text("utf-8")
    drawn = text[text.index("<main>") :]
    assert "currentColor" in drawn
    assert set(re.findall(r"#(?:1b1b1d|fefefd)", drawn)) == set()
    # A presentation attribute takes no variable, and falls back to black.
    assert not re.findall(r'(?:fill|stroke)="var', drawn)


def test_captions_say_how_it_was_measured(full):
    _, page = full
    for place in re.findall(r"mini, sst2: accuracy[^<]*?T = 16", page.text):
        assert "Means over 3 seeds" in place
        assert "error bars are 95 % intervals over seeds" in place
    assert page.text.count("2000 training examples, 500 validation examples, T = 16") == 3
    assert "learning rate 2e-05" in page.text
    assert "cpu (x86_64)" in page.text
    assert "Hassid" in page.text
    assert "arXiv 2211.03495" in page.text
    assert "papa_lightning" in page.text


def test_names_may_hold_anything(tmp_path):
    page = report(tmp_path, encoders=(EVIL,), tasks=("<img src=x onerror=alert(1)>",), maps=True, weights=True)
    assert page.count("script") == 1  # that of the page
    assert not [held for name, held in page.elements if name == "img" and "onerror" in held]
    assert EVIL in page.text
    assert page.open == []
    assert all(re.fullmatch(r"[a-z0-9.-]+\.(png|svg)", path.name) for path in (tmp_path / "figures").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".html") == ["report.html"]


def test_values_of_about_are_escaped():
    page = render("<h7>", "<h8>", [("a", "<h9>", [Facts({"<b>": ["<i>", {"k_1": "<u>"}]})])])
    assert "<dl><dt>&lt;b&gt;</dt><dd>&lt;i&gt;, k 1 &lt;u&gt;</dd></dl>" in page
    assert not re.search("<h[789]>", page)


@pytest.fixture
def toy_section():
    """A section of another package, behind the curves."""

    @SECTIONS.section("toy", "Seconds & <costs>", place=25, needs=["seconds", "rankings"])
    def toy(data, figures):
        return [Text(f"{data.table['seconds'].sum():g} seconds")]

    yield
    del SECTIONS["toy"]


def test_a_section_registers_once(toy_section, tmp_path):
    page = report(tmp_path / "with", maps=True)
    assert page.ids("section")[:4] == ["answer", "apply", "curves", "toy"]
    assert re.search(r"Seconds & <costs> \d+ seconds", page.text)
    assert "toy" not in report(tmp_path / "without", maps=False).ids("section")


def test_a_need_that_is_no_data_is_refused(tmp_path):
    with pytest.raises(PapaError, match="needs of a section has 'gradients', but must be one of constants, rankings"):
        data_of(tmp_path).has("gradients")


def test_the_same_bytes_each_time(full, tmp_path):
    folder, _ = full
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("report.html", "figures"))
    assert write_report(other) == other / "report.html"
    written = {path.relative_to(other): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    assert written == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_that_look_alike_as_files_do_not_overwrite_each_other(tmp_path):
    page = report(tmp_path, tasks=("a b", "a/b"), shares=(0.0, 1.0), seeds=(0,))
    assert (tmp_path / "figures" / "score-mini-a-b.svg").read_bytes() != (
        tmp_path / "figures" / "score-mini-a-b-2.svg"
    ).read_bytes()
    assert page.count("figure") * 2 == len(list((tmp_path / "figures").iterdir()))


def answer_page(folder):
    """The page with the answer alone: the figures take longer."""
    return Page(render("", "", [("answer", "", answer_section(read_study(folder), Figures(folder)))]))


def answer_of(folder, scores, metric="accuracy", shares=(0.0, 0.5, 1.0), criteria=("gate",), **about):
    """The answer of a study in which the seeds have these scores at these shares."""
    cells = make_cells(StudyShape(criteria=criteria, shares=shares, seeds=tuple(range(len(scores[0]))), metric=metric))
    cells = [
        type(cell)(**{**vars(cell), "scores": {metric: scores[shares.index(cell.share)][cell.seed]}}) for cell in cells
    ]
    write_study(folder, maps=True, weights=False, criteria=criteria)
    save_table(results_table(cells), folder)
    content = json.loads((folder / "study.json").read_text())
    content["about"] = {"pairs": [{"encoder": "mini", "task": "sst2", **about}]}
    (folder / "study.json").write_text(json.dumps(content))
    page = Page(write_report(folder).read_text("utf-8"))
    text = (
        " ".join(" ".join(page.texts).split())
        .replace("\N{MINUS SIGN}", "-")
        .replace("\N{EN DASH}", "-")
        .replace("\N{NO-BREAK SPACE}", " ")
    )
    return text[text.index("How many?") :]


def test_the_answer_names_the_largest_share_within_the_margin_and_the_next(tmp_path):
    text = answer_of(tmp_path, [[0.80, 0.81, 0.80], [0.80, 0.81, 0.801], [0.60, 0.61, 0.60]])
    assert "4 of 8 heads (50 %) They cost at most 3 % of accuracy" in text
    assert "Next measured: 8 heads, -24.9 % (-25.3 to -24.5): costs more than 3 %." in text
    assert re.search(r"Which\? The 4 with the lowest gate scores Layer \d: [\d, -]+", text)
    assert "accuracy 0.803 → 0.804 (3 seeds)" in text
    assert "No random order of the heads was measured beside it." in text


def test_a_criterion_with_a_detail_has_its_ranking(tmp_path):
    scores = [[0.80, 0.81, 0.80], [0.80, 0.81, 0.801], [0.60, 0.61, 0.60]]
    text = answer_of(tmp_path, scores, criteria=("greedy:8",))
    assert re.search(r"Which\? The 4 with the lowest greedy:8 scores Layer \d: [\d, -]+", text)
    assert "Use it" in text


def test_all_heads_need_no_ranking(tmp_path):
    scores = [[0.80, 0.81, 0.80], [0.80, 0.81, 0.801]]
    answer_of(tmp_path, scores, shares=(0.0, 1.0))
    content = json.loads((tmp_path / "study.json").read_text())
    content["files"]["rankings"] = []
    (tmp_path / "study.json").write_text(json.dumps(content))
    text = " ".join(answer_page(tmp_path).texts)
    assert "All of them" in text
    assert "missing" not in text


def test_lines_to_copy_quote_paths(tmp_path):
    write_study(tmp_path, shares=(0.0, 0.5, 1.0), weights=False, encoders=("mini",))
    content = json.loads((tmp_path / "study.json").read_text())
    for given, wanted in (("~/my models/mini", os.path.expanduser("~/my models/mini")), ("it's/mini", "it's/mini")):
        content["settings"] = {"encoders": {"mini": given}}
        (tmp_path / "study.json").write_text(json.dumps(content))
        blocks = [one.text for one in apply_section(read_study(tmp_path), None) if getattr(one, "style", "") == "code"]
        assert f"from_pretrained({wanted!r})" in blocks[0]
        assert shlex.split(blocks[1])[3] == wanted


def test_a_change_that_is_not_settled_is_no_answer(tmp_path):
    text = answer_of(tmp_path, [[0.80, 0.80, 0.80], [0.79, 0.74, 0.81], [0.60, 0.61, 0.60]])
    assert "How many? Not settled Whether 4 of 8 heads (50 %) cost at most 3 % of accuracy is not settled" in text


def test_a_share_that_costs_more_is_said(tmp_path):
    text = answer_of(tmp_path, [[0.80, 0.80, 0.80], [0.70, 0.70, 0.701], [0.60, 0.61, 0.60]])
    assert "How many? None that was measured 4 of 8 heads (50 %) cost more than 3 % of accuracy." in text


def test_a_baseline_at_chance_answers_nothing(tmp_path):
    text = answer_of(tmp_path, [[0.52, 0.51, 0.53], [0.52, 0.51, 0.53], [0.5, 0.5, 0.51]], chance=0.53)
    assert "No answer: no better than chance With all heads dynamic accuracy is 0.520; chance is 0.530" in text
    assert " %" not in text[text.index("At what cost?") : text.index("accuracy 0.520")]


def test_random_orders_stand_beside_the_proposal(tmp_path):
    scores = [[0.80, 0.81, 0.80], [0.80, 0.81, 0.801], [0.60, 0.61, 0.60]]
    text = answer_of(tmp_path, scores, criteria=("gate", "random:0", "random:1"))
    assert re.search(r"No better than random: .* against 0\.804 \(2 random orders, spread [\d.]+\)", text)


def test_an_unfinished_study_is_reported(tmp_path):
    nan = float("nan")
    for name, scores in {"a": [[nan, nan], [0.7, 0.7]], "b": [[0.8, 0.8], [nan, nan]]}.items():
        text = answer_of(tmp_path / name, scores, shares=(0.0, 1.0))
        assert "not settled" in text.lower() or "not measured" in text


def test_many_pairs_are_a_table(tmp_path):
    page = answer_page(write_study(tmp_path, tasks=("a", "b", "c")))
    assert page.count("table") == 1
    assert page.count("article") == 0
    assert "against random orders" in page.text


def test_measured_speed_is_shown(tmp_path):
    write_study(tmp_path)
    (one,) = proposals(read_study(tmp_path))
    parameters = {"whole": 10_000_000, "left_out": 2_000_000, "added": 500_000, "saved": 8_500_000}
    speed = Applied("mini", "sst2", one.heads, one.ranking_name, "16x16", 0.05, 0.06, 1.2, 1.1, 1.3, parameters)
    save_applied(tmp_path, [speed])
    text = answer_page(tmp_path).text
    assert "10.0 M → 8.5 M parameters" in text
    assert "1.20 times the stock encoder (quartiles 1.10 to 1.30), 60 → 50 ms for 16 x 16 tokens" in text
    save_applied(tmp_path, [replace(speed, heads=one.heads + 1)])  # of other heads
    assert "1.20 times" not in answer_page(tmp_path).text


def test_the_map_marks_the_proposed_heads(full):
    folder, page = full
    (one,) = proposals(read_study(folder))
    cells = [held for name, held in page.elements if name == "td" and "--shade" in (held.get("style") or "")]
    assert len(cells) == 8
    assert [held["title"].partition(":")[0] for held in cells if held.get("class") == "marked"] == [
        f"head {layer}.{head}" for layer, head in sorted(one.chosen())
    ]


def test_points_of_a_curve_say_their_values(full):
    folder, _ = full
    text = (folder / "report.html").read_text("utf-8")
    assert re.search(r"<title>gate, 50 %: 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)</title>", text)
    assert "tip:" not in text


def test_encoders_are_correlated_from_three_on(tmp_path):
    def shown(**shape):
        blocks = encoder_section(data_of(tmp_path / str(shape), **shape), Figures(tmp_path / "f"))
        return render("", "", [("encoders", "", blocks)]) if blocks else ""

    two = shown(encoders=("a", "b"))
    assert "Too few results" in two
    assert "2 of the 3 pairs" in two
    points = shown(tasks=("u", "v", "w"))
    assert "takes at least 3 encoders" in points
    assert "<svg" in points
    four = shown(encoders=tuple("abcd"), tasks=("u", "v"))
    assert re.search(r"is 1\.00 \(95 % interval 1\.00 to 1\.00, bootstrap over 4 encoders\)", four)
    assert "From 4 encoders nothing can be concluded" in four
    assert "those that score higher lose more" in shown(encoders=tuple("abcde"), tasks=("u",))
    assert shown() == ""


def test_low_baselines_are_left_out_by_name(tmp_path):
    page = report(tmp_path, tasks=("good", "poor"), baseline=0.203, shares=(0.0, 0.5, 1.0))
    assert "mini on poor" in page.text
    assert "mini on good" not in page.text


def test_missing_files_are_named_and_their_sections_left_out(tmp_path):
    write_study(tmp_path, shares=(0.0, 1.0))
    shutil.rmtree(tmp_path / "constants")
    shutil.rmtree(tmp_path / "cells")
    page = Page(write_report(tmp_path).read_text("utf-8"))
    assert "constants/0.safetensors" in page.text
    assert {"heads"} == {"heads", "atlas", "levels"} & set(page.ids("section"))


def test_random_rankings_are_one_line_with_their_spread(tmp_path):
    page = report(tmp_path, criteria=("gate", "random:0", "random:1"))
    assert "random is the mean of 2 random orders" in page.text
    assert "spread of rankings" in page.text


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("study.json", b"{", StudyError),
        ("study.json", b"[]", StudyError),
        ("study.json", b'{"format": "papa_lightning.study/1"}', StudyError),
        ("study.json", b'{"format": "papa_lightning.study/1", "files": {"constants": [{"encoder": 1}]}}', StudyError),
        ("study.json", b'{"format": "papa_lightning.study/1", "files": {"constants": 3}}', StudyError),
        ("study.json", None, StudyError),
        ("results.parquet", b"PAR1", ResultFileError),
        ("results.parquet", None, ResultFileError),
        ("constants/0.safetensors", b"x" * 99, ConstantsFileError),
        ("rankings/0-gate.json", b"{}", RankingFileError),
        ("cells", b"{}", ResultFileError),
    ],
)
def test_damaged_studies_are_refused(tmp_path, name, content, error):
    write_study(tmp_path, shares=(0.0, 1.0), seeds=(0,))
    path = next((tmp_path / "cells").glob("*.json")) if name == "cells" else tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(error, match=re.escape(path.stem)) as refused:
        write_report(tmp_path)
    assert isinstance(refused.value, PapaError)
    assert not (tmp_path / "report.html").exists()


def test_folders_without_a_finished_result_are_refused(tmp_path):
    with pytest.raises(StudyError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")
    write_study(tmp_path, maps=False)
    save_table(results_table([]), tmp_path)
    with pytest.raises(StudyError, match="no finished result yet"):
        write_report(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_a_ranking_of_few_heads_is_shown(tmp_path):
    write_study(tmp_path, shares=(0.0, 1.0), seeds=(0,))
    make_ranking(1, 1).save(tmp_path / "rankings" / "0-gate.json")
    assert "heads" in Page(write_report(tmp_path).read_text("utf-8")).ids("section")


def test_a_map_larger_than_of_any_encoder_is_refused():
    with pytest.raises(PapaError, match=r"has heads up to \(1000000000000, 0\)"):
        head_scores(HeadRanking([(10**12, 0)]))


def test_the_shipped_source_has_no_address():
    sources = Path(__import__("papa_lightning.study.report.page", fromlist=["x"]).__file__).parent.glob("*.*")
    assert not any(re.search(r"https?://", source.read_text()) for source in sources)
