"""The log: appended, read, taken back."""

from gssf_plug.retrieval.training.run_log import RunLog


def test_it_forgets_what_comes_after_a_step(tmp_path):
    journal = RunLog(tmp_path / "log.jsonl")
    for step in (1, 2, 2, 3):
        journal.write({"step": step, "loss": 0.1 * step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a crash
    assert [record["step"] for record in journal.records()] == [1, 2, 2, 3]
    journal.rewind(2)
    journal.write({"step": 5})
    assert [record["step"] for record in journal.records()] == [1, 2, 2, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl"]


def test_other_processes_do_not_write(tmp_path):
    journal = RunLog(tmp_path / "log.jsonl", writes=False)
    journal.write({"step": 1})
    journal.rewind(0)
    assert journal.records() == []
