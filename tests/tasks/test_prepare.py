import pytest

from longconv import tasks
from longconv.tasks.lra.listops import ListOpsConfig
from longconv.tasks.prepare import preparable, prepare

SMALL = ListOpsConfig(max_depth=5, max_args=5, min_length=10, max_length=80)


def test_what_is_prepared_is_what_the_task_reads(tmp_path):
    options = {"config": SMALL, "sizes": (30, 10, 10), "cache_dir": tmp_path}
    lines = prepare("lra/listops", **options).splitlines()
    assert lines[0] == "lra/listops: 10 classes, sequences of up to 80"
    assert [line.split()[:2] for line in lines[1:4]] == [["train", "30"], ["validation", "10"], ["test", "10"]]
    assert lines[-1].endswith(str(tmp_path / "lra"))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    times = [path.stat().st_mtime_ns for path in files]
    tasks.get("lra/listops", **options).splits()
    assert [path.stat().st_mtime_ns for path in files] == times


def test_what_cannot_be_prepared():
    assert set(preparable()) <= set(tasks.available())
    with pytest.raises(ValueError, match="nothing to prepare for 'lm'; there is for: lra/"):
        prepare("lm")
