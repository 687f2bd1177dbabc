"""The job as a whole: on the devices of the tests, and for a TPU that is not there."""

import io
import json
from pathlib import Path
from typing import Any, get_args

import jax
import pytest
from rich.console import Console

from experiments.bench import networks_jax, schedule
from experiments.bench.methods import METHODS, Method
from experiments.bench.networks import Network
from experiments.tpu import exporting, job, programs, targets
from experiments.tpu.apart import Crashed, apart
from experiments.tpu.options import CompiledName, KindName, TpuOptions

TINY = Network("mlp", 8, 8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in the place of all."""
    monkeypatch.setitem(job.SIZES["bench"], "mlp", TINY)
    monkeypatch.setattr(networks_jax, "HIDDEN", 1)


def compiled(out: Path, status: int = 0, **options: Any) -> tuple[str, dict[str, Any]]:
    """Run it, and return what it says and what it writes."""
    output = io.StringIO()
    given = {"targets": ("here",), "quick": True, "methods": ("neuronwise",), "out": out}
    assert job.run(TpuOptions(**(given | options)), Console(file=output, width=200)) == status
    return output.getvalue(), json.loads((out / "tpu.json").read_text())


def test_names_agree() -> None:
    """Command line, methods and sizes know the same."""
    assert set(get_args(CompiledName)) <= set(METHODS)
    for sizes in job.SIZES.values():
        assert tuple(sizes) == get_args(KindName)


def test_files_hold_what_was_compiled(tmp_path, monkeypatch) -> None:
    """Every part of a method, and the time of each kind of step, for the devices are here."""
    monkeypatch.setattr(programs, "BLOCK", 1)
    text, found = compiled(tmp_path)
    table = (tmp_path / "table.md").read_text()
    for words in ("neuron-wise, step without", "time", "all-reduce", "collective-permutes"):
        assert words in table
        assert words in text
    plain, rule = found["cells"]
    assert plain["problem"] is rule["problem"] is None
    assert list(plain["programs"]) == [schedule.ALIKE]
    assert plain["programs"][schedule.ALIKE]["seconds"] > 0
    whole, due, rest = (
        rule["programs"][part] for part in (schedule.ALIKE, schedule.WITH, schedule.WITHOUT)
    )
    assert whole["seconds"] is None  # it is the two
    assert due["seconds"] > 0 < rest["seconds"]
    assert due["flops"] > rest["flops"]
    least, most = (whole["collectives"][name]["bytes"]["all-reduce"] for name in ("least", "most"))
    assert least == plain["programs"][schedule.ALIKE]["collectives"]["most"]["bytes"]["all-reduce"]
    assert most > least


def test_parameters_and_state_are_sharded(tmp_path, monkeypatch) -> None:
    """They are gathered where they are needed; on one device nothing is sent."""
    monkeypatch.setattr(programs, "SMALLEST", 8)
    _, found = compiled(tmp_path, sharding=("one", "fsdp"), methods=("plain",))
    one, fsdp = (cell["programs"][schedule.ALIKE] for cell in found["cells"])
    assert not one["collectives"]["most"]["bytes"]
    assert fsdp["collectives"]["most"]["bytes"]["all-gather"] > 0
    assert fsdp["peak_bytes"] < one["peak_bytes"]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [((64, 64), (None, "devices")), ((64, 1001), ("devices",)), ((8,), ()), ((1001, 3), ())],
)
def test_large_arrays_are_sharded_by_the_last_axis_that_can_be(shape, spec) -> None:
    """Small ones, and such as cannot be divided, are not."""
    assert tuple(programs._sharded(shape, 4)) == spec


def test_an_average_is_that_of_a_run() -> None:
    """By hand."""
    rare = job.Cell("here", "one", TINY, "neuronwise", every=16)
    nothing = programs.collectives.read("")
    rare.programs = {
        part: programs.Program(flops, None, 0, nothing, 0.0)
        for part, flops in ((schedule.WITH, 300.0), (schedule.WITHOUT, 100.0))
    }
    share = schedule.share_of_run(16)
    assert rare.average(lambda program: program.flops) == pytest.approx(100 + 200 * share)
    assert rare.average(lambda program: program.bytes_accessed) is None


def test_one_cell_without_a_place_and_an_interruption(tmp_path, monkeypatch) -> None:
    """The others have their numbers, and the status is that of an interruption."""
    compile_step, calls = programs.compile_step, []

    def failing(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: HBM\nand more")
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compile_step(*given)

    monkeypatch.setattr(programs, "compile_step", failing)
    methods = ("batchnorm", "full", "layer")
    text, found = compiled(tmp_path, status=130, sharding=("one",), methods=methods)
    problems = {cell["method"]: cell["problem"] for cell in found["cells"]}
    assert problems["plain"] is None
    assert problems["batchnorm"] == "out of memory"
    assert problems["full"] is None
    assert "Stopped" in text
    assert "| out of memory |" in (tmp_path / "table.md").read_text()


def test_a_batch_that_cannot_be_sharded(tmp_path, monkeypatch) -> None:
    """Is no error of the others."""
    monkeypatch.setitem(job.SIZES["bench"], "mlp", Network("mlp", 7, 8))
    text, _ = compiled(tmp_path, methods=("plain",))
    assert "a batch of 7 cannot be sharded" in " ".join(text.split())


@pytest.mark.parametrize("method", ["plain", "neuronwise"])
def test_what_is_exported_is_the_step(method, tmp_path) -> None:
    """Read again, it does the same; another step does not."""
    pytest.importorskip("flatbuffers")
    path = tmp_path / "step"
    assert exporting.export(TINY, METHODS[method], "float32", path) <= 1e-6
    assert jax.export.deserialize(bytearray(path.read_bytes())).platforms == exporting.PLATFORMS


def test_a_crash_of_the_compiler_is_one_cell(tmp_path, monkeypatch) -> None:
    """The others go on."""
    here = targets.Target("v5e:2x2", tuple(jax.devices()[:1]))
    monkeypatch.setattr(targets, "find", lambda name: here)

    def crashing(work: Any, network: Any, method: Method, *given: Any) -> Any:
        if method is METHODS["plain"]:
            raise Crashed("Check failed: PropagateOn")
        return programs.compile_parts(network, method, given[0], here, given[2])

    monkeypatch.setattr(job, "apart", crashing)
    text, found = compiled(tmp_path, targets=("v5e",), methods=("batchnorm",))
    plain, batchnorm = found["cells"]
    assert "Check failed: PropagateOn" in plain["problem"]
    assert batchnorm["programs"]
    assert "has crashed" in text


def test_for_a_tpu_that_is_not_there(tmp_path) -> None:
    """One chip; the two kinds of steps are told apart."""
    pytest.importorskip("libtpu")
    rule = Method("rare", rule={"statistics_every": 4})
    found, problem = apart(programs.compile_for, TINY, rule, "bfloat16", "v5e:1x1", "one")
    assert problem is None
    due, rest = (found[part] for part in (schedule.WITH, schedule.WITHOUT))
    assert due.flops > rest.flops
    assert due.seconds is None
