"""Delivered objects that changed: `jobs.verify` tells other bytes of the same size, of what records hold a digest of."""

from pathlib import Path

import pytest

from rerank_actor.bitext.selection.output import SelectionStatus, SelectOutput, check_delivered
from rerank_actor.commands.verify import verify
from rerank_actor.errors import JobError
from rerank_actor.mining.output import MineOutput, store_plan
from rerank_actor.mining.survey import MiningPlan, MiningUnit
from rerank_actor.outputs.delivered import digest_bytes

DATA = b"0.9\tsource\ttarget\n"


def test_mined_object_that_changed_at_its_size_is_told(tmp_path: Path) -> None:
    output = MineOutput(str(tmp_path))
    part = tmp_path / "part-00000.jsonl"
    part.write_bytes(DATA)
    store_plan(output, {}, MiningPlan([MiningUnit("00000", ())], None, 0, 1, {}))
    assert verify([str(tmp_path)]) == 1  # a unit is missing
    record = {"objects": {part.name: len(DATA)}, "digests": {part.name: digest_bytes(DATA)}}
    output.records.write("00000", record)
    assert verify([str(tmp_path)]) == 1  # `_SUCCESS` is
    (tmp_path / "_SUCCESS").touch()
    assert verify([str(tmp_path)]) == 0
    for flags in (["--rescore", "0.01"], ["--delete-damaged"]):
        with pytest.raises(JobError, match=f"{flags[0]}: is for scored outputs"):
            verify([str(tmp_path), *flags])
    stray = tmp_path / "part-00001.jsonl"
    stray.write_bytes(DATA)
    assert verify([str(tmp_path)]) == 1
    stray.unlink()
    part.write_bytes(DATA.replace(b"target", b"forget"))
    assert verify([str(tmp_path)]) == 1
    output.records.write("00000", {"objects": record["objects"]})  # of a version that knew no digests
    assert verify([str(tmp_path)]) == 0


def test_selected_object_that_changed_at_its_size_is_told(tmp_path: Path) -> None:
    folder = Path(SelectOutput(str(tmp_path), "deu-eng").data_folder("tsv"))
    folder.mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    part = folder / "part-00000.tsv"
    part.write_bytes(DATA)
    numbers = {"objects": {str(part): len(DATA)}, "digests": {str(part): digest_bytes(DATA)}}
    assert check_delivered(str(tmp_path), SelectionStatus("deu-eng", numbers)) == []
    part.write_bytes(DATA[::-1])
    found = check_delivered(str(tmp_path), SelectionStatus("deu-eng", numbers))
    assert found == [f"{part}: holds other bytes than were written"]
    assert check_delivered(str(tmp_path), SelectionStatus("deu-eng", {"objects": numbers["objects"]})) == []
