from __future__ import annotations

import pytest

from taskloom.launch import InProcess
from taskloom.launch.environments import SingleProcess


def test_this_process_does_the_work():
    launcher = InProcess()
    assert not launcher.starts_processes
    assert launcher.launch(lambda a, b=0: (a, b), 1, b=2) == (1, 2)
    with pytest.raises(KeyError, match="gone"):
        launcher.launch({}.__getitem__, "gone")


def test_a_lone_process_is_the_first_of_one():
    assert SingleProcess.detect()
    place = SingleProcess()
    assert (place.world_size, place.global_rank, place.local_rank, place.node_rank) == (1, 0, 0, 0)
    assert (place.main_address, place.main_port) == ("127.0.0.1", 0)
