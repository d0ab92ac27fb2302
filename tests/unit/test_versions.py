"""What differs is told, what does not matter is not."""

from daskfleet.versions import mismatches

ALIKE = {"python": "3.11.7", "daskfleet": "0.1.0", "dask": "2026.8.0", "cloudpickle": "3.1", "msgpack": "1.2"}


def test_equal_versions_are_no_mismatch():
    assert mismatches(ALIKE, ALIKE, {"w": ALIKE}) == ""


def test_bug_fix_releases_of_python_fit():
    assert mismatches(ALIKE, ALIKE | {"python": "3.11.2"}, {"w": ALIKE | {"python": "3.11.9"}}) == ""


def test_feature_releases_of_python_do_not():
    table = mismatches(ALIKE, ALIKE, {"a": ALIKE, "b": ALIKE | {"python": "3.12.1"}})
    assert table.splitlines()[2].split() == ["python", "3.11.7", "3.11.7", "3.11.7,", "3.12.1"]


def test_a_scheduler_may_do_without_numpy():
    numpy = {"numpy": "2.4"}
    assert mismatches(ALIKE | numpy, ALIKE, {"w": ALIKE | numpy}) == ""
    assert "numpy" in mismatches(ALIKE | numpy, ALIKE, {"w": ALIKE})
