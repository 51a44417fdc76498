"""Draw within a Ray Data pipeline: `pip install 'ray[data]'`, then `python examples/batch/ray_data.py`."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # who reaches a cluster's ports can run anything; read by the import

import ray
import ray.data

from cones2.batch import Composer


def main() -> None:
    """Draw eight pictures by up to two actors, each of which opens the model once."""
    ray.init(include_dashboard=False)
    rows = ray.data.from_items([{"prompt": "a {rex} on the beach", "seed": seed} for seed in range(8)])
    drawn = rows.map_batches(
        Composer,
        fn_constructor_kwargs={"subjects": {"rex": "rex"}, "num_inference_steps": 20},
        batch_size=2,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),  # min_size 1: a fixed pool can wait for itself
        num_cpus=1,  # with GPUs: num_gpus=1
    )
    for row in drawn.iter_rows():
        print(row["seed"], row["image"].shape)


if __name__ == "__main__":
    main()
