"""tools/parity.py and tests/parity_plugin.py: the page says what passed, and nothing else."""

import json
from pathlib import Path

import parity
import parity_plugin
import pytest

GPU_RUN = parity.GpuRun("AC-03", "2026-11-20", "NVIDIA H200", "tests/test_gpu.py::test_cuda")


def run_suite(pytester: pytest.Pytester, body: str, *arguments: str) -> parity.Results:
    """Run one test file under the plugin and return what it wrote."""
    pytester.makeini(
        "[pytest]\ntestpaths = .\nxfail_strict = true\nmarkers =\n  holds(*rows): rows\n  gpu: needs a GPU\n"
    )
    pytester.makepyfile(test_suite="import pytest\n\n" + body)
    file = pytester.path / "build" / "results.json"
    pytester.runpytest_inprocess("-p", "parity_plugin", "-p", "no:leaks", "--parity-results", str(file), *arguments)
    results: parity.Results = json.loads(file.read_text())
    return results


def outcome_of(results: parity.Results, test: str, row: str) -> str:
    return results["tests"][f"test_suite.py::{test}"]["rows"][row]


def test_only_a_test_that_passed_holds_its_rows(pytester: pytest.Pytester) -> None:
    results = run_suite(
        pytester,
        """
@pytest.fixture
def broken_setup():
    raise RuntimeError

@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError

@pytest.mark.holds("TM-01", "R2")
def test_passes(): pass

@pytest.mark.holds("TM-02")
def test_fails(): assert False

@pytest.mark.holds("TM-03")
def test_skips(): pytest.skip("no")

@pytest.mark.holds("TM-04")
def test_setup(broken_setup): pass

@pytest.mark.holds("TM-05")
def test_teardown(broken_teardown): pass

@pytest.mark.holds("TM-06")
@pytest.mark.xfail
def test_expected_failure(): assert False

@pytest.mark.holds("TM-07")
@pytest.mark.xfail(strict=False)
def test_unexpected_pass(): pass

def test_unmarked(): pass
""",
    )
    assert parity.holders(results) == {"TM-01": ["test_suite.py::test_passes"], "R2": ["test_suite.py::test_passes"]}
    assert outcome_of(results, "test_setup", "TM-04") == "failed"
    assert outcome_of(results, "test_teardown", "TM-05") == "failed"
    assert outcome_of(results, "test_skips", "TM-03") == "skipped"


def test_parameter_sets_count_as_one_test(pytester: pytest.Pytester) -> None:
    results = run_suite(
        pytester,
        """
@pytest.mark.holds("TM-01")
@pytest.mark.parametrize("n", [1, 2])
def test_all_pass(n): pass

@pytest.mark.holds("TM-02")
@pytest.mark.parametrize("n", [1, 2])
def test_one_fails(n): assert n == 1

@pytest.mark.holds("TM-03")
@pytest.mark.parametrize("n", [1, 2])
def test_one_skipped(n):
    if n == 1: pytest.skip("not here")

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.holds("TM-04")), 2])
def test_row_of_one_set(n): assert n == 1
""",
    )
    assert set(parity.holders(results)) == {"TM-01", "TM-03", "TM-04"}
    assert all("[" not in test for test in results["tests"])


def test_workers_report_to_the_process_that_writes(pytester: pytest.Pytester) -> None:
    body = "@pytest.mark.holds('TM-01')\n@pytest.mark.parametrize('n', [1, 2])\ndef test_passes(n): pass\n"
    results = run_suite(pytester, body, "-n", "1")
    assert parity.holders(results) == {"TM-01": ["test_suite.py::test_passes"]}
    assert results["complete"]


def test_an_unknown_row_stops_the_run_and_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\n@pytest.mark.holds('TM-01', 'TM-99')\ndef test_it(): pass\n")
    result = pytester.runpytest_inprocess("-p", "parity_plugin", "-p", "no:leaks")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*rows.txt has no such row*", "*test_it*'TM-99'*"])


@pytest.mark.parametrize("arguments", [("-k", "one"), ("test_suite.py",), ("-x",), ("-m", "not slow"), ("--lf",)])
def test_a_run_that_leaves_tests_out_is_partial(pytester: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    pytester.makeini("[pytest]\ntestpaths = .\n")
    pytester.makepyfile(test_suite="")
    assert parity_plugin.is_whole_suite(pytester.parseconfig(), pytest.ExitCode.TESTS_FAILED)
    assert not parity_plugin.is_whole_suite(pytester.parseconfig(*arguments), pytest.ExitCode.OK)
    assert not parity_plugin.is_whole_suite(pytester.parseconfig(), pytest.ExitCode.INTERRUPTED)


def test_a_partial_run_is_not_rendered(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"complete": False, "tests": {}}))
    with pytest.raises(ValueError, match="left tests out"):
        parity.read_results(results)


def test_a_test_that_needs_a_gpu_does_not_decide_the_page(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "@pytest.mark.gpu\n@pytest.mark.holds('AC-03')\ndef test_cuda(): pass\n"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert outcome_of(run_suite(pytester, body), "test_cuda", "AC-03") == "skipped"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    results = run_suite(pytester, body)
    assert outcome_of(results, "test_cuda", "AC-03") == "passed"
    assert parity.holders(results) == {}
    run = parity.record_gpu(results, "NVIDIA H200", "2026-11-20", known=())
    assert [str(row) for row in run] == ["AC-03 | 2026-11-20 | NVIDIA H200 | test_suite.py::test_cuda"]


def test_a_later_gpu_run_replaces_the_earlier_on_the_same_machine() -> None:
    results: parity.Results = {"complete": False, "tests": {GPU_RUN.test: {"rows": {"AC-03": "passed"}, "gpu": True}}}
    other = parity.GpuRun("AC-03", "2026-01-01", "NVIDIA L4", GPU_RUN.test)
    runs = parity.record_gpu(results, "NVIDIA H200", "2026-12-01", known=[GPU_RUN, other])
    assert runs == [other, parity.GpuRun("AC-03", "2026-12-01", "NVIDIA H200", GPU_RUN.test)]


def small_page(held: dict[str, list[str]], gpu_runs: list[parity.GpuRun]) -> str:
    groups = [parity.Group("AC", "Accelerators", {"AC-02": "CPU on request", "AC-03": "GPUs", "AC-04": "Apple"})]
    return parity.render(groups, held, gpu_runs)


def test_the_page_names_tests_and_counts_rows() -> None:
    page = small_page({"AC-02": ["tests/a.py::test_a", "tests/b.py::test_b"]}, [GPU_RUN])
    assert "| AC-02 | CPU on request | held by `tests/a.py::test_a`, `tests/b.py::test_b` |" in page
    assert "| AC-03 | GPUs | runs on a GPU (2026-11-20, NVIDIA H200) |" in page
    assert "| AC-04 | Apple | not yet |" in page
    assert "| AC Accelerators | 3 | 1 | 1 | 1 |" in page
    assert parity.held_on_page(page) == {"AC-02"}


def test_check_tells_a_lost_row_from_a_page_left_behind() -> None:
    old = small_page({"AC-02": ["tests/a.py::test_a"]}, [])
    assert parity.differences(old, old) == ""
    lost = parity.differences(old, small_page({}, []))
    assert "No longer held by any passing test: AC-02." in lost
    gained = parity.differences(small_page({}, []), old)
    assert "make parity" in gained
    assert "No longer held" not in gained


def test_the_command_renders_checks_and_notices_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "results.json", tmp_path / "parity.md"
    results.write_text(json.dumps({"complete": True, "tests": {"t::a": {"rows": {"R2": "passed"}, "gpu": False}}}))
    options = ["--results", str(results), "--page", str(page)]
    assert parity.main(["render", *options]) == 0
    assert "1 of 460 rows" in capsys.readouterr().out
    assert parity.main(["check", *options]) == 0
    page.write_text(page.read_text().replace("| R5 ", "| R5. "))
    assert parity.main(["check", *options]) == 1
    assert "+| R5 |" in capsys.readouterr().out


def test_the_list_has_every_row_once() -> None:
    groups = parity.read_groups()
    rows = parity.row_titles()
    assert len(groups) == 25
    assert len(rows) == 460
    for group in groups:
        form = "R{}" if group.id == "R" else group.id + "-{:02}"
        assert list(group.rows) == [form.format(n) for n in range(1, len(group.rows) + 1)]


@pytest.mark.parametrize("line", ["TM-01 Again", "TM-1 One digit", "stray text", "##TM No space"])
def test_a_malformed_list_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(f"## TM Task\nTM-01 First\n{line}\n")
    with pytest.raises(ValueError, match=r"rows.txt:3: not a new row"):
        parity.read_groups(path)


def test_a_row_about_several_processes_says_whether_it_is_held_there() -> None:
    group = parity.Group("R", "Reported", {"R1": "One", "R2": "Two", "R3": "Three"}, several={"R1", "R2"})
    held = {"R1": ["a"], "R2": ["b"], "R2 on several processes": ["c"], "R3": ["d"]}
    page = parity.render([group], held, [])
    assert "| R1 | One | held by `a`; on several processes not yet |" in page
    assert "| R2 | Two | held by `b`; on several processes by `c` |" in page
    assert "| R3 | Three | held by `d` |" in page
    assert "| R Reported | 3 | 3 | 0 | 0 |" in page


def test_what_is_said_of_several_processes_is_read_from_the_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("## R Reported\nR1 One [several processes]\nR2 Two\n")
    (group,) = parity.read_groups(path)
    assert group.rows == {"R1": "One", "R2": "Two"}
    assert group.several == {"R1"}
    assert parity.names(path) == {"R1", "R2", "R1 on several processes"}
