import json
import os
import subprocess
import sys
import textwrap
from io import StringIO
from pathlib import Path

import jax
import pytest
from rich.console import Console

from experiments import display, records, session
from experiments.__main__ import FAILED, INTERRUPTED, MISUSED, SUCCEEDED, main

ROOT = Path(__file__).parents[2]
FAILS = 'return [identity("one is two", 2.0, 1.0)]'
TOUR = "TOUR = Config(n=2)"
INCONCLUSIVE = """
    from experiments.verdicts import statistical
    return [statistical("few", 1.0, [1.0, 1.1])]
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """run(*words) -> (exit code, standard output, standard error), with results in tmp_path."""
    monkeypatch.setattr(session, "keep_compiled", lambda folder: None)  # for the whole process

    def run(*words):
        code = main([*words, "--results", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_tour_runs_what_has_a_scale_for_it_by_chapter(make, run, tmp_path):
    make("alpha", tags="S4.1", plot="TOUR = 3")  # a variable of a function
    make("beta", tags="S4.1", plot="axes.plot([0, 1])", constants=TOUR)
    make("gamma", tags="S0.3", constants=TOUR)
    code, out, err = run()
    assert (code, err) == (SUCCEEDED, "")
    gamma, beta, _, counts, page = out.splitlines()
    assert gamma.startswith("holds         gamma")
    assert beta.startswith("holds         beta ")
    assert beta.endswith("1 of 1 verdicts hold")
    assert counts == "holds 2, fails 0, inconclusive 0, error 0, skipped 0"
    assert page == f"open in a browser: {(tmp_path / 'index.html').as_uri()}"
    files = {path.name for path in tmp_path.iterdir()} - {"made"}
    assert files == {"index.html", "beta.json", "beta.png", "gamma.json", "gamma.png"}
    record = records.load(tmp_path / "beta.json")
    assert (record.scale, record.config["n"], record.seed) == ("tour", 2, 0)


def test_all_of_them_run_at_a_scale_and_with_a_seed(make, run, tmp_path):
    draw = 'return {"one": jnp.ones(1), "draw": jax.random.normal(key)}'
    make("beta", run=draw)
    make("alpha", run=draw)
    code, out, _ = run("run", "--all", "--scale", "smoke", "--seed", "7")
    assert code == SUCCEEDED
    assert [line.split()[1] for line in out.splitlines()[:2]] == ["alpha", "beta"]
    record = records.load(tmp_path / "beta.json")
    assert (record.scale, record.seed) == ("smoke", 7)
    assert record.metrics["draw"] == jax.random.normal(jax.random.key(7))
    assert "smoke, seed 7" in (tmp_path / "index.html").read_text()


def test_of_one_experiment_every_verdict_is_shown(make, run):
    make("alpha")
    _, _, head, first, *_ = run("run", "alpha")[1].splitlines()
    assert head.split() == ["verdict", "claim", "predicted", "measured"]
    assert first.split() == ["holds", "one", "1", "1"]


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
        (["--scale", "smoke"], "write: python -m experiments run --all --scale smoke"),
        (["run", "alpha", "--all"], "--all stands for every NAME"),
        (["--all"], "write: python -m experiments run --all"),
        (["run", "alpha", "--seed", "-1"], "--seed -1: expected a whole number from 0 to 2³² - 1"),
        (["run", "alpha", "--seed", "x"], "--seed x: expected a whole number"),
        (["run", "alpha", "--n", "0"], "--n 0: a count, or several, of at least 1 is expected"),
        (["run", "alpha", "--sizes", "2", "-1"], "--sizes (2, -1): a count, or several"),
        (["run", "alpha", "--sizes"], "--sizes (): a count, or several, of at least 1"),
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
    ("verdict", "code", "status", "told"),
    [
        (FAILS, FAILED, "fails", "alpha: one is two: predicted 2, measured 1 (relative error 5.0e"),
        (INCONCLUSIVE, 0, "inconclusive", "alpha: 1 of 1 verdicts are open"),
    ],
)
def test_the_exit_code_and_the_end_tell_of_what_does_not_hold(
    make, run, verdict, code, status, told
):
    make("alpha", verdict=verdict)
    make("beta")
    found, out, _ = run("run", "--all")
    assert found == code
    first, second, _, objection, counts, _ = out.splitlines()
    assert first.startswith(f"{status:<12}  alpha")
    assert second.startswith("holds         beta")
    assert objection.startswith(f"{status:<12}  {told}")
    assert f"{status} 1" in counts


def test_an_experiment_that_raises_does_not_stop_the_others(make, run, tmp_path):
    make("alpha", run="raise RuntimeError('broken [bold]')")
    make("beta")
    make("gamma", plot="raise RuntimeError('no picture')")
    code, out, err = run("run", "--all")
    assert code == FAILED
    alpha, beta, gamma, _, *objections, counts, _ = out.splitlines()
    assert alpha.startswith("error         alpha")
    assert alpha.endswith("RuntimeError: broken [bold]")
    assert beta.startswith("holds         beta")
    assert gamma.startswith("error         gamma")
    assert gamma.endswith("RuntimeError: no picture")
    assert objections == [
        "error         alpha: RuntimeError: broken [bold]",
        "error         gamma: RuntimeError: no picture",
    ]
    assert counts == "holds 2, fails 0, inconclusive 0, error 2, skipped 0"
    assert err.count("Traceback") == 2
    # What gamma measured is not lost.
    assert records.load(tmp_path / "gamma.json").status == "holds"
    assert records.load(tmp_path / "alpha.json").status == "error"


def test_an_experiment_without_its_data_is_skipped_in_one_line(make, run, tmp_path):
    make(
        "alpha",
        run="""
            from experiments.datasets import DataMissing
            raise DataMissing("MNIST is not there; put it here")
        """,
    )
    make("beta")
    code, out, err = run("run", "--all")
    assert (code, err) == (SUCCEEDED, "")
    first, _, _, skipped, counts, _ = out.splitlines()
    assert first.startswith("skipped       alpha")
    assert first.endswith("MNIST is not there; put it here")
    assert skipped == "skipped       alpha: MNIST is not there; put it here"
    assert counts == "holds 1, fails 0, inconclusive 0, error 0, skipped 1"
    page = (tmp_path / "index.html").read_text()
    assert '<span class="skipped">skipped</span>' in page
    assert "MNIST is not there; put it here" in page
    assert records.load(tmp_path / "alpha.json").status == "skipped"
    assert run("plot", "alpha")[0] == FAILED


def test_the_page_is_written_after_each_experiment(make, run, tmp_path):
    make("alpha")
    make(
        "beta",
        run=f"""
        from pathlib import Path
        page = Path({str(tmp_path / "index.html")!r}).read_text()
        return {{"one": jnp.full(2, float('id="alpha"' in page))}}
    """,
    )
    assert run("run", "--all")[0] == SUCCEEDED


def test_an_error_replaces_an_old_result(make, run, tmp_path):
    make("alpha")
    run("run", "alpha")
    assert (tmp_path / "alpha.png").exists()
    make("alpha", run="raise RuntimeError('broken')")
    run("run", "alpha")
    assert not (tmp_path / "alpha.png").exists()
    assert "RuntimeError: broken" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ("run", "signal.raise_signal(signal.SIGINT)"),
        ("plot", "signal.raise_signal(signal.SIGINT)"),
        # What it becomes on its way through a compiled program or a cleared object.
        (
            "run",
            """
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("from a callback") from None
        """,
        ),
    ],
)
def test_ctrl_c_keeps_what_is_finished(make, run, tmp_path, default_sigint, part, code):
    make("alpha")
    make("beta", **{part: f"import signal\n{textwrap.dedent(code)}"})
    make("gamma")
    code, out, err = run("run", "--all")
    assert (code, err) == (INTERRUPTED, "")
    assert out.splitlines()[2] == "interrupted; 1 finished"
    assert "holds 1, fails 0" in out
    page = (tmp_path / "index.html").read_text()
    assert 'id="alpha"' in page
    assert (tmp_path / "beta.json").exists() == (part == "plot")
    assert not (tmp_path / "gamma.json").exists()


DEAF = """
import hashlib, os, signal, threading
from experiments import interruption

signal.signal(signal.SIGINT, signal.default_int_handler)
interruption.PATIENCE = {patience}
with interruption.watch() as watched:
    watched.farewell = lambda: print("told")
    for when in {presses}:
        threading.Timer(when, os.kill, (os.getpid(), signal.SIGINT)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in which Python handles no signal
"""


@pytest.mark.parametrize(("patience", "presses"), [(0.2, (0.1,)), (60.0, (0.1, 0.3))])
def test_ctrl_c_ends_what_does_not_hear_it(patience, presses):
    done = subprocess_run("-c", DEAF.format(patience=patience, presses=presses))
    assert (done.returncode, done.stdout) == (INTERRUPTED, "told\n")


def test_a_picture_is_drawn_again_without_measuring_again(make, run, tmp_path):
    make("alpha")
    run("run", "alpha")
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
    run("run", "alpha")
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


def test_a_torn_record_of_another_experiment_fails_no_run(make, run, tmp_path):
    make("alpha")
    make("beta")
    (tmp_path / "alpha.json").write_text("{}")
    code, _, err = run("run", "beta")
    assert code == SUCCEEDED
    assert err.startswith(f"not on the page: {tmp_path / 'alpha.json'}: ")
    page = (tmp_path / "index.html").read_text()
    assert 'id="beta"' in page
    assert "alpha.json" in page
    assert run("run", "alpha", "beta")[::2] == (SUCCEEDED, "")


@pytest.mark.parametrize("below", ["", "below"])
@pytest.mark.parametrize("words", [["run", "alpha"], ["report"]])
def test_a_folder_that_cannot_be_written_is_an_error_before_the_run(
    make, tmp_path, capsys, words, below
):
    make("alpha", run="raise SystemError('must not run')")
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    assert main([*words, "--results", str(folder)]) == MISUSED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --results {folder}: no folder to write to (")


def test_the_bar_moves_on_a_terminal_and_is_absent_from_logs(make, monkeypatch):
    chosen = [make("alpha"), make("beta")]
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))

    def shown(**options):
        file = StringIO()
        console = Console(file=file, width=100, highlight=False, **options)
        bar = display.Progress(console, chosen)
        for name in ("alpha [1]", "beta"):
            with bar.running(name) as move:
                move(1, 4)
        return file.getvalue()

    assert shown() == ""
    text = shown(force_terminal=True)
    assert "alpha [1] (1 of 2)" in text
    assert "beta (2 of 2)" in text
    assert "25%" in text
    assert "left" in text


def test_the_time_left_is_that_of_what_is_not_done(make, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    bar = display.Progress(Console(file=StringIO(), force_terminal=True), [make("alpha")] * 4)
    assert bar.left(0.0) is None
    now[0] = 130.0
    assert bar.left(0.5) == 30.0 * 3.5 / 0.5
    with bar.running("alpha"):
        now[0] = 160.0
    assert bar.left(0.0) == 180.0
    assert bar.left(1.0) == 60.0


def test_claims_are_shown_as_they_are(tmp_path):
    verdict = records.Verdict("[bold]x[/] [S0.57]", 1.0, 1.0, None, "holds")
    record = records.Record(
        "alpha", "quick", {}, {}, (verdict,), None, "float32", "cpu", 1.0, 0.5, None
    )
    file = StringIO()
    display.ending(Console(file=file, width=80), [record], tmp_path, interrupted=False)
    assert "[bold]x[/] [S0.57]" in file.getvalue()


def subprocess_run(*arguments, **environment):
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**own, "JAX_PLATFORMS": "cpu", **environment},
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


def test_compiled_programs_are_kept(tmp_path):
    script = (
        "import jax, pathlib; from experiments import session; "
        f"session.keep_compiled(pathlib.Path({str(tmp_path)!r})); "
        # However fast this machine compiles.
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0); "
        "jax.jit(lambda x: x + 1)(1.0)"
    )
    done = subprocess_run("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert any(path.is_file() for path in tmp_path.rglob("*"))
