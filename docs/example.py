# %% [markdown]
# # Three questions to a run
#
# This page is made from [example.py](example.py), a script in cells that Jupyter (by jupytext), Spyder, VS Code and
# PyCharm open as a notebook. Run it in the repository's root. [The data of a run](data.md) explains every column.

# %%
import matplotlib.pyplot as plt

import harness

run = harness.load("reports/2026-11-26-amd-epyc-2-cores")

# %% [markdown]
# ## Which gaps survive compiling?
#
# A gap is the time of a call that projects inside the loop over that of one that projects once. Taken here are the gaps
# in the loop that users of each execution write, without those whose A/A control missed 1. Each row starts from the
# places where the eager gap is shown to be above 1, and counts what is left of it in that execution.

# %%
gaps = run.gaps[(run.gaps.contender == "in_loop") & run.gaps.trusted]
users_loop = gaps.execution.map({"v1": "scan", "graph": "scan", "xla": "scan"}).fillna("unrolled")
gaps = gaps[gaps.recurrence == users_loop]

place = ["framework", "device", "threads", "precision", "workload", "pass"]
eager = gaps[(gaps.execution == "eager") & (gaps.direction == "longer")]
compiled = gaps[gaps.execution != "eager"].merge(eager, on=place, suffixes=("", "_eager"))
left = compiled.groupby(["framework", "execution", "direction"]).size().unstack(fill_value=0)
left.rename(columns={"longer": "survives", "shorter": "turns round", "unknown": "side of 1 not shown"})

# %% [markdown]
# Most survive. Where a side of 1 is not shown, the gap may still be there: many intervals are wide. The largest that
# survive, with one thread:

# %%
survivors = compiled[(compiled.direction == "longer") & (compiled.threads == 1)].nlargest(5, "ratio")
survivors[["framework", "execution", "workload", "pass", "ratio_eager", "ratio", "ci_low", "ci_high"]].round(2)

# %% [markdown]
# ## Which program is fastest?
#
# The fastest program of all, with one thread, and the fastest of any other framework, as its ratio to the first. It is
# *shown* where it is known at 95% to be faster than those of all other frameworks.

# %%
fastest = run.frameworks[(run.frameworks.kind == "fastest") & (run.frameworks.threads == 1)].sort_values("time_s")
programs = fastest.assign(program=fastest[["framework", "execution", "recurrence", "projection"]].agg(" ".join, axis=1))
ranks = programs.groupby(["workload", "pass"])
first, second = ranks.nth(0), ranks.nth(1)
table = first.merge(second, on=["workload", "pass"], suffixes=("", "_second")).sort_values(["workload", "pass"])
table = table.assign(ms=(table.time_s * 1e3).round(2), shown=table.is_fastest)
table[["workload", "pass", "program", "ms", "shown", "program_second", "ratio_second"]].round(2)

# %% [markdown]
# At `stream`, JAX compiled by XLA is shown to be the fastest. Elsewhere none is: at `book` the intervals are wide, and
# at `vocab`, where products are large, the frameworks are close. All but one of these programs project once.

# %% [markdown]
# ## Where does in_loop's time go?
#
# Take training at `vocab` with one thread. A call that projects inside the loop consists of the loop alone, of what
# projecting once adds to it, and of what it costs to do that in T pieces. Shares of the call:

# %%
costs = run.costs[(run.costs.workload == "vocab") & (run.costs["pass"] == "train") & (run.costs.threads == 1)]
costs = costs.assign(program=costs.framework + " " + costs.execution).set_index("program")
in_loop, batched = (costs[costs.contender == form] for form in ("in_loop", "batched"))
parts = in_loop[["none_s"]].rename(columns={"none_s": "loop"})
parts = parts.assign(projection=batched.cost_s, pieces=in_loop.cost_s - batched.cost_s)
parts.div(parts.sum(axis=1), axis=0).round(2)

# %% [markdown]
# What makes the pieces cost more: being inside the loop (`in_loop` over `per_step`), or being many (`per_step` over
# `batched`)? Being many, wherever both were measured:

# %%
steps = run.steps[(run.steps.workload == "vocab") & (run.steps["pass"] == "train") & (run.steps.threads == 1)]
steps = steps[steps.next_form.isin(["per_step", "batched"]) & steps.recurrence.isin(["unrolled", "scan"])]
steps[["framework", "execution", "form", "next_form", "ratio", "ci_low", "ci_high"]].round(2)

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
(parts * 1e3).plot.barh(stacked=True, ax=axes, color=["#999999", "#56b4e9", "#d55e00"])
axes.set(xlabel="ms a call", ylabel="", title="Where the time of in_loop goes (vocab, train, 1 thread)")
figure
