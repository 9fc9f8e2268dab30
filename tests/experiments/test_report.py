import base64
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments import catalog, pictures, records, report
from experiments.catalog import UnusableRecord
from experiments.harness import perform
from experiments.verdicts import Verdict

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps the elements and the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def measured_page(experiments, folder):
    for experiment in experiments:
        record = perform(experiment, "smoke")
        records.save(record, folder)
        if record.metrics:
            pictures.draw(experiment.load(), record, folder)
    page = report.write_page(catalog.catalog().values(), folder)
    assert page.unusable == []
    return page.path.read_text()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_the_page_holds_every_verdict_and_picture_and_needs_nothing_else(make, tmp_path):
    alpha = make("alpha", claim="One is one.", tags="S4.10")
    beta = make(
        "beta",
        claim="Two is wrong.",
        tags="S0.20",
        verdict='return [identity("two", 2.0, 1.0), identity("b", 3.0, 3.0)]',
    )
    html = measured_page([alpha, beta], tmp_path)
    page = Page(html)
    for text in ("One is one.", "Two is wrong.", "Somebody (1999), theorem 1. And why.", "[S4.10]"):
        assert text in page.text
    assert "2 experiments, 3 verdicts: 2 holds, 1 fails" in page.text
    assert page.text.index("Activation functions") < page.text.index("Worked examples")
    statuses = [a["class"] for a in page.all("span")]
    assert (statuses.count("holds"), statuses.count("fails")) == (1 + 2 * 2, 1 + 2 * 1)
    embedded = [a["src"].removeprefix("data:image/png;base64,") for a in page.all("img")]
    drawn = [(tmp_path / f"{name}.png").read_bytes() for name in ("beta", "alpha")]
    assert [base64.b64decode(data) for data in embedded] == drawn
    # Nothing is requested: no script, no link to a file, no address.
    assert not page.all("script") + page.all("link")
    assert {a["href"] for a in page.all("a")} == {"#alpha", "#beta"}
    assert {a["id"] for a in page.all("article")} == {"alpha", "beta"}
    assert not any(sign in html for sign in ("http:", "https:", "url(", "@import"))
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_page_says_what_ran_where(make, tmp_path):
    html = measured_page([make("alpha")], tmp_path)
    record = records.load(tmp_path / "alpha.json")
    text = Page(html).text
    for fact in ("smoke", "n = 1, sizes = (1, 2)", "float32", record.date, record.device):
        assert fact in text
    for package in ("jax", "numpy", "python"):
        assert f"{package} {record.versions[package]}" in text
    assert (record.commit or "none")[:12] in text


def test_a_run_that_raised_is_on_the_page_as_an_error(make, tmp_path):
    html = measured_page([make("alpha", run='raise RuntimeError("<broken>")')], tmp_path)
    page = Page(html)
    assert "RuntimeError: <broken>" in page.text
    assert "1 experiments, 0 verdicts: 1 error" in page.text
    assert "No picture." in page.text
    assert page.all("img") == []


def test_what_a_claim_contains_is_text(make, tmp_path):
    claim = "a < b & <script>alert(1)</script> \\'x\\'"
    alpha = make("alpha", verdict=f"return [identity('{claim}', 1.0, 1.0)]", claim="x <b> & y")
    html = measured_page([alpha], tmp_path)
    page = Page(html)
    assert page.all("script") == page.all("b") == []
    assert "a < b & <script>alert(1)</script> 'x'" in page.text
    assert "x <b> & y" in page.text


def test_a_page_without_results_says_so(make, tmp_path):
    make("alpha")
    html = measured_page([], tmp_path)
    assert "0 experiments, 0 verdicts: none" in Page(html).text


@pytest.mark.parametrize(
    ("tags", "title"),
    [
        (("S0.0",), "Neuron and perceptron"),
        (("S0.10",), "Neuron and perceptron"),
        (("S0.11",), "Networks and approximation"),
        (("S0.20",), "Activation functions"),
        (("S0.41", "S3.4"), "Losses, regularization and optimization"),
        (("S0.49",), "Theory of deep networks"),
        (("S0.72",), "Theory of deep networks"),
        (("S0.44-48",), "Losses, regularization and optimization"),
        (("S1.22",), "Architectures and expressive power"),
        (("S2.25", "S0.1"), "Learning and generalization"),
        (("S3.9",), "Training by backpropagation"),
        (("S4.10",), "Worked examples"),
        ((), "Other measurements"),
        (("S9.1",), "Other measurements"),
    ],
)
def test_the_first_tag_chooses_the_chapter(tags, title):
    assert report.chapter(catalog.Experiment("x", "", "", tags)) == title


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (834.0, "834"),
        (266610.0, "266610"),
        (-0.0106036, "-0.0106036"),
        (0.6522626807, "0.652263"),
        (9.99e-5, "9.99e-05"),
        (3.14159e-16, "3.14e-16"),
        (1.5e7, "1.50e+07"),
        (0.0, "0"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_short(value, text):
    assert report.number(value) == text


def test_an_interval_is_shown_beside_its_value():
    shown = report.measured(Verdict("x", 0.0, 0.25, (-math.inf, 1 / 3), "holds"))
    assert shown == "0.25 [-∞, 0.3333]"
    assert report.measured(Verdict("x", 0.0, 0.25, None, "holds")) == "0.25"
    assert report.measured(Verdict("x", 0.0, 0.25, (0.25, 0.25), "holds")) == "0.25"


def test_pictures_are_drawn_in_one_style(make, tmp_path):
    alpha = make("alpha", plot='axes.plot([0, 1], [0, 1])\naxes.set_xlabel("width (units)")')
    record = perform(alpha, "smoke")
    image = pixels(pictures.draw(alpha.load(), record, tmp_path).read_bytes())
    assert image.shape[1] == 1020
    assert (image[0, 0] == 255).all()
    blue = [int(pictures.COLORS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(image - blue).sum(-1) < 10).sum() > 500  # the line, in the first color


def test_panels_come_as_an_array_and_labels_become_a_legend(make, tmp_path):
    two = make(
        "two",
        constants="PANELS = (1, 2)",
        plot="""
            left, right = axes
            assert axes.shape == (2,)
            left.plot([0, 1])
            right.plot([0, 1], label="labeled")
        """,
    )
    image = pixels(pictures.draw(two.load(), perform(two, "smoke"), tmp_path).read_bytes())
    assert image.shape[1] == 2 * 735
    seen = make(
        "seen",
        plot="""
            axes.plot([0, 1], label="labeled")
            axes.legend = lambda: SEEN.append(1)
        """,
        constants="SEEN = []",
    )
    pictures.draw(seen.load(), perform(seen, "smoke"), tmp_path)
    assert seen.load().SEEN == [1]


def test_a_picture_of_a_stored_run_is_that_of_the_run(make, tmp_path):
    alpha = make("alpha", plot='axes.plot(metrics["one"]); axes.set_title(str(config))')
    record = perform(alpha, "smoke")
    drawn = pictures.draw(alpha.load(), record, tmp_path / "now").read_bytes()
    stored = records.load(records.save(record, tmp_path))
    again = pictures.draw(alpha.load(), stored, tmp_path / "later").read_bytes()
    assert np.array_equal(pixels(drawn), pixels(again))


def test_what_cannot_be_drawn_is_refused(make, tmp_path):
    alpha = make("alpha", run="raise RuntimeError")
    with pytest.raises(UnusableRecord, match="alpha: no metrics, as the run raised"):
        pictures.draw(alpha.load(), perform(alpha, "smoke"), tmp_path)
    beta = make("beta")
    record = perform(beta, "smoke")
    record.config["old_name"] = 3
    with pytest.raises(UnusableRecord, match=r"its Config has changed \(.*old_name"):
        pictures.draw(beta.load(), record, tmp_path)
    assert list(tmp_path.glob("*.png")) == []
