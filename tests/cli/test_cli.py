import json
import re
import shlex
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from equipoise import MisplacedForkWarning
from equipoise.cli import app
from equipoise.cli import commands as cli
from equipoise.cli.progress_bars import Display
from equipoise.comparison import runner as runner_module
from equipoise.comparison.results import Throughput
from equipoise.data.sets import census_income, complete_journey, funnel
from equipoise.errors import DataError
from equipoise.training import METHODS

FUNNEL = ["--data", "funnel", "--rows", "1500", "--batch-size", "256", "--epochs", "1"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 60)
    measured = Throughput(ratio=1.0, low=0.9, high=1.1, pairs=3)
    monkeypatch.setattr(runner_module, "throughput_ratio", lambda *_: measured)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_compare_ends_with_a_table_and_where_the_report_lies(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run("compare", *FUNNEL, "--methods", "equal,multibalance:beta=0.1,direction=gram",
                       "--seeds", "2", "--rate", "equal=0.01", "--jobs", "1", "--out", str(out))  # fmt: skip
    assert code == 0
    assert "NE gain" in output
    assert str(out / "report.html") in output.replace("\n", "")
    assert (out / "report.html").stat().st_size > 100_000
    written = json.loads((out / "plan.json").read_text())
    assert [entry["name"] for entry in written["methods"]] == [
        "equal",
        "multibalance:beta=0.1,direction=gram",
    ]
    assert written["rates"]["equal"] == 0.01
    table = [line for line in output.splitlines() if line.startswith(("┃", "│"))]
    assert table
    assert max(map(len, table)) <= 60

    (out / "report.html").unlink()
    code, output = run("report", str(out))
    assert code == 0
    assert (out / "report.html").is_file()


def test_a_tuned_comparison_says_how_to_train_at_its_rates(tmp_path: Path) -> None:
    out = tmp_path / "compared"
    code, output = run("compare", *FUNNEL, "--methods", "equal", "--seeds", "1", "--jobs", "1", "--tune",
                       "--grid", "0.02", "--decay-grid", "0.5", "--out", str(out))  # fmt: skip
    assert code == 0
    line = " ".join(output.split("Train a method at its tuned rate: ")[1].split()).replace("METHOD", "equal")
    code, _ = run(*shlex.split(line)[1:], "--out", str(tmp_path / "run"))
    assert code == 0
    written = json.loads((tmp_path / "run/run.json").read_text())
    assert (written["lr"], written["table_decay"], written["steps"]) == (0.02, 0.5, 4)


def test_train_leaves_a_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    words = ["train", *FUNNEL, "--method", "equal", "--lr", "0.01", "--out", str(tmp_path)]
    code, output = run(*words)
    assert code == 0
    assert "conversion" in output
    first = json.loads((tmp_path / "run.json").read_text())
    assert first["lr"] == 0.01
    assert run(*words, "--resume")[0] == 0
    assert json.loads((tmp_path / "run.json").read_text()) == first
    code, output = run(*words)
    assert "Starting over; earlier checkpoints are moved to " in output
    assert (tmp_path / "checkpoint.before").is_dir()
    code, output = run(*words, "--resume", "--seed", "1")
    assert code == 2
    assert "seed: 0 there, 1 here" in output


def test_a_config_file_states_settings_and_options_win(tmp_path: Path) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text("data: funnel\nseeds: 4\nbatch_size: 256\nmethods: [equal]\ndata_options: {rows: 1500}\n")
    code, _ = run("compare", str(config), "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out"))
    assert code == 0
    written = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (written["seeds"], written["batch_size"], written["rows"]["train"]) == ([0], 256, 1050)


def test_methods_are_listed_in_sixty_columns() -> None:
    code, output = run("methods")
    assert code == 0
    for name, method in METHODS.usable().items():
        assert name in output
        assert method.summary.split()[0] in output
    assert "update_every" in output
    assert max(map(len, output.splitlines())) <= 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", *FUNNEL, "--methods", "equal,pcgard"], "found 'pcgard'; did you mean 'pcgrad'"),
        (["compare", *FUNNEL, "--methods", "multibalance:beta=-1"], "beta must be finite|at least 0"),
        (["compare", *FUNNEL, "--model", "dlrm"], "Expected a model out of shared-bottom, mmoe, ple.* found 'dlrm'"),
        (["compare", "--data", "movielens"], "Expected a data set out of .* found 'movielens'"),
        (["compare", *FUNNEL, "--loss-scale", "share=23"], "tasks out of click.* found share"),
        (["compare", *FUNNEL, "--loss-scale", "like=much"], "loss_scale.like: .* found 'much'"),
        (["compare", *FUNNEL, "--loss-scale", "like"], "expected KEY=VALUE, found 'like'"),
        (["compare", *FUNNEL, "--data-option", "row=5"], "takes the options .* found row"),
        (["compare", *FUNNEL, "--seeds", "0"], "seeds: input should be greater than or equal to 1; found 0"),
        (["compare", *FUNNEL, "--batch-size", "5000"], "at least one batch of 5000 rows, found 1050"),
        (["compare", "absent.yaml"], "Expected a YAML file at absent.yaml"),
        (["train", *FUNNEL, "--lr", "0"], "lr: input should be greater than 0; found 0.0"),
        (["train", *FUNNEL, "--resume"], "Expected a checkpoint at .* found none"),
        (["train", *FUNNEL, "--device", "abacus"], "Expected a device.* found 'abacus'"),
        (["report", "nowhere"], "Expected the folder of a comparison"),
        (["data", "fetch", "imagenet"], "imagenet"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_message_code_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run(*words)
    assert code == 2
    assert re.search(message, re.sub(r"\s*[│\n]\s*", " ", output)), output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_type_in_a_config_is_named(tmp_path: Path) -> None:
    config = tmp_path / "plan.yaml"
    config.write_text("epochs: two\n")
    code, output = run("compare", str(config), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "epochs: input should be a valid integer; found 'two'" in output
    assert not (tmp_path / "out").exists()


def test_square_brackets_in_a_message_are_shown(tmp_path: Path) -> None:
    """Elsewhere the console reads square brackets as markup."""
    config = tmp_path / "plan.yaml"
    config.write_text("methods: '[equal]'\n")
    assert "found '[equal]'" in run("compare", str(config))[1]


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("equipoise.comparison.runner.run_comparison", interrupted)
    code, output = run("compare", *FUNNEL, "--out", str(tmp_path))
    assert code == 130
    assert f"Run the same command again to go on from {tmp_path}" in output.replace("\n", "")


def test_sigterm_ends_a_comparison_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "equipoise.comparison.runner.run_comparison", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    before = signal.getsignal(signal.SIGTERM)
    code, output = run("compare", *FUNNEL, "--out", str(tmp_path))
    assert code == 143
    assert f"Stopped; finished work is kept. Run the same command again to go on from {tmp_path}" in output
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_data_file_that_is_gone_is_named_with_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["train", *FUNNEL, "--method", "equal", "--out", str(tmp_path)]
    assert run(*words)[0] == 0

    def gone(rows: int) -> None:
        del rows
        raise DataError("Expected rows.parquet, found nothing.")

    monkeypatch.setattr(funnel, "SOURCE", replace(funnel.SOURCE, load=gone))
    code, output = run(*words, "--resume")
    assert code == 2
    assert "Expected rows.parquet, found nothing. Go on from step-" in output


def test_python_m_equipoise_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", "methods"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "multibalance" in done.stdout
    assert "beta*" in done.stdout
    assert "* the option that --tune-trials tunes" in done.stdout


def test_data_build_says_what_it_built(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def build(name: str, **options: object) -> object:
        asked.update(options, name=name)
        return funnel.load(rows=1000)

    monkeypatch.setattr("equipoise.data.load", build)
    code, output = run("data", "build", "complete-journey", "--rows", "20000")
    assert (code, asked["name"], asked["rows"]) == (0, "complete-journey", 20_000)
    assert "700 train, 100 validation, 200 test rows" in output


def test_data_build_full_streams_into_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(complete_journey, "stream_all", lambda out, **_: [out / "week-09.parquet"])
    code, output = run("data", "build", "complete-journey", "--full", "--out", str(tmp_path))
    assert code == 0
    assert "1 files in" in output


def test_data_fetch_says_where_the_files_lie_or_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(census_income, "fetch", lambda: tmp_path)
    code, output = run("data", "fetch", "census-income")
    assert code == 0
    assert "Verified:" in output

    def offline() -> Path:
        raise DataError("Could not download it. Try again with a network.")

    monkeypatch.setattr(census_income, "fetch", offline)
    code, output = run("data", "fetch", "census-income")
    assert code == 2
    assert "Try again with a network" in output


def test_workers_end_with_a_main_process_that_is_killed(tmp_path: Path) -> None:
    words = [
        "compare",
        *FUNNEL[:-1],
        "40",
        "--methods",
        "equal",
        "--seeds",
        "50",
        "--jobs",
        "2",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "equipoise", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert any("mean validation NE" in line for line in process.stdout)  # so the workers are at work
        process.kill()
        process.communicate(timeout=60)  # ends when nobody is left who could write


def test_train_takes_the_method_of_its_settings_file(tmp_path: Path) -> None:
    settings, out = tmp_path / "settings.yaml", tmp_path / "run"
    words = ["train", str(settings), "--out", str(out)]
    settings.write_text("data: funnel\ndata_options: {rows: 1000}\nbatch_size: 64\nmethod: equal\n")
    assert run(*words, "--lr", "0.5")[0] == 0
    done = json.loads((out / "run.json").read_text())
    assert (done["method"], done["lr"]) == ("equal", 0.5)
    assert run(*words, "--method", "pub")[0] == 0
    assert json.loads((out / "run.json").read_text())["method"] == "pub"


def test_a_settings_file_cannot_make_a_run_write_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    settings = tmp_path / "settings.yaml"
    for line in (
        f"out: {elsewhere}", f"checkpoint: {elsewhere}", f"data: {elsewhere}", f"model: {elsewhere}",
        f"data_options: {{cache_dir: {elsewhere}}}", f"data_options: {{folder: {elsewhere}}}",
        f"model_options: {{out: {elsewhere}}}", f"methods: ['multibalance:out={elsewhere}']",
        f"method: 'multibalance:out={elsewhere}'",
    ):  # fmt: skip
        settings.write_text(line)
        commands = {"method": ["train"], "methods": ["compare"]}.get(line.partition(":")[0], ["compare", "train"])
        for command in commands:
            assert run(command, str(settings), "--out", str(tmp_path / "run"))[0] == 2, line
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_sigterm_ends_a_training_with_a_checkpoint_and_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(display: Display, job: object, done: int, total: int, left: float | None) -> None:
        del display, job, total, left
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Display, "steps_done", told)
    words = ["train", *FUNNEL, "--method", "equal", "--out", str(tmp_path / "a folder")]
    monkeypatch.setattr(sys, "argv", ["equipoise", *words])
    code, output = run(*words)
    assert code == 143
    assert "Stopped after step 2, which a checkpoint holds. Go on from step-2 with: equipoise train" in output
    printed = shlex.split(output[output.index("equipoise train") :])
    assert printed[1:] == [*words, "--resume"]
    assert run(*printed[1:])[0] == 0


def test_a_training_that_diverges_ends_with_a_message_and_a_record_that_says_so(tmp_path: Path) -> None:
    words = ["train", *FUNNEL, "--method", "equal", "--out", str(tmp_path)]
    assert run(*words)[0] == 0
    code, output = run(*words, "--lr", "1e30")
    assert code == 1
    assert "Error: A prediction is not finite after step 1: lower the learning rate" in output
    assert "Traceback" not in output
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "diverged"
    assert json.loads((tmp_path / "run.before.json").read_text())["status"] == "ok"


def test_square_brackets_in_a_path_are_no_markup(tmp_path: Path) -> None:
    for name in ("w[/red]", "w[bold]x"):
        code, output = run("train", *FUNNEL, "--method", "equal", "--out", str(tmp_path / name))
        assert code == 0
        assert f"Run and checkpoint: {tmp_path / name}\n" in output


def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Display, "steps_done", lambda *_: pytest.fail("a step was made"))
    (tmp_path / "file").write_text("")
    for command, out in (("train", "file"), ("train", "file/deeper"), ("compare", "file")):
        code, output = run(command, *FUNNEL, "--out", str(tmp_path / out))
        assert code == 2
        assert f"--out: expected a folder, or none yet, found the file {tmp_path / 'file'}: name another." in output
    monkeypatch.setattr("os.access", lambda *_: False)
    code, output = run("train", *FUNNEL, "--out", str(tmp_path / "out"))
    assert code == 2
    assert f"--out: expected a folder that can be written to, found {tmp_path}: name another." in output


def test_compare_refuses_what_only_train_can_do(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("data: funnel\nsharding: fsdp\ncheckpoint_every: 5\n")
    code, output = run("compare", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "in one process and without checkpoints, found sharding and checkpoint_every in the settings" in output
    assert not (tmp_path / "out").exists()


def test_sigterm_before_the_first_step_says_how_to_begin_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("equipoise.comparison.runner.train_into", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    code, output = run("train", *FUNNEL, "--out", str(tmp_path))
    assert code == 143
    assert "There is no checkpoint yet. Begin again with: " in output


def test_compare_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    code, output = run("compare", *FUNNEL, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "run it without torchrun" in output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "multibalance:gamma=x"], "gamma must be a number, found 'x'"),
        (["--method", "multibalance:overlap=3"], "overlap must be true or false, found 3"),
        (["--method", "pub:update_every=1.5"], "update_every must be a whole number, found 1.5"),
        (["--method", "multibalance:clip=x"], "clip must be above 1"),
        (["--device", "meta"], "Expected a device that computes, found 'meta'"),
        (["--model-option", "embedding_dim=100000000000000"], "Storage size calculation overflowed"),
        (["--data-option", "id_fields=3"], "id_fields should be at least one IdField, found 3"),
        (["--seed", "99999999999999999999"], "8796093022208"),
        (["--rank-timeout", "inf"], "1000000"),
    ],
)
def test_a_value_that_cannot_be_is_named(tmp_path: Path, words: list[str], message: str) -> None:
    code, output = run("train", *FUNNEL, *words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in " ".join(output.split())
    assert not any(tmp_path.iterdir())


def test_a_process_of_several_without_torchruns_variables_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, output = run("train", *FUNNEL, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "Found WORLD_SIZE=2, but not RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in " ".join(output.split())


def test_under_torchrun_the_command_that_goes_on_is_torchruns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launch = {"RUN_ID": "a", "MAX_RESTARTS": "0"}
    for name, value in launch.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in {"LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["equipoise", "train", "--resume"])
    begin = "Begin again with: torchrun --nproc-per-node 4 -m equipoise train"
    assert cli._how_to_resume(tmp_path) == f"There is no checkpoint yet. {begin}"
    (tmp_path / "checkpoint" / "step-7").mkdir(parents=True)
    assert cli._how_to_resume(tmp_path).endswith("-m equipoise train --resume")
    several = {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "a-host", "MASTER_PORT": "29500"}
    for name, value in (several | {"TORCHELASTIC_MAX_RESTARTS": "3"}).items():
        monkeypatch.setenv(name, value)
    assert cli._how_to_resume(tmp_path).endswith(
        "torchrun --nnodes 2 --node-rank 1 --master-addr a-host --master-port 29500 --nproc-per-node 4 "
        "--max-restarts 3 -m equipoise train --resume"
    )


def test_a_rank_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    variables = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, output = run("train", *FUNNEL, "--out", str(tmp_path / "out"), "--rank-timeout", "1")
    assert code == 1
    said = " ".join(output.split())
    assert "Error: Rank 0 has waited 1 s for rank 1 of 2 to start. See what that process said last." in said
    assert "Begin again with: " in said


WITHOUT_MEMORY = """
import sys
import torch
from equipoise.cli import commands as cli
from equipoise.training import Learner

step, steps = Learner.step, []

def greedy(learner, batch):
    steps.append(None)
    if len(steps) == 3 and "--resume" not in sys.argv:
        torch.empty(2**60)  # more than any machine gives
    return step(learner, batch)

Learner.step = greedy
cli.main()
"""


def test_a_process_that_is_given_no_more_memory_says_so(tmp_path: Path) -> None:
    words = ["train", *FUNNEL, "--method", "equal", "--out", str(tmp_path / "run")]
    script = tmp_path / "without_memory.py"
    script.write_text(WITHOUT_MEMORY)
    command = [sys.executable, script, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Error: Out of memory (" in done.stderr
    assert "A checkpoint holds step 2, the last whole one. Go on from step-2 with: python -m equipoise" in done.stderr
    assert "Traceback" not in done.stderr
    printed = shlex.split(done.stderr[done.stderr.index("equipoise train") :])
    assert subprocess.run([sys.executable, script, *printed[1:]], capture_output=True, check=False).returncode == 0


ON_A_FULL_DISK = """
import resource
from equipoise.cli import commands as cli
from equipoise.training import Learner

step = Learner.step

def filling(learner, batch):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return step(learner, batch)

Learner.step = filling
cli.main()
"""


def test_a_disk_that_takes_no_more_is_named_once_with_how_to_go_on(tmp_path: Path) -> None:
    words = ["train", *FUNNEL, "--method", "equal", "--out", str(tmp_path / "run")]
    assert subprocess.run([sys.executable, "-m", "equipoise", *words], check=False, capture_output=True).returncode == 0
    script = tmp_path / "full.py"
    script.write_text(ON_A_FULL_DISK)
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("ould not write the checkpoint of step") == 1
    assert "File too large" in done.stderr
    assert "What was complete before is intact. There is no checkpoint yet. Begin again with: " in done.stderr
    assert "Traceback" not in done.stderr
    assert any((tmp_path / "run" / "checkpoint.before").iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device. What was complete before is intact."),
        (
            MemoryError("8 GiB"),
            "Out of memory (8 GiB). If no other program took it, start again with a smaller batch or model.",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "Out of memory (CUDA out of memory). If no other program"),
    ],
)
def test_a_training_that_fails_says_what_happened_and_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("equipoise.comparison.runner.train_into", fail)
    code, output = run("train", *FUNNEL, "--out", str(tmp_path))
    assert code == 1
    assert message in output
    assert "There is no checkpoint yet. Begin again with: " in output


def test_a_warning_about_the_model_is_a_sentence_and_shown_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn() -> None:
        for _ in range(2):
            warnings.warn("Branch 'a' is read by 'b'.", MisplacedForkWarning, stacklevel=1)
        warnings.warn("Something else.", UserWarning, stacklevel=1)

    others: list[str] = []
    monkeypatch.setattr(cli, "app", warn)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: others.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main()
    assert capsys.readouterr().err == "Warning: Branch 'a' is read by 'b'.\n"
    assert others == ["Something else."]
