"""Asks a studio for a picture, watches it form, and saves it: URL, TOKEN and beach.png are its arguments."""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


class Studio:
    """A running `cones2 studio`, by its address and token."""

    def __init__(self, url: str, token: str, name: str = "my-program") -> None:
        headers = {"Authorization": f"Bearer {token}", "X-Client-Id": name}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Return an answer's JSON; what the studio refuses is an error that says why."""
        if (answer := self.http.request(method, path, **options)).is_error:
            sys.exit(f"{answer.status_code}: {answer.json()['detail']}")
        return answer.json()

    def teach(self, name: str, class_word: str, photos: list[Path]) -> Any:
        """Queue the learning of a subject, and return its job."""
        files = [("photos", (photo.name, photo.read_bytes())) for photo in photos]
        return self.call("POST", "/v1/subjects", data={"name": name, "class_word": class_word}, files=files)

    def draw(self, prompt: str, subjects: dict[str, str], layout: dict[str, Any], seeds: list[int]) -> Any:
        """Queue pictures, and return their job; a subject is `library`, `example`, or an untaught word."""
        uses = [{"name": name, "source": kind} for name, kind in subjects.items() if kind in ("library", "example")]
        words = {name: kind for name, kind in subjects.items() if kind not in ("library", "example")}
        uses += [{"name": name, "source": "word", "class_word": word} for name, word in words.items()]
        body = {"prompt": prompt, "subjects": uses, "layout": {"version": 1, "regions": layout}, "seeds": seeds}
        return self.call("POST", "/v1/pictures", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def watch(self, job: str) -> Iterator[tuple[str, Any]]:
        """Yield what happens to a job, `(event, data)`, until its end."""
        event = ""
        with self.http.stream("GET", f"/v1/jobs/{job}/events", timeout=None) as stream:
            for line in stream.iter_lines():
                name, _, value = line.partition(": ")
                event = value if name == "event" else event
                if name == "data":
                    yield event, json.loads(value)


if __name__ == "__main__":
    studio = Studio(*sys.argv[1:3])
    places = {"rex": [0.04, 0.45, 0.5, 0.91], "ball": [0.55, 0.5, 0.9, 0.9]}
    job = studio.draw("a {rex} and a {ball} on the beach", {"rex": "example", "ball": "ball"}, places, [0])
    for event, data in studio.watch(job["id"]):
        if event == "progress":
            print(f"step {data['step']} of {data['steps']}, {data['eta_s']} s left")
        elif event == "state" and data["error"]:
            sys.exit(data["error"]["detail"])
        elif event == "result":
            Path(sys.argv[3]).write_bytes(studio.http.get(data["picture"]["file"]).content)
