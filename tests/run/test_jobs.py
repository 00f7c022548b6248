"""One job: what is asked of its worker."""

import math

from harness.run import jobs
from harness.study import matrix
from harness.study.matrix import Job
from harness.study.study import Study
from tests.conftest import SMALL
from tests.study.test_parts import ATTEMPT, CONFIG, EVERY, STUDY, bench_with


def test_arms_that_are_not_the_question_take_less_of_the_time(tmp_path):
    bench = bench_with(jobs.RunContext(Study(workloads=[SMALL]), {}, tmp_path, tmp_path, None, {}))
    job = Job(CONFIG, 0, tuple(matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)))
    times = {todo.part: jobs._request(bench, job, todo, ATTEMPT).rounds.block_s for todo in job.blocks}
    assert math.isclose(times["scan"], 3 * times["layer"])
    assert times["scan"] == bench.study.block_s
