"""The widgets in Python, what they refuse and sync; and their modules under node, beside torch."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import traitlets
from samples import (
    TASKS,
    curves,
    features,
    forgetting,
    looks,
    loss_weights,
    networks,
    photos,
    prediction,
    scenario,
    sobolev,
    temperature,
    weightings,
)

from tlcourse import metrics
from tlcourse.chapters import METHODS, SETTINGS, scenarios
from tlcourse.methods.attention import attention_map
from tlcourse.methods.distillation import soft_target_gradient, soften
from tlcourse.widgets import (
    AttentionWidget,
    ForgettingWidget,
    LossWeightsWidget,
    PredictionWidget,
    ScenarioWidget,
    SobolevWidget,
    TemperatureWidget,
)
from tlcourse.widgets._base import STATIC
from tlcourse.widgets.attention import in_bytes

HERE = Path(__file__).parent
PIXELS = np.zeros((3, 28, 28), dtype=np.uint8)
node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
jsdom = pytest.mark.skipif(
    not (HERE / "node_modules" / "jsdom").is_dir(),
    reason="jsdom is not here; `npm install` in tests/widgets brings it",
)


@node
@jsdom
@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("*.test.js")))
def test_modules_under_node(file):
    done = subprocess.run(
        ["node", "--test", str(HERE / file)], capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout


def in_node(kind: type, names: str, given: object, what: str) -> object:
    """What a widget's module makes of numbers: an expression over its exports and `given`."""
    address = "data:text/javascript;base64," + base64.b64encode(kind._esm.encode()).decode()
    script = f"""const {{ {names} }} = await import({json.dumps(address)});
    const given = {json.dumps(given)};
    console.log(JSON.stringify({what}));"""
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@node
def test_the_browser_sums_up_a_sequence_as_the_metrics_do():
    R = np.random.default_rng(0).uniform(0, 100, (20, 4, 4))
    names = "averageAccuracy, forgetting"
    found = in_node(
        ForgettingWidget, names, R.tolist(), "given.map((R) => [averageAccuracy(R), forgetting(R)])"
    )
    np.testing.assert_allclose(
        found, [[metrics.average_accuracy(r), metrics.forgetting(r)] for r in R]
    )
    lower = [
        [[v if j <= i else None for j, v in enumerate(row)] for i, row in enumerate(r)]
        for r in R.tolist()
    ]
    found = in_node(
        ForgettingWidget,
        names,
        lower,
        "given.map((R) => forgetting(R.map((row) => row.map((v) => v ?? NaN))))",
    )
    np.testing.assert_allclose(
        found, [metrics.forgetting(np.where(np.tri(4) > 0, r, np.nan)) for r in R]
    )


@node
@pytest.mark.parametrize("T", [0.1, 1.0, 3.3, 20.0])
def test_the_browser_computes_what_torch_computes(T):
    draw = torch.Generator().manual_seed(0)
    z, v = (torch.randn(20, 10, generator=draw).double() * 8 for _ in range(2))
    z[0, 0] = 800.0
    rows = """given[0].map((row, i) => [...soften(row, given[2]), entropy(soften(row, given[2])),
        gradientSize(row, given[1][i], given[2])])"""
    found = torch.tensor(
        in_node(
            TemperatureWidget, "soften, entropy, gradientSize", [z.tolist(), v.tolist(), T], rows
        ),
        dtype=torch.float64,
    )
    p = soften(z, T)
    torch.testing.assert_close(found[:, :10], p)
    torch.testing.assert_close(found[:, 10], torch.special.entr(p).sum(1) / np.log(2))
    torch.testing.assert_close(found[:, 11], soft_target_gradient(z, v, T).norm(dim=1))
    leaf = z.clone().requires_grad_()
    F.cross_entropy(leaf / T, soften(v, T), reduction="sum").backward()
    torch.testing.assert_close(found[:, 11], leaf.grad.norm(dim=1))


@node
@pytest.mark.parametrize("p", [1.0, 2.0, 3.7, 8.0])
def test_the_browser_sums_maps_as_torch_does(p):
    widget = looks()
    bytes_ = np.frombuffer(widget.values, np.uint8)[: 3 * 4 * 7 * 7].reshape(3, 4, 49)
    maps = "attentionMap(Uint8Array.from(one.flat()), 4, 49, given[1])"
    what = f"given[0].map((one) => Array.from({maps}))"
    found = np.array(in_node(AttentionWidget, "attentionMap", [bytes_.tolist(), p], what))
    exact = attention_map(torch.tensor(features()["teacher"]["group 1"]), p).flatten(1)
    expected = attention_map(torch.tensor(bytes_.reshape(3, 4, 7, 7) / 255), p).flatten(1)
    np.testing.assert_allclose(found, expected / expected.amax(1, keepdim=True))
    np.testing.assert_allclose(
        found, exact / exact.amax(1, keepdim=True), atol=0.005 * p
    )  # bytes are close enough


@node
def test_the_browsers_colours_are_cividis():
    found = np.array(
        in_node(AttentionWidget, "colour", [i / 10 for i in range(11)], "given.map(colour)")
    )
    np.testing.assert_allclose(
        found, 255 * np.array([mpl.colormaps["cividis"](i / 10)[:3] for i in range(11)]), atol=0.51
    )


WAVES = [[1.0, 3.0, 0.4], [0.5, 8.0, 1.0]]
GRID = np.linspace(-1, 1, 201)


def sines(x):
    """The target's values and slopes."""
    a, w, phase = np.transpose(WAVES)[..., None]
    return (a * np.sin(w * x + phase)).sum(0), (a * w * np.cos(w * x + phase)).sum(0)


def interpolate(points, values, slopes, length):
    """Values and slopes on the grid of the fit, slopes in their own units, by NumPy's solver."""

    def blocks(a, b):
        d = a[:, None] - b
        k = np.exp(-(d**2) / (2 * length**2))
        return k, d / length**2 * k, -d / length**2 * k, (1 / length**2 - d**2 / length**4) * k

    def covariance(a, b):
        k, to_slope, of_slope, both = blocks(a, b)
        if slopes is None:
            return k, of_slope
        return np.hstack([k, to_slope]), np.hstack([of_slope, both])

    A = np.vstack(covariance(points, points)) if slopes is not None else blocks(points, points)[0]
    ridge = np.full(len(A), 1e-10)
    ridge[len(points) :] /= length**2
    told = values if slopes is None else np.concatenate([values, slopes])
    weights = np.linalg.solve(A + np.diag(ridge), told)
    return [rows @ weights for rows in covariance(GRID, points)]


POINTS = {
    "even": [-0.9, -0.3, 0.3, 0.9],
    "many": [-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9],
    "in any order": [0.7, -1.0, 0.1],
    "close": [-0.5, -0.48, 0.2, 0.22, 1.0],
    "the same": [0.25, 0.25, 0.25],
    "one twice": [-0.5, 0.25, 0.25, 0.8],
}


def fits_in_the_browser(points, length, wrong=0.0):
    """Values, slopes and root mean squared error of both fits; what they are told."""
    what = """(([points, l, wrong, waves, grid]) => {
      const told = points.map((x) => tell(waves, x, wrong));
      const [values, slopes] = [0, 1].map((i) => told.map((each) => each[i]));
      const both = [null, slopes].map((given) => {
        const fitted = fit(points, values, given, l);
        const at = (where) => where.map(fitted);
        return { grid: at(grid), points: at(points), error: errorOf(fitted, waves) };
      });
      return { told, both }; })(given)"""
    given = [points, length, wrong, WAVES, GRID.tolist()]
    return in_node(SobolevWidget, "tell, fit, errorOf", given, what)


@node
@pytest.mark.parametrize("length", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
def test_the_browser_fits_values_and_slopes_as_numpy_does(points, length):
    found = fits_in_the_browser(points, length)
    values, slopes = sines(np.array(points))
    np.testing.assert_allclose(found["told"], np.stack([values, slopes], 1), atol=1e-12)
    for fitted, given in zip(found["both"], (None, slopes)):
        value, slope = interpolate(np.array(points), values, given, length)
        on_grid, at_points = np.array(fitted["grid"]), np.array(fitted["points"])
        np.testing.assert_allclose(on_grid[:, 0], value, atol=2e-5)
        np.testing.assert_allclose(on_grid[:, 1], slope, atol=2e-4)
        error = np.sqrt(np.mean((value - sines(GRID)[0]) ** 2))
        np.testing.assert_allclose(fitted["error"], error, atol=2e-5)
        np.testing.assert_allclose(at_points[:, 0], values, atol=1e-3)  # through the points
        if given is not None:
            np.testing.assert_allclose(at_points[:, 1], slopes, atol=1e-2)  # along the tangents


@node
def test_slopes_that_are_told_wrongly_have_the_error_that_is_said():
    points = np.linspace(-1, 1, 201)
    told = np.array(fits_in_the_browser(points[::40].tolist(), 0.3, 0.5)["told"])
    value, slope = sines(points)
    ripple = 0.5 * np.sqrt(2 * np.mean(slope**2)) * np.sin(23 * points + 1)
    np.testing.assert_allclose(told, np.stack([value, slope + ripple], 1)[::40], atol=1e-12)
    assert np.sqrt(np.mean(ripple**2) / np.mean(slope**2)) == pytest.approx(0.5, rel=0.05)
    fitted = fits_in_the_browser(points[::40].tolist(), 0.3, 0.5)["both"][1]["points"]
    np.testing.assert_allclose(fitted, told, atol=1e-4)


def points(weights, log):
    """Places of weights, the first corner on top, y downwards."""
    logs = np.log(weights) - np.log(weights).mean(1, keepdims=True) if log else weights
    share = (logs - logs.min()) / (logs - logs.min()).sum(1, keepdims=True) if log else weights
    corners = np.array([[0.5, 0], [0, 0.75**0.5], [1, 0.75**0.5]])
    return share @ corners


@node
@pytest.mark.parametrize("log", [False, True])
def test_the_browser_puts_weights_where_numpy_does(log):
    weights = np.array([run["weights"] for run in weightings(log)] + [[0.18, 0.3, 0.52]])
    what = "shares(given[0], given[1]).map(place)"
    found = in_node(LossWeightsWidget, "shares, place", [weights.tolist(), log], what)
    np.testing.assert_allclose(found, points(weights, log), atol=1e-12)
    if log:  # powers of two on an even grid
        steps = np.log2(weights[:-1] / weights[:-1].max(1, keepdims=True))
        even = steps - steps.sum(1, keepdims=True) / 3 + 2
        np.testing.assert_allclose(found[:-1], points(even / 6, False), atol=1e-12)


@node
def test_the_browser_says_and_ranks_numbers_as_python_does():
    draw = np.random.default_rng(8)
    tables = [draw.normal(size=27) * 10.0**k for k in range(-5, 5)]
    names, what = (
        "digits, fifths, compare",
        """given.map((v) => [digits(v),
      v.map((x) => x.toFixed(digits(v))), fifths(v, "higher"), fifths(v, "lower"),
      v.map((x) => compare(x, v[0], "lower", digits(v)))])""",
    )
    found = in_node(LossWeightsWidget, names, [table.tolist() for table in tables], what)
    for table, (digits, said, high, low, compared) in zip(tables, found):
        wanted = 2 - int(np.floor(np.log10(np.abs(table).max())))
        assert digits == min(6, max(0, wanted))
        assert said == [f"{x:.{digits}f}" for x in table]
        worse = (table < table[:, None]).sum(1)
        assert high == (5 * worse // 27).tolist()
        assert low == (5 * (26 - worse) // 27).tolist()
        np.testing.assert_array_equal(
            compared, -np.sign(np.array([float(text) - float(said[0]) for text in said]))
        )


@node
def test_the_browser_names_every_case_as_the_table_does():
    answers = [[bool(i & bit) for bit in (8, 4, 2, 1)] for i in range(16)]
    what = """given[0].map((answers) => {
      const setting = settingOf(given[1], caseOf(answers));
      return [caseOf(answers), setting.name, setting.why, setting.ourReading]; })"""
    given = [answers, scenarios()["settings"]]
    found = in_node(ScenarioWidget, "caseOf, settingOf", given, what)
    for yes, (case, name, why, ours) in zip(answers, found):
        assert case == "".join(pair[not one] for pair, one in zip(("=≠", "=≠", "+-", "+-"), yes))
        [setting] = [one for one in SETTINGS if case in (*one.table, *one.ours)]
        assert (name, why, ours) == (setting.name, setting.why, case in setting.ours)


@pytest.mark.parametrize(
    "kind",
    [
        AttentionWidget,
        ForgettingWidget,
        LossWeightsWidget,
        TemperatureWidget,
        PredictionWidget,
        ScenarioWidget,
        SobolevWidget,
    ],
)
def test_a_module_stands_on_its_own(kind):
    name = kind.__name__.removesuffix("Widget").lower()
    assert kind._esm == "\n".join(
        (STATIC / file).read_text(encoding="utf-8") for file in ("common.js", f"{name}.js")
    )
    assert "import " not in kind._esm.replace("cannot import others", "")
    for forbidden in ("innerHTML", "http://", "https://", "eval("):
        assert forbidden not in kind._esm.replace("http://www.w3.org/2000/svg", ""), forbidden


@pytest.mark.parametrize(
    "widget", [looks, photos, forgetting, loss_weights, temperature, prediction, scenario, sobolev]
)
def test_the_text_form_is_always_the_same(widget):
    made = widget()
    assert repr(made) == f"<{type(made).__name__}>"
    said = f"Run this cell to see this {type(made).__name__}."  # all that an untrusted one shows
    assert made._repr_mimebundle_()[0]["text/plain"] == said
    assert "application/vnd.jupyter.widget-view+json" in made._repr_mimebundle_()[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"T": 0}, "T must be a number in [0.1, 20], got 0.0"),
        ({"T": -1.0}, "T must be a number in [0.1, 20], got -1.0"),
        ({"T": float("nan")}, "T must be a number in [0.1, 20], got nan"),
        ({"T": 21.0}, "T must be a number in [0.1, 20], got 21.0"),
        ({"image": 3}, "image must be in [0, 3), got 3"),
        ({"pixels": PIXELS[0]}, "pixels must have shape (M, H, W) or (M, 1, H, W), got (28, 28)"),
        ({"pixels": PIXELS / 255}, "pixels must be uint8, got float64"),
        (
            {"pixels": np.zeros((3, 200, 28), np.uint8)},
            "pixels must be at most 128 by 128 per image, got (200, 28)",
        ),
        ({"logits": {}}, "logits must be of one to four networks, got 0"),
        (
            {"logits": {"teacher": np.zeros((2, 10))}},
            "logits of 'teacher' must have shape (3, 10), got (2, 10)",
        ),
        (
            {"logits": {"teacher": np.zeros((3, 10)), "alone": np.zeros((3, 9))}},
            "logits of 'alone' must have shape (3, 10), got (3, 9)",
        ),
        ({"logits": {"teacher": np.full((3, 10), np.nan)}}, "logits of 'teacher' must be finite"),
        ({"classes": ["a"]}, "logits of 'teacher' must have shape (3, 1), got (3, 10)"),
        ({"labels": [1, 2]}, "labels must be 3 numbers in [0, 10), got [1, 2]"),
        ({"labels": [1, 2, 10]}, "labels must be 3 numbers in [0, 10), got [1, 2, 10]"),
        ({"labels": [1, 2, np.nan]}, "labels must be 3 numbers in [0, 10), got [1.0, 2.0, nan]"),
        ({"labels": [[1], [2], [3]]}, "labels must be 3 numbers in [0, 10), got [[1], [2], [3]]"),
        ({"logits": {"teacher": np.full((3, 10), 1e39)}}, "logits of 'teacher' must be finite"),
    ],
)
def test_temperature_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        TemperatureWidget(
            **{"pixels": PIXELS, "logits": networks(3, 10), "labels": [1, 2, 3]} | change
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, "question must not be empty"),
        (
            {"choices": ["a"], "answer": "a"},
            "choices must be at least two different texts, got ['a']",
        ),
        (
            {"choices": ["a", "a"], "answer": "a"},
            "choices must be at least two different texts, got ['a', 'a']",
        ),
        ({"choices": ["a", "b"], "answer": "c"}, "answer must be one of ['a', 'b'], got 'c'"),
        ({"answer": "many"}, "answer must be a finite number, got 'many'"),
        ({"answer": float("nan")}, "answer must be a finite number, got nan"),
        ({"answer": float("-inf")}, "answer must be a finite number, got -inf"),
        ({"answer": np.float32("inf")}, "answer must be a finite number, got np.float32(inf)"),
        ({"answer": None}, "answer must be a finite number, got None"),
        ({"answer": True}, "answer must be a finite number, got True"),
        ({"answer": [3]}, "answer must be a finite number, got [3]"),
        ({"answer": 3, "interval": (4, 5)}, "interval must hold the answer 3, got 4 to 5"),
        ({"answer": 3, "interval": (3,)}, "interval must be two numbers, got (3,)"),
        ({"answer": 3, "interval": 3}, "interval must be two numbers, got 3"),
        (
            {"answer": 3, "interval": (2, float("inf"))},
            "an end of interval must be a finite number, got np.float64(inf)",
        ),
    ],
)
def test_prediction_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        PredictionWidget(**{"question": "How many?", "answer": 3, "why": ""} | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": ["a"]}, "tasks must be at least two names, got ['a']"),
        ({"by_weight": {}}, "by_weight must hold at least one weight, got none"),
        (
            {"others": {"LwF": curves()}},
            "others must be up to three ways, none of them 'LwF', got LwF",
        ),
        (
            {"others": dict.fromkeys("abcd", curves())},
            "others must be up to three ways, none of them 'LwF', got a, b, c, d",
        ),
        (
            {"others": {"joint": curves()[:5]}},
            "accuracies of 'joint' must have shape (21, 3), got (5, 3)",
        ),
        (
            {"by_weight": {1: curves(), 2: curves()[:, :2]}},
            "accuracies of 'LwF at 2' must have shape (21, 3), got (21, 2)",
        ),
        ({"starts": [0, 7]}, "starts must be 3 positions rising from 0 and below 21, got [0, 7]"),
        (
            {"starts": [0, 7, 21]},
            "starts must be 3 positions rising from 0 and below 21, got [0, 7, 21]",
        ),
        (
            {"starts": [1, 7, 14]},
            "starts must be 3 positions rising from 0 and below 21, got [1, 7, 14]",
        ),
        (
            {"starts": [0, 6, 14]},
            "accuracies must be in [0, 100] from a task's start on, and NaN before",
        ),
        (
            {"others": {"joint": curves() * 2}},
            "accuracies must be in [0, 100] from a task's start on, and NaN before",
        ),
        ({"weight": 2.0}, "weight must be one of 0, 0.3, 3, got 2"),
        ({"weight": float("nan")}, "weight must be a finite number, got nan"),
        (
            {"starts": [0, 7.0, 14]},
            "starts must be 3 positions rising from 0 and below 21, got [0.0, 7.0, 14.0]",
        ),
        (
            {"by_weight": {float("inf"): curves()}},
            "each weight of by_weight must be a finite number, got inf",
        ),
    ],
)
def test_forgetting_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        forgetting(**change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"pictures": PIXELS},
            "pictures must have shape (M, C, H, W) with C = 1 or 3, got (3, 28, 28)",
        ),
        ({"pictures": PIXELS[:, None] / 255}, "pictures must be uint8, got float64"),
        (
            {"pictures": np.zeros((3, 3, 300, 8), np.uint8)},
            "pictures must be at most 256 by 256, got (300, 8)",
        ),
        ({"features": {}}, "features must be of one to three networks, got 0"),
        ({"features": {"a": {}}}, "features must hold at least one layer"),
        (
            {"features": {"a": {"x": np.ones((3, 1, 2, 2))}, "b": {"y": np.ones((3, 1, 2, 2))}}},
            "the layers of 'b' must be x, got y",
        ),
        (
            {"features": {"a": {"x": np.ones((3, 1, 2, 2))}, "b": {"x": np.ones((3, 1, 3, 3))}}},
            "maps of 'x' must be of one size in all networks, got [(2, 2), (3, 3)]",
        ),
        (
            {"features": {"a": {"x": np.ones((3, 4))}}},
            "features of 'a' at 'x' must be of all 3 pictures, (M, K, h, w) or a map (M, h, w), "
            "got (3, 4)",
        ),
        (
            {"features": {"a": {"x": np.ones((3, 1, 40, 2))}}},
            "features of 'a' at 'x' must be at most 32 by 32, got (40, 2)",
        ),
        (
            {"features": {"a": {"x": np.full((3, 1, 2, 2), np.inf)}}},
            "features of 'a' at 'x' must be finite",
        ),
        ({"maps": {"cat": np.ones((3, 2, 2))}}, "maps are of one network, and there are several"),
        ({"names": ["one"]}, "names must be 3 words, got 1"),
        ({"p": 0.5}, "p must be a number in [1, 8], got 0.5"),
        ({"p": float("nan")}, "p must be a number in [1, 8], got nan"),
        ({"strength": 1.5}, "strength must be a number in [0, 1], got 1.5"),
        ({"picture": 3}, "picture must be in [0, 3), got 3"),
        ({"layer": "top"}, "layer must be one of group 1, group 2, got 'top'"),
        ({"shown": "cat"}, "shown must be one of attention, got 'cat'"),
    ],
)
def test_attention_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        looks(**change)


def test_a_given_map_fits_the_pictures_and_has_a_name_of_its_own():
    with pytest.raises(ValueError, match=re.escape("the map 'cat' must be of all 2 pictures")):
        photos(maps={"cat": np.ones((3, 2, 2))})
    with pytest.raises(ValueError, match=re.escape("the map 'cat' must be of all 2 pictures")):
        photos(maps={"cat": np.ones((2, 1, 2, 2))})
    with pytest.raises(ValueError, match="a map may not be called 'attention'"):
        photos(maps={"attention": np.ones((2, 2, 2))})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": [0, 1]}, "points must be 3 to 7 numbers, got [0, 1]"),
        ({"points": [0] * 8}, "points must be 3 to 7 numbers, got [0, 0, 0, 0, 0, 0, 0, 0]"),
        ({"points": 4}, "points must be 3 to 7 numbers, got 4"),
        (
            {"points": [0, 1.1, 0]},
            "every one of the points must be a number in [-1, 1], got 1.1",
        ),
        (
            {"points": [0, np.nan, 0]},
            "every one of the points must be a number in [-1, 1], got np.float64(nan)",
        ),
        ({"length_scale": 0.0}, "length_scale must be a number in [0.1, 0.6], got 0.0"),
        ({"slope_error": -1}, "slope_error must be a number in [0, 1], got -1.0"),
        ({"waves": []}, "waves must have shape (1, 3), (2, 3) or (3, 3), got (0,)"),
        ({"waves": [1, 2, 3]}, "waves must have shape (1, 3), (2, 3) or (3, 3), got (3,)"),
        ({"waves": [[1, 99, 0]]}, "every frequency must be a number in [-20, 20], got 99.0"),
    ],
)
def test_sobolev_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        sobolev(**change)


def without(task, key):
    return {k: v for k, v in task.items() if k != key}


RUNS = weightings()
KEYS = "name, unit, better, alone, learnt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": TASKS[:2]}, "tasks must be three with different names, got ['segments', 'cent"),
        (
            {"tasks": [TASKS[0]] * 3},
            "tasks must be three with different names, got ['segments', 'se",
        ),
        ({"tasks": [*TASKS[:2], TASKS[2] | {"name": ""}]}, "tasks must be three with different na"),
        ({"tasks": [without(TASKS[0], "unit"), *TASKS[1:]]}, f"a task must have {KEYS}, got {{"),
        ({"tasks": ["a", "b", "c"]}, f"a task must have {KEYS}, got 'a'"),
        (
            {"tasks": [TASKS[0] | {"better": "up"}, *TASKS[1:]]},
            "better of 'segments' must be higher or lower, got 'up'",
        ),
        (
            {"tasks": [*TASKS[:2], TASKS[2] | {"alone": np.nan}]},
            "alone of 'depth' must be a finite number, got nan",
        ),
        (
            {"tasks": [*TASKS[:2], TASKS[2] | {"learnt": None}]},
            "learnt of 'depth' must be a finite number, got None",
        ),
        (
            {"weightings": RUNS[:2]},
            "weightings must be at least three, all different, got 2, 2 of them different",
        ),
        (
            {"weightings": RUNS[:3] + RUNS[:1]},
            "weightings must be at least three, all different, got 4, 3 of them different",
        ),
        ({"weightings": [*RUNS, {"weights": [1, 0, 0]}]}, "a weighting must have weights, values"),
        (
            {"weightings": [{"weights": [0.5, 0.5], "values": [1, 2, 3]}, *RUNS]},
            "weights of weighting 0 must be three numbers, got [0.5, 0.5]",
        ),
        (
            {"weightings": [*RUNS, {"weights": [0.5, 0.2, 0.2], "values": [1, 2, 3]}]},
            "weights of weighting 28 must be >= 0 and sum to 1, got [0.5, 0.2, 0.2]",
        ),
        (
            {"weightings": [{"weights": [1.5, -0.5, 0], "values": [1, 2, 3]}, *RUNS]},
            "weights of weighting 0 must be >= 0 and sum to 1, got [1.5, -0.5, 0.0]",
        ),
        (
            {"weightings": [{"weights": [0.5, 0.5, 0], "values": [1, 2, np.inf]}, *RUNS]},
            "every one of values of weighting 0 must be a finite number, got np.float64(inf)",
        ),
        (
            {"learnt_weights": [0.5, 0.5, 2e-6]},
            "learnt_weights must be >= 0 and sum to 1, got [0.5, 0.5, 2e-06]",
        ),
        ({"scale": "log"}, "a log needs weights > 0, got 0"),
        ({"scale": "cubic"}, "scale must be in ['linear', 'log'], got 'cubic'"),
        ({"at": 28}, "at must be in [0, 28), got 28"),
        (
            {"coloured_by": "colour"},
            "coloured_by must be in ['', 'segments', 'centres', 'depth'], got 'colour'",
        ),
    ],
)
def test_loss_weights_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        loss_weights(**change)


def test_loss_weights_begin_in_the_middle_are_set_from_python_and_are_numbers_of_json():
    runs = [{k: torch.tensor(v, dtype=torch.float32) for k, v in run.items()} for run in RUNS]
    widget = loss_weights(weightings=runs, learnt_weights=np.float32([1 / 3, 1 / 3, 1 / 3]))
    assert widget.weightings[widget.at]["weights"] == pytest.approx([1 / 3] * 3)
    widget.at, widget.coloured_by = np.int64(3), "depth"
    for name, value in {"at": -1, "coloured_by": "height", "scale": ""}.items():
        with pytest.raises(ValueError, match=f"^{name} must be in "):
            setattr(widget, name, value)
    assert (widget.at, widget.coloured_by, widget.scale) == (3, "depth", "linear")
    json.dumps(widget.get_state(), allow_nan=False)


TABLES = scenarios()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"settings": TABLES["settings"][1:]},
            "settings must hold each of the 16 cases once, look at ['==++', '==+-']",
        ),
        (
            {"settings": [*TABLES["settings"], TABLES["settings"][0] | {"name": "more"}]},
            "settings must hold each of the 16 cases once, look at ['==++', '==+-']",
        ),
        (
            {"settings": [*TABLES["settings"], TABLES["settings"][0] | {"table": ["=="]}]},
            "settings must have different names, got ['ordinary learning', ",
        ),
        (
            {
                "settings": [
                    *TABLES["settings"],
                    {"name": "x", "why": "", "table": ["=="], "ours": []},
                ]
            },
            "settings must hold each of the 16 cases once, look at ['==']",
        ),
        (
            {"settings": [{"name": "x", "why": ""}]},
            "a setting must have table, ours, got {'name': ",
        ),
        ({"methods": []}, "methods must be at least one, got none"),
        (
            {"methods": [{"name": "x"}]},
            "a method must have chapter, notebook, written, matches, fits",
        ),
        (
            {"methods": [TABLES["methods"][0] | {"fits": ("ordinary learning", "x", "y")}]},
            "'domain-adversarial training' fits settings that are not there: x, y",
        ),
    ],
)
def test_scenario_refuses(change, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        scenario(**change)


def test_answers_are_set_from_python_and_the_tables_are_the_courses():
    widget = scenario(same_task=False, here=METHODS[0].notebook)
    widget.same_domain, widget.target_labels = np.False_, False
    assert (widget.same_domain, widget.same_task, widget.source_labels) == (False, False, True)
    with pytest.raises(traitlets.TraitError):
        widget.same_domain = "no"
    assert [one["name"] for one in widget.methods] == [one.name for one in METHODS]
    assert [one["chapter"] for one in widget.methods] == [int(m.notebook[:2]) for m in METHODS]
    assert [tuple(one["fits"]) for one in widget.methods] == [one.fits for one in METHODS]
    assert [one["why"] for one in widget.settings] == [one.why for one in SETTINGS]
    json.dumps(widget.get_state(), allow_nan=False)


def test_points_are_set_from_python_and_are_numbers_of_json():
    widget = sobolev(points=np.linspace(-1, 1, 5, dtype=np.float32), waves=np.ones((3, 3)))
    assert widget.points == [-1.0, -0.5, 0.0, 0.5, 1.0]
    widget.points = torch.tensor([0.1, 0.1, -0.3])
    assert widget.points == [0.1, 0.1, -0.3]
    with pytest.raises(ValueError, match="points must be 3 to 7 numbers"):
        widget.points = []
    widget.points = (0, 1, -1)
    assert widget.points == [0.0, 1.0, -1.0]
    state = widget.get_state()
    json.dumps({k: v for k, v in state.items() if not isinstance(v, bytes)}, allow_nan=False)


def test_attention_is_set_from_python_and_its_buffers_are_bytes():
    widget = photos()
    widget.p, widget.shown, widget.layer, widget.picture, widget.strength = (
        4,
        "cat",
        "group 1",
        1,
        0,
    )
    assert (widget.p, widget.strength, widget.layer) == (4.0, 0.0, "group 1")
    assert len(widget.values) == 2 * (4 * 49 + 6 * 16 + 49 + 49)
    assert len(widget.pixels) == 2 * 3 * 64 * 64
    assert widget.shapes == [[3, 64, 64], [4, 7, 7], [6, 4, 4], [1, 7, 7], [1, 7, 7]]
    assert np.frombuffer(widget.values, np.uint8)[-2 * 49 :].max() == 0  # a map of zeros stays one


def test_the_weight_is_set_from_python_and_stays_on_the_grid():
    widget = forgetting()
    assert widget.weight == 0.3
    widget.weight = 3
    with pytest.raises(ValueError, match=r"weight must be one of 0, 0\.3, 3, got 1"):
        widget.weight = 1
    assert widget.weight == 3.0
    assert len(widget.accuracy) == 5 * 21 * 3 * 4


def test_python_sets_and_is_refused():
    widget = temperature()
    widget.T, widget.image, widget.log = 4, 2, True
    with pytest.raises(ValueError, match=r"T must be a number in \[0\.1, 20\], got 0\.0"):
        widget.T = 0
    assert (widget.T, widget.image) == (4.0, 2)


def test_tensors_and_arrays_give_the_same_buffers():
    tables = networks(3, 10)
    a = TemperatureWidget(PIXELS, tables, [1, 2, 3])
    b = TemperatureWidget(
        torch.zeros(3, 1, 28, 28, dtype=torch.uint8),
        {k: torch.tensor(t) for k, t in tables.items()},
        torch.tensor([1, 2, 3]),
    )
    assert a.logits == b.logits == np.stack(list(tables.values())).astype("<f4").tobytes()
    assert a.pixels == b.pixels
    assert len(a.pixels) == 3 * 28 * 28


def test_a_measured_number_is_said_in_three_digits():
    widget = PredictionWidget("?", answer=67.8333, interval=(58.0123, 77.6912), why="")
    assert (widget.answer, widget.low, widget.high) == ("67.8", 58.0, 77.7)
    assert PredictionWidget("?", answer=8325.4, why="").answer == "8325"


NUMBERS = [
    (67.83, "67.8"),
    (999.4, "999"),
    (999.6, "1000"),
    (-999.6, "-1000"),
    (99.96, "100"),
    (1e6, "1000000"),
    (123456.7, "123457"),
    (0.000012345, "0.0000123"),
    (-0.05, "-0.05"),
    (1.5e-9, "1.5e-09"),
    (0.0, "0"),
    (-0.0, "0"),
    (7, "7"),
    (True + 6, "7"),
]
KINDS = [
    float,
    np.float64,
    np.float32,
    np.longdouble,
    np.array,
    torch.tensor,
    lambda x: torch.tensor(float(x), requires_grad=True),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_a_number_is_said_plainly_whatever_its_kind(value, text, kind):
    widget = PredictionWidget("?", answer=kind(value), why="")
    assert widget.answer == text
    assert widget.low == widget.high == float(text)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, np.float16, int])
def test_whole_numbers_of_numpy_are_numbers(kind):
    widget = PredictionWidget("?", answer=kind(7), interval=np.array([5, 9], kind), why="")
    assert (widget.answer, widget.low, widget.high) == ("7", 5.0, 9.0)


INFINITE = [float("inf"), float("-inf"), float("nan"), np.float32("inf"), np.array(np.nan)]


@pytest.mark.parametrize("value", [*INFINITE, torch.tensor(np.inf)])
@pytest.mark.parametrize(
    ("made", "name"),
    [
        (prediction, "low"),
        (prediction, "high"),
        (prediction, "number"),
        (temperature, "T"),
        (looks, "p"),
        (looks, "strength"),
        (forgetting, "weight"),
        (sobolev, "length_scale"),
        (sobolev, "slope_error"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_whenever_it_is_set(made, name, value):
    widget = made()
    before = getattr(widget, name)
    with pytest.raises(ValueError, match=f"^{name} must be a "):
        setattr(widget, name, value)
    assert getattr(widget, name) == before
    json.dumps({k: v for k, v in widget.get_state().items() if not isinstance(v, bytes)})


def test_a_list_of_weights_stays_finite():
    widget = forgetting()
    with pytest.raises(ValueError, match="must be a finite number, got inf"):
        widget.weights = [0.0, float("inf")]
    widget.weights = np.float32([0.0, 0.3]).tolist()


@pytest.mark.parametrize(
    "widget", [looks, photos, forgetting, loss_weights, temperature, prediction, scenario, sobolev]
)
def test_no_float_of_a_widget_may_be_infinite(widget):
    """Whoever adds a number takes `Number`."""
    made = widget()
    floats = [trait for trait in made.traits(sync=True).values() if type(trait) is traitlets.Float]
    assert floats == []


def test_numbers_and_flags_of_numpy_and_torch_can_be_set():
    widget = temperature(T=np.float32(3.3), image=np.int64(1), log=np.bool_(True))
    assert (widget.T, widget.image, widget.log) == (3.3, 1, True)
    widget.T, widget.image, widget.log = torch.tensor(4), torch.tensor(2), np.False_
    assert (widget.T, widget.image, widget.log) == (4.0, 2, False)
    maps = looks(p=np.array(3), picture=np.uint8(2), strength=np.float16(0.5))
    assert (maps.p, maps.picture, maps.strength) == (3.0, 2, 0.5)
    asked = prediction()
    asked.number, asked.sure, asked.revealed = np.float32(30.5), np.int64(70), np.True_
    assert (asked.number, asked.sure, asked.revealed) == (30.5, 70, True)
    asked.number = None
    for made in (widget, maps, asked):
        state = made.get_state()
        json.dumps({k: v for k, v in state.items() if not isinstance(v, bytes)}, allow_nan=False)


def test_a_weight_of_less_digits_finds_its_place_on_the_grid():
    by_weight = {np.float32(w): curves() for w in (0.0, 0.3, 3.0)}
    widget = forgetting(by_weight=by_weight, weight=0.3, starts=np.array([0, 7, 14]))
    assert widget.weights == [0.0, 0.3, 3.0]
    for value in (np.float32(0.3), torch.tensor(0.3), np.array(0.3, np.float32), 0.3):
        widget.weight = value
        assert widget.weight == 0.3


@pytest.mark.parametrize("value", [2.5, "1", None, True, np.nan, [1], np.array([1]), 10**30, -1])
def test_a_position_is_a_whole_number_in_range(value):
    with pytest.raises((ValueError, traitlets.TraitError), match="image"):
        temperature().image = value


@pytest.mark.parametrize("size", [1e-300, 1e-40, 1.0, 1e300])
def test_activations_of_any_size_fill_their_bytes(size):
    A = np.array([[[[0.0, 0.5], [-1.0, 0.25]]]]) * size
    assert in_bytes(A).flatten().tolist() == [0, 128, 255, 64]
    assert in_bytes(np.array([[[[-128, 64]]]], np.int8)).flatten().tolist() == [255, 128]
