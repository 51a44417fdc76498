"""Thousands of subjects and millions of pictures: described once, done by any number of workers, never lost or doubled.

Example:
    ```python
    import cones2.batch

    job = cones2.batch.read_job("job.toml")
    for outcome in cones2.batch.run(job, out="results", workers=2):
        print(outcome.kind, outcome.state, outcome.error)
    for picture in cones2.batch.read("results"):
        print(picture.labels, len(picture.content))
    ```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
