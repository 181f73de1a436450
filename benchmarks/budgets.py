"""Every budget of a run: its limit, the benchmark that measures it, and the tests that hold what it depends on.

A test never asserts on seconds, because a busy machine would fail it at random. So a budget of time has two holders: a
benchmark, which measures it in turns with what it is compared to (`python -m benchmarks --check`), and tests of what
makes the time: the modules that a start imports, the calls that a step makes, the bytes that a save moves. Those fail
on the day somebody adds one.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_TRAINER, STEP_TRAINER_FULL, STEP_FABRIC = 1.05, 1.10, 1.05
IMPORT_SECONDS, HELP_SECONDS, FIT_HELP_SECONDS_BESIDE_TORCH = 0.1, 0.3, 0.5
CHECKPOINT_WRITE, CHECKPOINT_STALL = 1.4, 1.2
DDP_STEP = 1.03
SUITE_SECONDS = 720


@dataclass(frozen=True)
class Budget:
    """One budget.

    Attributes:
        what: is limited.
        limit: in words.
        tests: `file::name` of what holds it, or what it depends on.
        benchmark: module of this folder that measures it, for a budget of time.
        awaits: module of the package that the budget is about and that does not exist yet.
    """

    what: str
    limit: str
    tests: tuple[str, ...] = ()
    benchmark: str = ""
    awaits: str = ""


BUDGETS = (
    Budget(
        "lines of a file, a function and a class",
        "600, 80, 400",
        ("tests/test_budgets.py::test_the_package_is_within",),
    ),
    Budget("parameters of Trainer", "24", ("tests/test_budgets.py::test_the_trainer_takes_few_parameters",)),
    Budget(
        "frames from fit to training_step",
        "4, in 3 files",
        ("tests/test_budgets.py::test_few_frames_lead_from_fit_to_training_step",),
    ),
    Budget(
        "import taskloom",
        f"{IMPORT_SECONDS} s, no torch",
        ("tests/test_import_time.py::test_importing_the_package_imports_little",),
        "start_up",
    ),
    Budget(
        "task --help",
        f"{HELP_SECONDS} s",
        ("tests/test_import_time.py::test_the_overview_of_commands_needs_nothing_heavy",),
        "start_up",
    ),
    Budget(
        "task fit --help and --print_config",
        f"import torch + {FIT_HELP_SECONDS_BESIDE_TORCH} s",
        ("tests/test_import_time.py::test_the_help_of_a_stage_imports_little_beside_torch",),
        "start_up",
    ),
    Budget(
        "a tiny training step, bare, with all defaults, and by Fabric",
        f"{STEP_TRAINER}, {STEP_TRAINER_FULL:.2f} and {STEP_FABRIC} × the bare loop",
        (
            "tests/trainer/test_facts.py::test_a_hook_that_nobody_overrides_costs_no_call",
            "tests/trainer/test_facts.py::test_what_is_due_is_looked_for_when_something_may_be",
            "tests/fabric/test_cost.py::test_a_step_calls_what_is_listed_here",
        ),
        "step_overhead",
    ),
    Budget("DDP step, 2 processes, accumulation 4", f"{DDP_STEP} × bare DDP", awaits="strategies/ddp.py"),
    Budget(
        "checkpoint stall, asynchronous",
        f"{CHECKPOINT_STALL} × a copy of the state in memory",
        ("tests/checkpoint/test_cost.py::test_a_snapshot_copies_every_byte_once",),
        "checkpoint",
    ),
    Budget(
        "checkpoint write, hashes included, without fsync",
        f"{CHECKPOINT_WRITE} × a raw safetensors write",
        ("tests/checkpoint/test_cost.py::test_a_save_hashes_and_writes_every_byte_once",),
        "checkpoint",
    ),
    Budget("whole test suite on 2 cores", "12 minutes", (".ci/run::suite_seconds",)),
)
