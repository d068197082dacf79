"""`python reproduce.py` from outside: what it prints, what it leaves, how it ends."""

import re
import shutil
import subprocess
import sys

import pytest
from tests.commands.conftest import SMALL, Checkout
from tests.contributing import EXAMPLE

from wsss.commands import engine
from wsss.commands.reproduce import main
from wsss.execution.nodes import present_cluster
from wsss.run_record import find_runs


def test_ends_with_a_verdict_and_a_report(checkout: Checkout, finished: subprocess.CompletedProcess[str]) -> None:
    assert "not comparable" in finished.stdout and "ours is on shapes" in finished.stdout
    (record,) = find_runs(checkout.home)
    assert record.status == "finished" and record.executed == 8
    folder = checkout.home / "runs" / record.run_id
    assert str(folder / "report" / "index.html") in finished.stdout
    assert (folder / "report" / "index.html").is_file() and (folder / "report" / "results.csv").is_file()
    assert list((folder / "report" / "figures").glob("grid_*.png")), "no image grid"
    assert "mlflow ui --backend-store-uri" in finished.stdout
    assert f"wsss explain {record.run_id} cam/miou_train" in finished.stdout


def test_job_log_has_plain_lines(finished: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^\d\d:\d\d:\d\d cam: started, 12 images$", finished.stdout, flags=re.MULTILINE)
    assert "\x1b" not in finished.stdout


@pytest.mark.usefixtures("finished")
def test_second_time_computes_nothing_and_other_seeds_stand_beside(checkout: Checkout) -> None:
    before = {record.run_id for record in find_runs(checkout.home)}
    done = checkout.reproduce("--method", EXAMPLE, "--seeds", "3,4", *SMALL)
    assert done.returncode == 0, done.stderr
    new = [record for record in find_runs(checkout.home) if record.run_id not in before]
    assert sorted(record.seed for record in new) == [3, 4]
    assert [record.executed for record in new] == [0, 0]
    assert "seed 3" in done.stdout and "seed 4" in done.stdout and "spread" in done.stdout


@pytest.mark.usefixtures("finished")
def test_several_methods_run_one_after_another_and_stand_side_by_side(checkout: Checkout) -> None:
    """A second method of the same stages under another name: the store has them, and both are told to be equal."""
    folder, other = checkout.root / "methods" / "wsss_methods", f"{EXAMPLE}_again"
    shutil.copytree(folder / EXAMPLE, folder / other, ignore=shutil.ignore_patterns("__pycache__"))
    before = {record.run_id for record in find_runs(checkout.home)}
    try:
        for path in (folder / other).glob("*.py"):
            path.write_text(path.read_text().replace(f'"{EXAMPLE}"', f'"{other}"'))
        done = checkout.reproduce("--method", f"{EXAMPLE},{other}", *SMALL)
        assert done.returncode == 0, done.stderr
        new = [record for record in find_runs(checkout.home) if record.run_id not in before]
        assert [(record.method, record.executed) for record in new] == [(EXAMPLE, 0), (other, 0)]
        *_, table = done.stdout.partition("Comparison")
        assert re.search(rf"{other} demo.*\(\+0\.00: \+0\.00 to", table.replace("\n", " ")), table
        assert "all background" in table and "not told apart" in table
        assert f"wsss compare {new[0].run_id} {new[1].run_id}" in table

        unknown = checkout.reproduce("--method", f"{EXAMPLE},{EXAMPLE}_agian", *SMALL)
        assert unknown.returncode == 2 and f"did you mean '{other}'?" in unknown.stderr
        assert unknown.stdout == "", "the second method is looked at before the first one runs"
    finally:
        shutil.rmtree(folder / other)
        for record in find_runs(checkout.home):
            if record.run_id not in before:
                shutil.rmtree(checkout.home / "runs" / record.run_id)


@pytest.mark.usefixtures("finished")
def test_dry_run_shows_the_plan_and_runs_nothing(
    checkout: Checkout, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(find_runs(checkout.home))
    assert main(["--method", example, "--dry-run", "pseudo_label.sem_seg_bg_thres=0.45", *SMALL]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert " cached " in lines["cam"] and " cached " in lines["cam_score"]
    assert "to compute" in lines["cam_evaluation"]
    assert "4 of 8 stages to compute" in text
    assert len(find_runs(checkout.home)) == before


def test_dry_run_refuses_what_can_never_run(
    example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--method", example, "--dry-run", "--until", "cam_evalution", *SMALL]) == 1
    assert "there is no stage 'cam_evalution'; did you mean 'cam_evaluation'?" in capsys.readouterr().err
    monkeypatch.setattr(engine, "cluster_now", lambda: present_cluster([]))
    assert main(["--method", example, "--dry-run", "cam.width=0.7", *SMALL]) == 1
    assert "0 fit at a time on no node with CPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--method", "center_prio"), ("there is no method 'center_prio'", "did you mean 'center_prior'?")),
        (("--method", EXAMPLE, "--recipe", "dmo"), ("no recipe 'dmo'", "did you mean 'demo'?")),
        (("--method", EXAMPLE, "--recipe", "nowhere/mine.yaml"), ("the recipe file does not exist",)),
        (
            ("cam.widht=1", "--method", EXAMPLE, "seed=-1", "demo"),
            ("3 problems", "did you mean 'cam.width'?", "seed = -1", "'demo' is not of the form key=value"),
        ),
        (("--method", EXAMPLE, "--seeds", "0,0"), ("seeds are distinct",)),
        (("--method", EXAMPLE, "--seeds", "99999999999"), ("seed = 99999999999: must be integer in [0, 2147483647]",)),
        (("--method", EXAMPLE, "seed=99999999999"), ("must be integer in [0, 2147483647]",)),
        (("--method", EXAMPLE, "--seeds=-1"), ("seed = -1: must be integer in [0, 2147483647]",)),
        (("--method", EXAMPLE, "--seeds", "9" * 5000), ("(5000 characters)' is not a list of integers",)),
        (("--method", EXAMPLE, "--sedes", "1"), ("--sedes", "did you mean '--seeds'?")),
        (("--method", EXAMPLE, "--home", "/dev/null/x"), ("/dev/null is a file, not a folder", "--home")),
        (("--method", EXAMPLE, "--store", "x" * 5000), ("the path is too long", "--store")),
    ],
)
def test_wrong_usage_is_told_at_once(
    example: str, arguments: tuple[str, ...], messages: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:  # how argparse refuses
        code = stop.code
    assert code == 2
    told = capsys.readouterr().err
    assert [message for message in messages if message not in told] == []


def test_a_failed_run_says_what_where_and_what_to_do(
    example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", example, "dataset.name=voc2012", "dataset.root=nowhere"]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert told.count("the folder of the data set is missing") == 1
    assert "where:" in told and "do:" in told and "Traceback" not in told
    monkeypatch.setenv("WSSS_DEBUG", "1")
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback() -> None:
    code = (
        "import sys\n"
        "from wsss.commands.failures import exit_code_of\n"
        "def lines():\n"
        "    for _ in range(100_000):\n"
        "        print('a line of a table')\n"
        "    return 0\n"
        "sys.exit(exit_code_of(lines))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "a line of a table\n"
    process.stdout.close()  # what `head -1` does
    assert process.wait(60) == 1 and process.stderr.read() == ""


def test_interruption_says_that_nothing_is_lost_and_hears_no_further_one() -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "from wsss.commands.failures import exit_code_of\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a script's background has switched off
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "def stopped():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(exit_code_of(stopped))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "the same command continues" in done.stderr and "Traceback" not in done.stderr


def test_an_environment_without_the_packages_is_told_what_to_do(checkout: Checkout) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "reproduce.py", "--method", EXAMPLE], cwd=checkout.root, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is not installed" in done.stderr and "make reproduce" in done.stderr and "Traceback" not in done.stderr
