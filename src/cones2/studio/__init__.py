"""The studio: a page and an HTTP API to teach subjects, draw places, and watch pictures form.

The server's process holds no model and imports no PyTorch: `app` answers, `journal` remembers, and `supervisor` feeds
one child process, `worker`, which has the model. `page` is what the browser shows.
"""
