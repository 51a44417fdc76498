"""How well a way of drawing several subjects does, measured so that others can trust and repeat it.

Measures are pure functions of arrays (`alignment`, `matching`, `measures`, `boxes`); `statistics`, `power` and
`questions` say what may be concluded from them. `protocol` reads what to do, `run` does it, `results` and `report` tell
what came. It needs SciPy, the extra `evaluation`.

Example:
    ```python
    from pathlib import Path

    from cones2.evaluation.protocol import read_protocol
    from cones2.evaluation.results import collect, scorer_of
    from cones2.evaluation.rows import make_rival, priors_of
    from cones2.evaluation.run import open_bench, run
    from cones2.judge import open_judge

    protocol, judge = read_protocol("protocol.toml"), open_judge()
    bench = open_bench(protocol, "s", Path("results"), judge, make_rival, priors=priors_of(protocol))
    for progress in run(bench):
        print(progress.row, progress.done, progress.total)
    results = collect(scorer_of(protocol, judge), "s", Path("results"))
    ```
"""
