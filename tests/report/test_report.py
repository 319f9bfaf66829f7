"""Reports as files: what they say is what the run did, whatever layers are called."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from zoo import ZOO, randomise

import keras_filterprune as kfp
import tflite_bench
from keras_filterprune import errors
from keras_filterprune.cost import Tiles
from keras_filterprune.latency import PaddedMacs, SizedOperators
from keras_filterprune.latency.budget import LatencyCost
from keras_filterprune.report.document import Bar, Curves, Number, Section, Table
from keras_filterprune.report.figures import draw_curves
from keras_filterprune.report.html import render

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "a<b>&amp;|`c`*d*\n[x](http://e.org)<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would read: tables as rows of texts, and every tag closed in its order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.scripts, self.text = [], [], 0, []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "data", "xlink:href", "action")]
        self.scripts += tag == "script"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def rows(self, *headings: str) -> list[dict[str, str]]:
        """Rows of the table whose first headings are these; of columns with one name, the first."""
        (table,) = [table for table in self.tables if tuple(table[0][: len(headings)]) == headings]
        return [dict(list(zip(table[0], row, strict=True))[::-1]) for row in table[1:]]


def number(text: str) -> float:
    return float(text.replace(",", "").removesuffix(" %"))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Tables of a Markdown text, split at bars that are not escaped."""
    tables, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
        inside = True
        tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return tables


@pytest.fixture(scope="module")
def run():
    """A model with a sum, a projection and a pinned end, pruned to steps of 8, one group excluded."""
    model = ZOO["residual_projection"]()
    excluded = next(group.producers[0] for group in kfp.analyze(model).groups if len(group.producers) > 1)
    small, report = kfp.prune_model(
        model, "l2", 0.8, channel_multiple=4, exclude=excluded, return_report=True, progress=False
    )
    return model, small, report


@pytest.fixture(scope="module")
def extras(run, tmp_path_factory):
    """Everything that can stand in a report, really measured."""
    model, small, _ = run
    folder = tmp_path_factory.mktemp("files")
    x = np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype("float32")
    exports = [kfp.export_tflite(m, folder / f"{n}.tflite") for n, m in (("dense", model), ("pruned", small))]
    return {
        "accuracy": {"dense": 0.9, "pruned": 0.8125},
        "sensitivity": kfp.measure_sensitivity(model, x, metric="error", keep=(0.75, 0.5), progress=False),
        "benchmark": tflite_bench.benchmark([e.path for e in exports], runs=10, rounds=2),
        "exports": exports,
        "latency": kfp.measure_latency(model, progress=False),
    }


def saved(report, folder: Path, name: str = "report.html", **extras) -> str:
    report.save(folder / name, **extras)
    assert [path.name for path in folder.iterdir()] == [name]
    return (folder / name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ contents


def test_the_page_says_what_the_run_did(run, tmp_path):
    model, small, report = run
    page = Page(saved(report, tmp_path))
    whole = {row["whole model"]: row for row in page.rows("whole model")}
    for name, key in (("multiply-accumulates (MACs)", "macs"), ("parameters", "params")):
        assert [number(whole[name][side]) for side in ("before", "after")] == report.plan.cost[key]
    assert number(whole["bytes of the weights, float32"]["after"]) == sum(w.nbytes for w in small.get_weights())
    assert number(whole["bytes of the weights, int8 (estimate: one per parameter)"]["before"]) == model.count_params()
    layers = {row["layer"]: row for row in page.rows("layer", "channels")}
    assert [number(layers[row.layer]["kept"]) for row in report.layers] == [row.kept for row in report.layers]
    for row in report.layers:
        assert number(layers[row.layer]["removed"]) == row.channels - row.kept
        assert number(layers[row.layer]["MACs, before"]) == row.macs
        assert number(layers[row.layer]["float32 bytes, before"]) == 4 * row.params
    groups = {row["group"]: row for row in page.rows("group", "kept of all units")}
    assert {name: number(row["kept"]) for name, row in groups.items()} == {
        group["name"]: len(group["kept"]) for group in report.plan.groups
    }
    assert f"verified to {report.verification:.1e} relative" in " ".join(page.text)
    for part in (report.plan.model["topology"], report.plan.model["weights"], report.plan.budget, *report.notes):
        assert part in " ".join(page.text)


def test_the_headline_compares_the_first_with_the_last(run, extras, tmp_path):
    _, _, report = run
    page = Page(saved(report, tmp_path, **extras))
    (row,) = page.rows("accuracy", "multiply-accumulates")
    assert page.tables[0][0][:2] == ["accuracy", "multiply-accumulates"]
    assert row["accuracy"] == "90.0 → 81.2 %"
    size, macs = [file.bytes for file in extras["exports"]], report.plan.cost["macs"]
    ms = [model.p50_ms for model in extras["benchmark"].models]
    text = " ".join(page.text)
    for (before, after), what in ((macs, "multiply-accumulates"), (size, "bytes"), (ms, "milliseconds")):
        assert f"{100 * after / before:.0f} % of the {what}" in text
    assert row["milliseconds"] == f"{ms[0]:.3g} → {ms[1]:.3g}"


def test_results_are_printed_in_words(run, tmp_path):
    model, _, report = run
    made = kfp.export_tflite(model, tmp_path / "model.tflite")
    for shown in (report, report.plan, made, kfp.analyze(model)):
        in_notebook = []
        shown._repr_pretty_(SimpleNamespace(text=in_notebook.append), False)
        assert [str(shown)] == in_notebook == [shown.summary()]
        assert max(map(len, str(shown).splitlines())) < 300
    plan, counts = report.plan, report.plan.cost["params"]
    assert f"params {counts[0]:,} -> {counts[1]:,} ({100 * counts[1] / counts[0]:.1f} %)" in str(plan)
    cut = sum(len(group["kept"]) < group["size"] for group in plan.groups)
    assert f"filters go from {cut} of {len(plan.groups)} groups" in str(plan)


def test_layers_whose_filters_go_together_have_the_colour_of_their_group(run, tmp_path):
    model, _, report = run
    text = saved(report, tmp_path)
    marks = {}
    for turn, name in re.findall(r'style="--turn:(\d+)"></span>([^<]*)</td>', text):
        marks.setdefault(name, set()).add(turn)
    graph = kfp.analyze(model)
    assert any(len(group.producers) > 1 for group in graph.groups)
    for group in graph.groups:
        assert len(set.union(*(marks[name] for name in group.producers))) == 1
    assert len({min(marks[group.producers[0]]) for group in graph.groups}) == len(graph.groups)
    assert set(marks) == {name for group in graph.groups for name in (group.name, *group.producers)}


@pytest.mark.parametrize(
    ("accuracy", "ending"),
    [
        (None, "% of the bytes of the original."),
        ({}, "% of the bytes of the original."),
        ({"dense": 0.9}, "of the original, at the same accuracy."),
        ({"dense": 0.9, "pruned": 0.8, "tuned": 0.88}, "of the original, at 2.0 points less accuracy."),
        ({"dense": 0.5, "pruned": 0.75}, "of the original, at 25.0 points more accuracy."),
        ({"dense": 0.9, "pruned": 0.9004}, "of the original, at the same accuracy."),
    ],
)
def test_the_headline_says_at_what_accuracy(run, tmp_path, accuracy, ending):
    _, _, report = run
    text = saved(report, tmp_path, "report.md", accuracy=accuracy)
    sentence = text.split("## In short")[1].strip().splitlines()[0]
    assert sentence.endswith(ending)
    params = report.plan.cost["params"]
    assert f"and {100 * params[1] / params[0]:.0f} % of the bytes" in sentence


def test_bars_of_accuracy_show_differences(run, tmp_path):
    text = saved(run[2], tmp_path, accuracy={"dense": 0.98, "pruned": 0.96, "tuned": 0.99})
    (section,) = re.findall(r"<h2>Accuracy</h2>(.*?)</section>", text, re.DOTALL)
    widths = [float(width) for width in re.findall(r'class="kept" width="([\d.]+)"', section)]
    assert widths == pytest.approx([50, 100, 25], abs=0.1)


def test_every_pin_and_its_reason_is_shown(run, tmp_path):
    model, _, report = run
    page = Page(saved(report, tmp_path))
    shown = [tuple(row) for table in page.tables if table[0][2:] == ["because it"] for row in table[1:]]
    assert shown == [(pin["layer"], str(pin["channels"]), pin["reason"]) for pin in report.pinned]
    excluded = next(pin for pin in report.pinned if "excluded" in pin["reason"])
    whole = {row["group"]: row["whole because it"] for row in page.rows("group", "kept of all units")}
    assert whole[excluded["layer"]] == excluded["reason"]
    reasons = {row["layer"]: row["pinned: it"] for row in page.rows("layer", "channels") if row["pinned: it"]}
    producers = kfp.analyze(model).by_name[excluded["layer"]].producers
    assert len(producers) > 1
    own = {pin["layer"]: pin["reason"] for pin in report.pinned if pin is not excluded}
    assert reasons == dict.fromkeys(producers, excluded["reason"]) | own


def test_free_filters_are_those_behind_the_first_of_the_last_step(run, tmp_path):
    _, _, report = run
    layers = [row for row in Page(saved(report, tmp_path)).rows("layer", "channels") if row.get("free")]
    assert layers
    for row in layers:
        kept = int(number(row["kept"]))
        assert int(row["free"]) == (kept - 1) % 4
        assert Tiles(4).ceil(kept - int(row["free"])) == kept + int(row["room"])
        assert Tiles(4).ceil(kept - int(row["free"]) - 1) < kept


def test_without_steps_there_are_no_free_filters(tmp_path):
    _, report = kfp.prune_model(ZOO["plain_chain"](), return_report=True, progress=False)
    page = Page(saved(report, tmp_path))
    assert all("free" not in row for row in page.rows("layer", "channels"))


def test_extras_are_shown_with_their_numbers(run, extras, tmp_path):
    page = Page(saved(run[2], tmp_path, **extras))
    accuracy = page.rows("model")
    assert [(r["model"], r["accuracy"], r["points from dense"]) for r in accuracy] == [
        ("dense", "90.00 %", "+0.00"),
        ("pruned", "81.25 %", "-8.75"),
    ]
    named = {table[0][1]: table[1:] for table in page.tables if table[0][0] == "file"}
    assert [row[2] for row in named["p50, of the first"]] == [f"{m.p50_ms:.4f}" for m in extras["benchmark"].models]
    assert [number(row[3]) for row in named["bytes, of the first"]] == [e.bytes for e in extras["exports"]]
    cuts = {(cut.group, cut.kept): cut for cut in extras["sensitivity"].cuts}
    (table,) = [table for table in page.tables if table[0][:2] == ["group", "units"]]
    assert table[0][2:] == ["75 % kept", "50 % kept"]
    assert [row[0] for row in table[1:]] == extras["sensitivity"].order()[::-1]
    shown = {cell for row in table[1:] for cell in row[2:]}
    assert shown == {f"{c.drop:.3g} ({c.low:.3g} to {c.high:.3g})" for c in cuts.values()}
    assert all(f"Not cut: {group}, which" in " ".join(page.text) for group in extras["sensitivity"].skipped)


def test_plain_data_is_as_good_as_objects(run, extras, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = {"benchmark": extras["benchmark"].to_dict(), "exports": [e.to_dict() for e in extras["exports"]]}
    objects = {name: extras[name] for name in plain}
    assert saved(run[2], tmp_path / "a", **plain) == saved(run[2], tmp_path / "b", **objects)


def test_predictions_are_those_of_the_table(run, extras, tmp_path):
    model, small, report = run
    table = extras["latency"]
    page = Page(saved(report, tmp_path, latency=table))
    row = next(row for row in page.rows("whole model") if row["whole model"] == "predicted ms")
    assert number(row["before"]) == pytest.approx(table.predict(model), abs=1e-3)
    assert number(row["after"]) == pytest.approx(table.predict(small), abs=1e-3)
    before = kfp.budgets.CostModel(kfp.analyze(model))
    spent = LatencyCost(before.graph, table).by_layer(before.sizes)
    for row in page.rows("layer", "channels"):
        if row["predicted µs, before"]:
            assert number(row["predicted µs, before"]) == pytest.approx(spent[row["layer"]] / 1e3, abs=0.006)


def test_a_benchmark_of_a_phone_without_medians_is_shown_by_its_means(run, extras, tmp_path):
    content = extras["benchmark"].to_dict()
    content["machine"] = {"cpu": "SM8550: 1x Cortex-X3"}
    content["models"] = [model | {"p50_ms": None, "p90_ms": None, "cpu_wall": None} for model in content["models"]]
    content["notes"] = ["the phone was warm"]
    page = Page(saved(run[2], tmp_path, benchmark=content))
    rows = page.rows("file", "mean, of the first")
    assert [row["mean"] for row in rows] == [f"{model['mean_ms']:.4f}" for model in content["models"]]
    assert "p50" not in rows[0]
    assert "The phone was warm." in page.text
    assert any("SM8550" in text for text in page.text)


def test_warnings_of_files_are_shown_with_layers_and_remedies(run, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "report").mkdir()
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    parts = [keras.layers.Conv2D(8, 3), keras.layers.Activation("hard_swish", name="slow"), keras.layers.Conv2D(4, 3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *parts])
    result = kfp.export_tflite(model, tmp_path / "files" / "a.tflite", quantize="int8", data=x)
    assert result.warnings
    text = " ".join(Page(saved(run[2], tmp_path / "report", exports=[result])).text)
    for warning in result.warnings:
        assert all(part in text for part in (*warning.operators, *warning.layers, warning.problem, warning.remedy))


@pytest.mark.parametrize("name", ["residual_projection", "depthwise", "conv1d_residual", "lambda_layer"])
def test_operators_of_the_pruned_model_are_those_of_a_new_analysis(name):
    small, report = kfp.prune_model(ZOO[name](), return_report=True, progress=False)
    graph = kfp.analyze(small)
    fresh = SizedOperators.of(graph, np.array([group.size for group in graph.groups], int))
    assert report.operators[1].listed == fresh.listed
    assert report.operators[1].unknown == fresh.unknown


def test_adapters_are_predicted_as_they_are_merged():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, name="one")(inputs)
    x = keras.layers.Conv2D(16, 3, name="two")(keras.layers.ReLU()(x))
    model = randomise(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)))
    budget = kfp.FiltersBudget(keep=0.94)
    small, report = kfp.prune_model(model, "l2", budget, compensate="adapter", return_report=True, progress=False)
    graph = kfp.analyze(small)
    fresh = SizedOperators.of(graph, np.array([group.size for group in graph.groups], int))
    assert report.operators[1].listed == fresh.listed
    assert len(fresh.listed) < 5


def test_a_latency_budget_brings_its_prices(tmp_path):
    budget = kfp.LatencyBudget(keep=0.8, table="arm64")
    _, report = kfp.prune_model(ZOO["plain_chain"](), "l2", budget, return_report=True, progress=False)
    whole = {row["whole model"]: row for row in Page(saved(report, tmp_path)).rows("whole model")}
    before, after = (number(whole["padded MACs"][side]) for side in ("before", "after"))
    assert after <= 0.8 * before
    assert "operators" not in report.to_dict()


def test_what_has_no_prediction_is_named(tmp_path):
    _, report = kfp.prune_model(ZOO["conv1d_residual"](), return_report=True, progress=False)
    assert "Without a prediction, and left out: " in saved(report, tmp_path, latency="arm64")


def test_approximate_groups_and_missing_proof_are_said(tmp_path):
    _, report = kfp.prune_model(ZOO["group_norm"](), verify=False, return_report=True, progress=False)
    assert report.approximate
    page = Page(saved(report, tmp_path))
    (table,) = [table for table in page.tables if table[0] == ["group", "because"]]
    assert dict(table[1:]) == {group: "; ".join(why) for group, why in report.approximate.items()}
    assert "The surgery was not verified." in page.text


def deep(names=("first", "second", "third")) -> keras.Model:
    inputs = x = keras.Input((8, 8, 4))
    for name in names:
        y = keras.layers.Conv2D(4, 3, padding="same", name=name)(x)
        x = keras.layers.Add(name=f"{name}_add")([x, keras.layers.ReLU()(y)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(3, name="end")(x)))


def test_layer_pruning_has_a_report_too(tmp_path):
    small, report = kfp.prune_layers(deep(), n_layers=1, return_report=True, progress=False)
    page = Page(saved(report, tmp_path, latency="arm64", accuracy={"dense": 1.0, "pruned": 0.5}))
    whole = {row["whole model"]: row for row in page.rows("whole model")}
    assert number(whole["parameters"]["after"]) == small.count_params() == report.cost["params"][1]
    prices, graph = PaddedMacs("arm64"), kfp.analyze(small)
    cost = LatencyCost(graph, prices)
    assert number(whole["padded MACs"]["after"]) == pytest.approx(cost(cost.sizes), abs=1)
    units = {row["unit"]: row for row in page.rows("unit")}
    assert [name for name, row in units.items() if row[""] == "removed"] == report.removed
    (reasons,) = [table for table in page.tables if table[0] == ["layer", "because it"]]
    assert dict(reasons[1:]) == report.unremovable
    assert "operators" not in report.to_dict()


# ------------------------------------------------------------------------------------------------------- format


def hostile_model() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, name=HOSTILE.replace("/", "\\"))(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(3, name="_end_ 'x' \"y\"")(x), name="<i>|m"))


@pytest.mark.parametrize("kind", ["prune", "layers"])
def test_names_are_shown_and_never_obeyed(kind, tmp_path):
    name = HOSTILE.replace("/", "\\")
    if kind == "prune":
        _, report = kfp.prune_model(hostile_model(), return_report=True, progress=False)
    else:
        _, report = kfp.prune_layers(deep((name, "second")), n_layers=1, return_report=True, progress=False)
        name += "_add"
    (tmp_path / "html").mkdir()
    page = Page(saved(report, tmp_path / "html", accuracy={HOSTILE: 0.5}))
    assert page.scripts == 1
    assert name in {cell for table in page.tables for row in table for cell in row}
    (tmp_path / "md").mkdir()
    text = saved(report, tmp_path / "md", "report.md", accuracy={HOSTILE: 0.5})
    assert "<script" not in text
    assert "<i>" not in text
    assert r"a&lt;b&gt;&amp;amp;\|\`c\`\*d\* \[x\](http:" in text
    assert all(len({len(row) for row in table}) == 1 for table in markdown_tables(text))


def test_the_page_loads_nothing(run, extras, tmp_path):
    text = saved(run[2], tmp_path, **extras)
    page = Page(text)
    assert page.links
    assert all(re.fullmatch(r"#part\d+", link) for link in page.links)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://|//cdn", text)


def test_markdown_has_the_same_tables_with_equal_columns(run, extras, tmp_path):
    (tmp_path / "html").mkdir()
    (tmp_path / "md").mkdir()
    page = Page(saved(run[2], tmp_path / "html", **extras))
    text = saved(run[2], tmp_path / "md", "report.md", **extras)
    tables = markdown_tables(text)
    assert len(tables) == len(page.tables)
    for table, other in zip(tables, page.tables, strict=True):
        assert {len(row) for row in table} == {len(other[0])}
        assert len(table) == len(other) + 1
        assert set("".join(table[1])) <= set("-:")
    assert text.count("\n## ") == len(re.findall("<h2>", (tmp_path / "html" / "report.html").read_text()))


def test_bars_in_markdown_are_as_long_as_what_is_left(run, tmp_path):
    _, _, report = run
    groups = next(t for t in markdown_tables(saved(report, tmp_path, "report.md")) if t[0][0] == "group")
    widest = max(group["size"] for group in report.plan.groups)
    for row, group in zip(groups[2:], report.plan.groups, strict=True):
        assert (len(row[1]), row[1].count("█")) == (
            round(20 * group["size"] / widest),
            round(20 * len(group["kept"]) / widest),
        )


def test_long_tables_fold_and_drawings_do_not():
    rows = tuple((f"layer {n}", Number(n, str(n))) for n in range(600))
    drawn = tuple((f"group {n}", Bar(8, n % 9, 8)) for n in range(200))
    text = render("x", [Section("a", (), Table(("n", "v"), rows)), Section("b", (), Table(("n", "v"), drawn))])
    page = Page(text)
    assert [len(table) for table in page.tables] == [601, 201]
    assert text.count("<details>") == 1
    assert text.index("600 rows") < text.index("layer 0")
    assert 'width="50.00"' in text


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.9, 0.1), (-3e6, 2e6), (1e-9, 3e-9), (float("nan"), 1.0), (0.0, 0.0)])
def test_curves_stay_in_their_frame(values):
    lines = {"<g>": [(1.0, values[0], values[0], values[0]), (0.5, values[1], values[1], values[1])], "other": []}
    text = draw_curves(Curves("x", "y", lines, ("<g>",)))
    Page(text)
    points = re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(re.findall('points="([^"]*)"', text)))
    assert points
    assert all(60 <= float(x) <= 628 and 12 <= float(y) <= 280 for x, y in points)
    assert "&lt;g&gt;" in text


def test_the_same_run_gives_the_same_file(run, tmp_path):
    first = saved(run[2], tmp_path)
    assert saved(run[2], tmp_path) == first


# ------------------------------------------------------------------------------------------------------- refusals


def test_matplotlib_is_not_needed(run, extras, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "<svg" in saved(run[2], tmp_path, sensitivity=extras["sensitivity"])


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"accuracy": {"dense": 88.0}}, r"accuracy is \{\"dense\": 0.91"),
        ({"accuracy": [0.9]}, "accuracy is"),
        ({"benchmark": {"models": []}}, "benchmark is what tflite_bench.benchmark returned"),
        ({"exports": ["a.tflite"]}, "exports is a list of what export_tflite returned"),
        ({"sensitivity": {"conv": 0.1}}, "sensitivity is the SensitivityTable"),
        ({"latency": 3}, "latency is a LatencyTable .* Received: latency=3"),
        ({"latency": "arm65"}, "unknown target 'arm65'.* Did you mean 'arm64'"),
    ],
)
def test_other_kinds_of_extras_are_refused(run, tmp_path, extra, sentence):
    (tmp_path / "report.md").write_text("mine")
    error = errors.UnknownNameError if extra == {"latency": "arm65"} else errors.InvalidValueError
    with pytest.raises(error, match=sentence):
        run[2].save(tmp_path / "report.md", **extra)
    assert (tmp_path / "report.md").read_text() == "mine"


def test_a_table_of_another_model_is_refused(run, tmp_path):
    other = keras.Sequential([keras.Input((9, 9, 3)), keras.layers.Conv2D(8, 5), keras.layers.Conv2D(8, 5)])
    table = kfp.measure_latency(other, progress=False)
    with pytest.raises(errors.InfeasibleBudgetError, match="has no time for an operator"):
        run[2].save(tmp_path / "report.html", latency=table)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        (
            "report.pdf",
            errors.InvalidValueError,
            "path is a name that ends in .html or .md. Received: path=.*report.pdf",
        ),
        ("report", errors.InvalidValueError, "path is a name that ends in .html or .md"),
        ("none/report.html", errors.FileError, "the folder .*none does not exist"),
    ],
)
def test_wrong_names_are_refused(run, tmp_path, name, error, sentence):
    with pytest.raises(error, match=sentence):
        run[2].save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
