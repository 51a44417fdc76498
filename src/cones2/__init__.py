"""Teach a text-to-image model your own subjects and place any number of them in one picture (arXiv:2305.19327).

Example:
    ```python
    import cones2

    pipe = cones2.Cones2Pipeline.from_pretrained("mini")
    pipe.load_subject("rex", pipe.learn("photos/rex", "dog"))
    layout = {"rex": (0.04, 0.45, 0.5, 0.91), "ball": (0.55, 0.5, 0.9, 0.9)}
    image = pipe("a {rex} and a {ball} on the beach", layout, subjects={"ball": "ball"}, seed=0).images[0]
    ```

Names are imported when they are first used, since PyTorch and diffusers take seconds; `__init__.pyi` lists them.
"""

import importlib.metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = importlib.metadata.version("cones2")
