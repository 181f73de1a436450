"""Links between parameters and from built objects, up to the configuration that is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from taskloom.cli import TaskCLI
from taskloom.core.errors import ConfigError


def built(*args: str, **options: Any) -> TaskCLI:
    return TaskCLI(
        args=["--optimizer=null", *args], run=False, subclass_mode_task=True, subclass_mode_data=True, **options
    )


CHOSEN = ("--task", "linked.Net", "--data", "linked.Words")


@pytest.fixture(autouse=True)
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of which some learn their sizes only when they are built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "linked.py").write_text(
        "from torch import nn\n"
        "from taskloom.core.data import DataModule\n"
        "from taskloom.core.task import TaskModule\n"
        "BUILT = []\n"
        "class Tokenizer:\n"
        "    size = 50\n"
        "class Head(nn.Module):\n"
        "    def __init__(self, vocabulary: int, depth: int = 1):\n"
        "        super().__init__()\n"
        "        self.vocabulary = vocabulary\n"
        "class Words(DataModule):\n"
        "    def __init__(self, batch_size: int = 4, length: int = 8):\n"
        "        BUILT.append('data')\n"
        "        self.vocabulary = batch_size * 10\n"
        "        self.tokenizer = Tokenizer()\n"
        "class Net(TaskModule):\n"
        "    def __init__(self, vocabulary: int = 1, head: Head | None = None, length: int = 2, width: int = 3):\n"
        "        super().__init__()\n"
        "        BUILT.append('task')\n"
        "        self.vocabulary, self.head, self.length, self.width = vocabulary, head, length, width\n"
        "        self.inner = width * 2\n"
        "    def configure_optimizers(self):\n"
        "        return None\n"
        "class Needy(Net):\n"
        "    def __init__(self, vocabulary: int):\n"
        "        super().__init__(vocabulary)\n"
    )


@pytest.mark.holds("R31", "CL-03")
def test_parameter_to_parameter_and_attribute_to_parameter() -> None:
    cli = built(*CHOSEN, "--link", "data.length=task.length", "--link", "data.vocabulary=task.vocabulary")
    assert (cli.task.length, cli.task.vocabulary) == (8, 40)
    saved = yaml.safe_load(cli.trainer.config_text or "")
    assert saved["task"]["init_args"]["length"] == 8
    assert saved["task"]["init_args"]["vocabulary"] == 40
    assert "link" not in saved


@pytest.mark.holds("R31")
def test_saved_values_need_no_link_and_do_not_contradict_it() -> None:
    link = ("--link", "data.vocabulary=task.vocabulary")
    first = built("--task", "linked.Needy", "--data", "linked.Words", *link)
    Path("saved.yaml").write_text(first.trainer.config_text or "")
    assert built("--config", "saved.yaml").task.vocabulary == 40
    assert built("--config", "saved.yaml", *link).task.vocabulary == 40
    with pytest.raises(ConfigError, match=r"saved.yaml:\d+ says 40, the link says 20"):
        built("--config", "saved.yaml", *link, "--data.batch_size", "2")


@pytest.mark.holds("R31")
def test_into_nested_classes_and_from_nested_attributes() -> None:
    cli = built(*CHOSEN, "--task.head", "linked.Head", "--link", "data.tokenizer.size=task.head.vocabulary")
    assert cli.task.head.vocabulary == 50
    saved = yaml.safe_load(cli.trainer.config_text or "")
    assert saved["task"]["init_args"]["head"]["init_args"] == {"vocabulary": 50, "depth": 1}


@pytest.mark.holds("R31")
def test_order_follows_the_links() -> None:
    import linked

    linked.BUILT.clear()
    cli = built(*CHOSEN, "--link", "task.inner=data.length")
    assert linked.BUILT == ["task", "data"]
    linked.BUILT.clear()
    built(*CHOSEN, "--link", "data.vocabulary=task.width")
    assert linked.BUILT == ["data", "task"]
    assert cli.config["data"]["init_args"]["batch_size"] == 4


@pytest.mark.holds("R31")
def test_chains_are_followed_in_topological_order() -> None:
    links = ("--link", "task.length=task.width", "--link", "data.length=task.length", "--data.length", "77")
    assert built(*CHOSEN, *links).task.width == 77


@pytest.mark.holds("CL-03", "R31")
def test_links_in_code_with_a_function() -> None:
    links = [(("data.batch_size", "data.length"), "task.width", lambda batch, length: batch * length)]
    assert built(*CHOSEN, links=links).task.width == 32
    with pytest.raises(ConfigError, match=r"The function of this link raised an error.*ZeroDivisionError"):
        built(*CHOSEN, links=[("data.length", "task.width", lambda length: length // 0)])


@pytest.mark.holds("R31")
def test_attribute_that_is_missing_when_the_object_is_built() -> None:
    with pytest.raises(ConfigError, match="Reading 'sizes' of the built Tokenizer failed"):
        built(*CHOSEN, "--link", "data.tokenizer.sizes=task.width")
