"""The gaps by workload and pass."""

from harness.report import sections


def test_a_block_is_marked_by_its_control():
    def marked(low, high, trusted):
        return sections.control_mark({"ci_low": low, "ci_high": high, "trusted": trusted}, 0.02)

    assert marked(0.99, 1.01, True) == ""
    assert marked(0.97, 1.03, True) == "coarse"
    assert marked(1.01, 1.03, False) == "⚠ untrusted"
