"""`cones2 evaluate`: rivals compared as a protocol says, the report of it, and how much a claim needs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cones2.cli import options as opt
from cones2.cli.console import note, print_json, print_table, progress, say, waiting
from cones2.cli.options import number, option, read_seed
from cones2.errors import SettingsError, counted

_Protocol = Annotated[Path, typer.Argument(help="What to do: a protocol.toml, docs/evaluation.md.", metavar="PROTOCOL")]
_Out = Annotated[Path, option("--out -o", "The folder of the results.", "DIR")]
_Tier = Annotated[Literal["s", "m", "l"], option("--tier", "How much: for a test, for a first look, for a claim.")]
_Only = Annotated[list[str] | None, option("--row", "This row alone.", "NAME")]


def run(
    protocol: _Protocol,
    out: _Out,
    tier: _Tier = "s",
    row: _Only = None,
    pictures: Annotated[bool, option("--pictures", "Keep the pictures, for 'evaluate form'.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Learn, draw and judge what a protocol asks for; run it again to go on where it stopped.

    Example: cones2 evaluate run protocol.toml --tier s --out results
    """
    _check_scipy()
    with waiting("reading the protocol"):
        from cones2.evaluation.lines import RowLines
        from cones2.evaluation.protocol import read_protocol
        from cones2.evaluation.rows import make_rival, priors_of
        from cones2.evaluation.run import open_bench
        from cones2.evaluation.run import run as run_bench
        from cones2.judge import open_judge

        read = read_protocol(protocol)
        bench = open_bench(read, tier, out, open_judge(), make_rival, priors=priors_of(read), keeps_pictures=pictures)
    with progress("evaluating") as show:
        for each in run_bench(bench, only=row or ()):
            show(each.done, each.total, f"{each.row}, {each.combination}")
    names = [each.name for each in read.rows(tier) if not row or each.name in row]
    hashes = {name: RowLines(out / "rows", name).sha256() for name in names}
    if as_json:
        print_json({"out": str(out), "tier": tier, "protocol": read.sha256, "rows": hashes})
        return
    for name, sha256 in hashes.items():
        say(f"{name}: {sha256}")


def report(
    protocol: _Protocol,
    out: _Out,
    tier: _Tier = "s",
    to: Annotated[Path | None, option("--to", "Where the pages go; default: DIR/report.", "DIR")] = None,
    calibration: Annotated[Path | None, option("--calibration", "How often the judge errs, as JSON.", "FILE")] = None,
    allow_dirty: Annotated[
        bool, option("--allow-dirty", "Also where the code was changed since its last commit.")
    ] = False,
    pack: Annotated[bool, option("--pack", "Pack the lines of complete rows, to be committed.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Make results.json of what was drawn, and of that alone the pages, tables and plots.

    Example: cones2 evaluate report protocol.toml --out results --to docs
    """
    _check_scipy()
    with waiting("measuring"):
        from cones2.evaluation import results as made
        from cones2.evaluation.identifiers import identifiers_of
        from cones2.evaluation.protocol import read_protocol
        from cones2.evaluation.report import write_report
        from cones2.evaluation.rows import make_rival
        from cones2.judge import open_judge

        commit, changed = made.commit_of_code()
        if changed and not allow_dirty:
            raise SettingsError("the code was changed since its last commit: commit it, or give --allow-dirty.")
        read, reliability = read_protocol(protocol), made.read_calibration(calibration) if calibration else None
        found = made.collect(
            made.scorer_of(read, open_judge()),
            tier,
            out,
            identify=identifiers_of(read, make_rival),
            calibration=reliability,
            commit=commit,
        )
        made.write_results(out / "results.json", found)
        paths = write_report(found, to or out / "report")
    packed = _pack(read, out, found["rows"]) if pack else {}
    if as_json:
        print_json({"results": str(out / "results.json"), "pages": [str(path) for path in paths], "packed": packed})
        return
    for claim in found["claims"]:
        say(f"{claim['row']} first of {claim['subjects']}, {claim['layout']} layout: {claim['verdict']}.")
    say(f"Read {paths[0]}.")


def sheets(
    protocol: _Protocol,
    out: _Out,
    ours: Annotated[str, option("--ours", "The row whose failures are shown.", "NAME")],
    tier: _Tier = "s",
    to: Annotated[Path | None, option("--to", "Where the sheets go; default: DIR/sheets.", "DIR")] = None,
    as_json: opt.Json = False,
) -> None:
    """Write sheets of kept pictures: some drawn by a hash, the worst of one row, and those where a rival wins.

    Example: cones2 evaluate sheets protocol.toml --out results --ours ours
    """
    _check_scipy()
    with waiting("drawing sheets"):
        from cones2.evaluation.protocol import read_protocol
        from cones2.evaluation.results import open_lines, scorer_of
        from cones2.evaluation.sheets import sheets as drawn
        from cones2.files import make_folder
        from cones2.judge import open_judge
        from cones2.png import write_picture

        read, folder = read_protocol(protocol), to or out / "sheets"
        if ours not in (names := [row.name for row in read.rows(tier)]):
            raise SettingsError(f"--ours {ours!r} is no row: expected one of {', '.join(names)}.")
        found = drawn(scorer_of(read, open_judge()), open_lines(read, tier, out), out, ours)
        make_folder(folder)
        paths = [folder / f"{name}.png" for name in found]
        for path, image in zip(paths, found.values(), strict=True):
            write_picture(path, image, {}, embed=False)
    if as_json:
        print_json({"sheets": [str(path) for path in paths]})
        return
    for path in paths:
        say(str(path))


def _pack(protocol: Any, out: Path, rows: Mapping[str, Any]) -> dict[str, int]:
    """Pack complete rows; SettingsError where together they are larger than the protocol allows."""
    from cones2.evaluation.lines import RowLines

    packed = {name: RowLines(out / "rows", name).pack() for name, row in rows.items() if row["complete"]}
    note(f"packed: {sum(packed.values()):,} of {protocol.document.budget:,} bytes.")
    if sum(packed.values()) > protocol.document.budget:
        raise SettingsError("the packed rows are over the protocol's budget: leave some out of what is committed.")
    return packed


def power(
    combinations: Annotated[str, option("--combinations", "Of two, three, ... subjects.", "N,N,...")] = "24,16,12",
    pictures: Annotated[int, option("--pictures", "Of each combination.", "N", min=1)] = 20,
    shared: Annotated[float, option("--shared", "Spread between combinations, in logits.", "SD", min=0)] = 0.8,
    own: Annotated[float, option("--own", "Spread between combinations for one system.", "SD", min=0)] = 0.4,
    trials: Annotated[int, option("--trials", "Simulated experiments.", "N", min=1, max=1_000_000)] = 2000,
    as_json: opt.Json = False,
) -> None:
    """Simulate how often the paper's differences would be shown by so many combinations, before anything is drawn.

    Example: cones2 evaluate power --combinations 24,16,12
    """
    _check_scipy()
    from cones2.evaluation.power import Design, paper_levels
    from cones2.evaluation.power import power as simulate

    counts = [number("--combinations", each, int) for each in combinations.split(",")]
    found = simulate(Design(paper_levels(*counts), pictures, shared, own), trials)
    if as_json:
        print_json({"combinations": counts, "pictures": pictures, "shared": shared, "own": own, "power": found})
        return
    print_table("power", {f"all claims of {combinations} combinations": f"{100 * found:.0f} %"})


def form(
    protocol: _Protocol,
    out: _Out,
    tier: _Tier = "s",
    page: Annotated[Path, option("--page", "Where the page is written.", "FILE")] = Path("form.html"),
    read: Annotated[list[Path] | None, option("--read", "Score a file of answers; once for each.", "FILE")] = None,
    seed: Annotated[
        int, option("--seed", "Which questions are drawn: a number, or random.", "N", parser=read_seed)
    ] = 0,
    as_json: opt.Json = False,
) -> None:
    """Write the user study as one page, or with --read score what people answered, beside the judge.

    Example: cones2 evaluate form protocol.toml --out results --page form.html
    """
    _check_scipy()
    with waiting("reading the results"):
        from cones2.evaluation.form import questions_of, read_answers, write_form
        from cones2.evaluation.protocol import read_protocol
        from cones2.evaluation.results import open_lines, scorer_of
        from cones2.files import write_atomically
        from cones2.judge import open_judge

        found = read_protocol(protocol)
        scorer, lines = scorer_of(found, open_judge()), open_lines(found, tier, out)
    if not read:
        write_atomically(page, write_form(scorer, lines, out, seed=seed).encode())
        say(f"Open {page} in a browser; score what it saves with --read.")
        return
    study = read_answers(questions_of(scorer, lines), read)
    if as_json:
        print_json(vars(study))
        return
    rows = {name: f"{100 * yes:.0f} % yes" for name, yes in study.yes.items()}
    people = "1 person" if study.people == 1 else f"{study.people or 'no'} people"
    print_table(f"{people}, {counted(study.answers, 'answer')}", rows | {"kappa": f"{study.agreement:.2f}"})


def _check_scipy() -> None:
    try:
        import scipy  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise SettingsError("scipy is not installed: pip install 'cones2[evaluation]'.") from error


COMMANDS: dict[str, Callable[..., None]] = {each.__name__: each for each in (run, report, sheets, power, form)}
"""Of the group, by name."""
