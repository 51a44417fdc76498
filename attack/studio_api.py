"""Asks a studio whatever its OpenAPI allows, and does not: `python attack/studio_api.py --requests 50000`.

schemathesis makes the requests, sound ones and others, against the app in this process and without a worker. No answer
may be a 500, whatever was asked.
"""

import argparse
import contextlib
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from schemathesis.core.result import Ok

from studio_server import PORT, app_alone

MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def main() -> None:
    """Ask, and print how often each status came; exit code 1 where one was a 500."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    statuses, wrong = Counter[int](), list[str]()
    with tempfile.TemporaryDirectory() as folder, app_alone(Path(folder)) as (client, _):
        headers = dict(client.headers) | {"Host": f"127.0.0.1:{PORT}"}
        described = schemathesis.openapi.from_asgi("/v1/openapi.json", client.app, headers=headers)
        operations = [found.ok() for found in described.get_all_operations() if isinstance(found, Ok)]
        operations = [each for each in operations if not each.path.endswith("/events")]  # they do not end
        settings = hypothesis.settings(
            max_examples=max(1, options.requests // (len(MODES) * len(operations))),
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        for operation in operations:
            for mode in MODES:

                @hypothesis.seed(options.seed)
                @settings
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: schemathesis.Case[Any]) -> None:
                    answer = case.call(headers=headers)
                    statuses[answer.status_code] += 1
                    if answer.status_code >= 500 and answer.status_code not in (503, 507):
                        wrong.append(f"{answer.status_code} {case.method} {case.path} {str(case.body)[:200]}")

                with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing is wrong of what takes nothing
                    ask()
    print(f"{sum(statuses.values()):,} requests of {len(operations)} operations: {dict(sorted(statuses.items()))}")
    print("\n".join(wrong[:20]) or "no answer was a 500")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
