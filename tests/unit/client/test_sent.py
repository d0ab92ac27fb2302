"""What is kept to be sent again: submissions that are not done, and what they need."""

from daskfleet.client.sent import LOOK_AT, Sent


def tasks(number, *rows, last=True):
    """Rows are (cid, inputs)."""
    return "tasks", number, last, 0, [], [], [(cid, f"k{cid}", 0, b"", inputs, 0, None) for cid, inputs in rows]


def numbers(sent):
    return [message[1] for message in sent.unfinished()[0]]


def test_what_is_done_is_dropped():
    pending = {1, 2}
    sent = Sent(pending.__contains__)
    sent.add(tasks(1, (1, None)))
    sent.add(tasks(2, (2, None)))
    assert numbers(sent) == [1, 2]
    pending.remove(1)
    assert numbers(sent) == [2]


def test_inputs_are_kept_as_long_as_what_needs_them_however_far_back():
    pending = {3}
    sent = Sent(pending.__contains__)
    for number, inputs in ((1, None), (2, [-1]), (3, [-2]), (4, [-3])):
        sent.add(tasks(number, (number, inputs)))
    assert numbers(sent) == [1, 2, 3]
    assert sent.unfinished()[1] == [1, 2, 3]
    pending.clear()
    assert numbers(sent) == []


def test_a_graph_that_is_still_being_sent_is_kept():
    sent = Sent(lambda cid: False)
    sent.add(tasks(1, (0, None), last=False))
    assert numbers(sent) == [1]
    sent.add(tasks(1, (1, [0]), last=True))
    assert numbers(sent) == []


def test_memory_is_bounded_by_what_is_pending():
    done = Sent(lambda cid: False)
    for number in range(1, 4 * LOOK_AT):
        done.add(tasks(number, (number, None)))
    assert len(done._graphs) <= LOOK_AT
