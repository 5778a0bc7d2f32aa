"""Who is the main process, in every state that a launcher or its remains can leave the environment in."""

import logging
import os
import subprocess
import sys

import pytest

from erasure.core import distributed

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LEFTOVERS = [
    {"RANK": "0", "WORLD_SIZE": "1"},
    {"RANK": "1", "WORLD_SIZE": "2"},
    {"WORLD_SIZE": "4"},
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "3", "RANK": "3"},
    {"RANK": "first", "WORLD_SIZE": "many"},
    {"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1", "RANK": "1"},
    {**COMPLETE, "MASTER_PORT": ""},
    {**COMPLETE, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere.invalid"},
    {**COMPLETE, "RANK": "2"},
    {"PMI_RANK": "1", "PMI_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "2"},
]


@pytest.fixture
def environment(monkeypatch):
    """Set exactly these variables of launchers."""

    def set_to(values):
        for name in (*distributed.RENDEZVOUS, *distributed._OTHER_LAUNCHERS):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_a_complete_environment_names_the_rank_and_the_number_of_processes(environment):
    environment(COMPLETE)
    assert not distributed.is_main() and distributed.num_processes() == 2
    environment({**COMPLETE, "RANK": "0"})
    assert distributed.is_main() and distributed.num_processes() == 2


@pytest.mark.parametrize("values", LEFTOVERS, ids=str)
def test_an_incomplete_environment_means_a_single_process(environment, values):
    environment(values)
    assert distributed.is_main() and distributed.num_processes() == 1
    code = "from erasure.core.distributed import world; print(world().num_processes, world().is_main_process)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 True\n", done.stderr


def test_the_environment_is_left_as_it_was(environment):
    environment({"RANK": "1", "WORLD_SIZE": "2"})
    before = dict(os.environ)
    distributed.world()
    assert dict(os.environ) == before


def test_several_processes_that_cannot_meet_are_warned_about_once(environment, caplog):
    distributed._warn.cache_clear()
    environment({"RANK": "1", "WORLD_SIZE": "2"})
    with caplog.at_level(logging.WARNING, "erasure"):
        distributed.world()
        distributed.world()
    (record,) = [record for record in caplog.records if "WORLD_SIZE is 2" in record.getMessage()]
    assert "MASTER_ADDR" in record.getMessage() and "RANK," not in record.getMessage().replace("LOCAL_RANK,", "")
    caplog.clear()
    environment({"RANK": "0", "WORLD_SIZE": "1"})
    distributed.world()
    assert not caplog.records


def test_asking_who_is_the_main_process_loads_no_torch():
    code = "import sys; from erasure.core.distributed import is_main; is_main(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
