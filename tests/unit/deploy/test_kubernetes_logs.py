"""Entries of a pod's log."""

from daskfleet.deploy.kubernetes.logs import timed


def test_entries_have_a_time_but_for_what_the_kubelet_says_for_itself():
    assert timed("2026-11-22T06:03:00.806241Z Start worker at: tcp://…") == (
        "2026-11-22T06:03:00.806241Z",
        "Start worker at: tcp://…",
    )
    assert timed("2026-11-22T06:03:00Z ") == ("2026-11-22T06:03:00Z", "")
    remark = "unable to retrieve container logs for containerd://b9e39c04"
    assert timed(remark) == ("", remark)
