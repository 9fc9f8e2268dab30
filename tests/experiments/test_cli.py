import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from experiments import display, records
from experiments.__main__ import FAILED, INTERRUPTED, MISUSED, SUCCEEDED, main

ROOT = Path(__file__).parents[2]
FAILS = 'return [identity("one is two", 2.0, 1.0)]'
INCONCLUSIVE = """
    from experiments.verdicts import statistical
    return [statistical("few", 1.0, [1.0, 1.1])]
"""


@pytest.fixture
def run(tmp_path, capsys):
    """run(*words) -> (exit code, standard output, standard error), with results in tmp_path."""

    def run(*words):
        code = main([*words, "--results", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_tour_runs_everything_at_quick_scale(make, run, tmp_path):
    make("beta", plot="axes.plot([0, 1])")
    make("alpha")
    code, out, err = run()
    assert (code, err) == (SUCCEEDED, "")
    alpha, beta, _, head, first, second, _, counts, page = out.splitlines()
    assert alpha.startswith("holds         alpha")
    assert beta.startswith("holds         beta")
    assert alpha.endswith("1 of 1 verdicts hold")
    assert head.split() == ["verdict", "experiment", "claim", "predicted", "measured"]
    assert first.split() == ["holds", "alpha", "one", "1", "1"]
    assert second.split() == ["holds", "beta", "one", "1", "1"]
    assert counts == "holds 2, fails 0, inconclusive 0, error 0"
    assert page == str(tmp_path / "index.html")
    files = {path.name for path in tmp_path.iterdir()} - {"made"}
    assert files == {"index.html", "alpha.json", "alpha.png", "beta.json", "beta.png"}
    assert records.load(tmp_path / "alpha.json").scale == "quick"


@pytest.mark.parametrize(("scale", "n"), [("smoke", 1), ("quick", 3), ("paper", 100)])
def test_a_scale_chooses_the_config(make, run, tmp_path, scale, n):
    make("alpha")
    make("beta")
    assert run("run", "alpha", "--scale", scale)[0] == SUCCEEDED
    record = records.load(tmp_path / "alpha.json")
    assert (record.scale, record.config["n"], record.metrics["one"].size) == (scale, n, n)
    assert not (tmp_path / "beta.json").exists()


@pytest.mark.parametrize("order", [0, 1])
def test_fields_become_flags(make, run, tmp_path, order):
    make("alpha")
    flags = ["--n", "7", "--sizes", "4", "5", "6"], ["--scale", "smoke"]
    words = [word for group in (flags[order], flags[1 - order]) for word in group]
    assert run("run", "alpha", *words)[0] == SUCCEEDED
    record = records.load(tmp_path / "alpha.json")
    assert record.scale == "custom"
    assert record.config == {"n": 7, "sizes": (4, 5, 6)}


def test_fields_left_out_are_those_of_the_scale(make, run, tmp_path):
    make("alpha")
    run("run", "--scale", "paper", "alpha", "--sizes", "9")
    assert records.load(tmp_path / "alpha.json").config == {"n": 100, "sizes": (9,)}


def test_names_are_listed_with_their_claims(make, run):
    make("alpha", claim="One is one.")
    make("longer_name", claim="Two is two.")
    code, out, _ = run("list")
    assert code == SUCCEEDED
    assert out == "alpha        One is one.\nlonger_name  Two is two.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "alhpa"], "unknown experiment 'alhpa'; did you mean alpha?"),
        (["run", "beta", "alhpa"], "unknown experiment 'alhpa'; did you mean alpha?"),
        (["plot", "bet"], "unknown experiment 'bet'; did you mean beta?"),
        (["run", "alpha", "--scale", "smok"], "unknown scale 'smok'; did you mean smoke?"),
        (["--scale", "big"], "unknown scale 'big'; known: smoke, quick, paper"),
        (["--scal", "smoke"], "unknown option '--scal'; did you mean --scale?"),
        (["lst"], "unknown command 'lst'; did you mean list?"),
        (["alpha"], "alpha is an experiment; write: python -m experiments run alpha"),
        (["run"], "run needs a NAME; python -m experiments list shows them"),
        (["plot"], "plot needs a NAME"),
        (["list", "alpha"], "list takes no names, got 'alpha'"),
        (["report", "alpha"], "report takes no names, got 'alpha'"),
        (["run", "alpha", "beta", "--n", "3"], "--n is a field of one experiment, but 2 are named"),
        (["plot", "alpha", "--n", "3"], "unknown option '--n'"),
        (["plot", "alpha"], "alpha.json does not exist; python -m experiments run alpha writes it"),
    ],
)
def test_a_wrong_command_line_is_answered_with_the_right_one(make, run, tmp_path, words, message):
    make("alpha", run="raise SystemError('must not run')")
    make("beta")
    code, out, err = run(*words)
    assert (code, out) == (MISUSED, "")
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"made"}


@pytest.mark.parametrize("flags", [["--m", "3"], ["--n", "many"], ["--sizes", "1", "x"]])
def test_a_field_that_is_none_or_a_wrong_value_is_an_error(make, run, capsys, flags):
    make("alpha", run="raise SystemError('must not run')")
    with pytest.raises(SystemExit) as exit_:
        run("run", "alpha", *flags)
    captured = capsys.readouterr()
    assert exit_.value.code == MISUSED
    assert flags[0] in captured.err
    assert "Traceback" not in captured.err


def test_help_explains_commands_exit_codes_and_fields(make, run, capsys):
    make("alpha", run="raise SystemError('must not run')")
    for words in (["--help"], ["-h"], ["run", "--help"], ["list", "-h"]):
        code, out, _ = run(*words)
        assert code == SUCCEEDED
        assert "Exit code: 0 if nothing failed; 1 if a verdict fails" in out
    with pytest.raises(SystemExit) as exit_:
        run("run", "alpha", "--help")
    out = capsys.readouterr().out
    assert exit_.value.code in (0, None)
    assert "--n" in out
    assert "--sizes" in out
    assert "One is one." in out


@pytest.mark.parametrize(
    ("verdict", "code", "status"), [(FAILS, FAILED, "fails"), (INCONCLUSIVE, 0, "inconclusive")]
)
def test_the_exit_code_tells_of_failures(make, run, verdict, code, status):
    make("alpha", verdict=verdict)
    make("beta")
    found, out, _ = run()
    assert found == code
    assert out.splitlines()[0].startswith(f"{status:<12}  alpha")
    assert out.splitlines()[1].startswith("holds         beta")
    assert f"{status} 1" in out


def test_why_a_verdict_does_not_hold_is_shown(make, run):
    make("alpha", verdict=FAILS)
    assert "relative error 5.0e-01; tolerance 1e-10" in run()[1]


def test_an_experiment_that_raises_does_not_stop_the_tour(make, run, tmp_path):
    make("alpha", run="raise RuntimeError('broken [bold]')")
    make("beta")
    make("gamma", plot="raise RuntimeError('no picture')")
    code, out, err = run()
    assert code == FAILED
    alpha, beta, gamma = out.splitlines()[:3]
    assert alpha.startswith("error         alpha")
    assert alpha.endswith("RuntimeError: broken [bold]")
    assert beta.startswith("holds         beta")
    assert gamma.startswith("error         gamma")
    assert gamma.endswith("RuntimeError: no picture")
    assert "holds 2, fails 0, inconclusive 0, error 2" in out
    assert err.count("Traceback") == 2
    # What gamma measured is not lost.
    assert records.load(tmp_path / "gamma.json").status == "holds"
    assert records.load(tmp_path / "alpha.json").status == "error"


def test_an_error_replaces_an_old_result(make, run, tmp_path):
    make("alpha")
    run()
    assert (tmp_path / "alpha.png").exists()
    make("alpha", run="raise RuntimeError('broken')")
    run()
    assert not (tmp_path / "alpha.png").exists()
    assert "RuntimeError: broken" in (tmp_path / "index.html").read_text()


def test_ctrl_c_keeps_what_is_finished(make, run, tmp_path):
    make("alpha")
    make("beta", run="import signal; signal.raise_signal(signal.SIGINT)")
    make("gamma")
    code, out, _ = run()
    assert code == INTERRUPTED
    assert out.splitlines()[1] == "interrupted"
    assert "holds 1, fails 0" in out
    page = (tmp_path / "index.html").read_text()
    assert 'id="alpha"' in page
    assert not (tmp_path / "beta.json").exists()
    assert not (tmp_path / "gamma.json").exists()


def test_a_picture_is_drawn_again_without_measuring_again(make, run, tmp_path):
    make("alpha")
    run()
    png = tmp_path / "alpha.png"
    stored, first = (tmp_path / "alpha.json").read_bytes(), png.read_bytes()
    png.unlink()
    make("alpha", run="raise SystemError('must not run')")
    code, out, _ = run("plot", "alpha")
    assert code == SUCCEEDED
    assert out.splitlines() == [str(png), str(tmp_path / "index.html")]
    assert png.read_bytes() == first
    assert (tmp_path / "alpha.json").read_bytes() == stored


def test_the_page_is_written_again_alone(make, run, tmp_path):
    make("alpha")
    run()
    (tmp_path / "index.html").unlink()
    make("alpha", run="raise SystemError('must not run')")
    assert run("report")[0] == SUCCEEDED
    assert 'id="alpha"' in (tmp_path / "index.html").read_text()


def test_a_torn_record_is_named(make, run, tmp_path):
    make("alpha")
    (tmp_path / "alpha.json").write_text('{"name": "alp')
    for words in (["plot", "alpha"], ["report"]):
        code, _, err = run(*words)
        assert code == FAILED
        assert err.startswith(f"error: {tmp_path / 'alpha.json'}: ")
        assert "run the experiment again" in err
        assert len(err.splitlines()) == 1


def test_the_bar_moves_on_a_terminal_and_is_absent_from_logs():
    def shown(**options):
        file = StringIO()
        console = Console(file=file, width=80, highlight=False, **options)
        with display.progress_bar(console, "alpha [1] (1 of 2)") as move:
            move(1, 4)
        return file.getvalue()

    assert shown() == ""
    assert "alpha [1] (1 of 2)" in shown(force_terminal=True)
    assert "25%" in shown(force_terminal=True)


def test_claims_are_shown_as_they_are():
    verdict = records.Verdict("[bold]x[/] [S0.57]", 1.0, 1.0, None, "holds")
    record = records.Record(
        "alpha", "quick", {}, {}, (verdict,), None, "float32", "cpu", 1.0, 0.5, None
    )
    file = StringIO()
    display.verdict_table(Console(file=file, width=80), [record])
    assert "[bold]x[/] [S0.57]" in file.getvalue()


def subprocess_run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_listing_and_mistyping_import_no_jax():
    script = (
        "import sys; from experiments.__main__ import main; main(['list']); main(['run', 'x']);"
        "print('heavy:', {'jax', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess_run("-c", script).stdout.splitlines()[-1] == "heavy: set()"


def test_the_command_works_as_written_even_on_an_ascii_log(tmp_path):
    arguments = ("-m", "experiments", "run", "worked_numbers", "--scale", "smoke")
    done = subprocess_run(*arguments, "--results", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "holds         worked_numbers" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 200
    verdicts = json.loads((tmp_path / "worked_numbers.json").read_text())["verdicts"]
    assert {v["status"] for v in verdicts} == {"holds"}
    assert (tmp_path / "index.html").exists()
