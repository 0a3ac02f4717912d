"""Runs that are stopped end in a sentence, are gone on with, and are not thrown away without being asked."""

from pathlib import Path

import pytest


def stopped(folder: Path) -> None:
    from shared.resumable import resumable

    with pytest.raises(SystemExit, match="The same with --resume goes on"), resumable(folder, resume=False):
        _run_and_stop(folder)


def _run_and_stop(folder: Path) -> None:
    (folder / "results.json").write_text("[1]")
    (folder / "cosine-seed0").mkdir()
    (folder / "cosine-seed0" / "log.jsonl").touch()
    raise KeyboardInterrupt


def test_what_was_stopped_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    from shared.resumable import resumable

    stopped(tmp_path)
    with pytest.raises(SystemExit, match="add --resume to go on, or delete the folder"), resumable(tmp_path, False):
        pytest.fail("began anew")
    with resumable(tmp_path, resume=True):
        assert (tmp_path / "results.json").read_text() == "[1]"
        assert (tmp_path / "cosine-seed0" / "log.jsonl").exists()
    assert not (tmp_path / "unfinished").exists()


def test_what_came_to_its_end_is_begun_anew(tmp_path: Path) -> None:
    from shared.resumable import resumable

    stopped(tmp_path)
    (tmp_path / "mine.txt").touch()
    with resumable(tmp_path, resume=True):
        pass
    with resumable(tmp_path, resume=False):
        assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "unfinished"}


def test_an_error_leaves_runs_to_go_on_with(tmp_path: Path) -> None:
    from shared.resumable import resumable

    with pytest.raises(ValueError, match="broken"), resumable(tmp_path / "new", resume=False):
        raise ValueError("broken")
    assert (tmp_path / "new" / "unfinished").exists()


def test_a_recipe_that_is_stopped_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import train_retrieval

    def stop(recipe: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_retrieval, "run", stop)
    assert train_retrieval.main(["clip_f30k"]) == 130
    assert "The same with --resume goes on" in capsys.readouterr().err
